"""What the scripts of limits have in common: what a call asks for, and who is next.

Runs in the Redis server. See also: :mod:`celery_budgets.shared_state.scripts.limits`.
"""

from __future__ import annotations

__all__ = ["CLOCK", "DEMANDS", "HELD"]

#: Reads the time into ``now``; a test has a clock of its own.
CLOCK = """
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
"""
#: ARGV: length of a lease, then the arguments of each script.
HELD = """
local length = tonumber(ARGV[1])

local function put(held, holder, mark, weight, ends)
  for place = 1, weight do redis.call('ZADD', held, ends, holder .. mark .. place) end
  redis.call('PEXPIRE', held, math.ceil(length / 500))
end

local function drop(held, holder, mark, weight)
  for place = 1, weight do redis.call('ZREM', held, holder .. mark .. place) end
end

-- What is in force: an operator changes what there is, and adds nothing.
local function in_force(set, most, interval)
  local theirs = redis.call('HMGET', set, 'concurrency', 'interval')
  if most > 0 and theirs[1] then most = tonumber(theirs[1]) end
  if interval > 0 and theirs[2] then interval = tonumber(theirs[2]) end
  return most, interval
end

-- The slot-seconds that keys have used lately, which halve with each period: as the logarithm of
-- what a key has used plus the periods until now. So nothing has to be changed as time passes, and
-- they are in the order of what is left of each.
local period = 600000000

local function used(names, key)
  local score = redis.call('ZSCORE', names, key)
  return score and 2 ^ (tonumber(score) - now / period) or 0
end

local function use(names, key, seconds)
  if seconds <= 0 then return end
  local score = math.log(used(names, key) + seconds) / math.log(2) + now / period
  redis.call('ZADD', names, string.format('%.9f', score), key)
  redis.call('ZREMRANGEBYSCORE', names, '-inf', now / period - 20)
  redis.call('ZREMRANGEBYRANK', names, 0, -10001)
  redis.call('PEXPIRE', names, 36000000)
end
"""
#: KEYS: held, line, rate, the two brakes, set and used of each demand; asides, looks, back. ARGV:
#: length, holder, time of an offer, channels, since when it waits (0: now), its name if it may be
#: put aside, how many the caller sends back, for how many seconds it has held what it gives back;
#: of each demand: its most, weight, interval, burst, and its key in used, or nothing.
DEMANDS = (
    HELD
    + """
local holder, moment, channels = ARGV[2], tonumber(ARGV[3]), ARGV[4]
local aside = ARGV[6] ~= '' and 'aside:' .. ARGV[6]
local asides, looks, back = KEYS[#KEYS - 2], KEYS[#KEYS - 1], KEYS[#KEYS]
local demands = {}
for place = 1, (#KEYS - 3) / 7 do
  local at, key, weight = 4 + place * 5, place * 7, tonumber(ARGV[5 + place * 5])
  local most, interval = in_force(KEYS[key - 1], tonumber(ARGV[at]), tonumber(ARGV[at + 2]))
  demands[place] = {
    held = KEYS[key - 6], line = KEYS[key - 5], rate = KEYS[key - 4],
    brakes = {KEYS[key - 3], KEYS[key - 2]}, used = KEYS[key], most = most, weight = weight,
    -- Where an operator has set less than its weight, a call takes all.
    takes = most > 0 and math.min(weight, most) or weight,
    interval = interval, burst = tonumber(ARGV[at + 3]),
    keyed = ARGV[at + 4] ~= '' and ARGV[at + 4]}
  demands[place].waits = holder .. ' ' .. demands[place].weight
end

-- A brake reads "until ends who where": who tries it, until when at the latest, and in which set
-- it holds its place ("-": in none).
local function each_brake(demand, act)
  for place, text in ipairs(redis.call('MGET', demand.brakes[1], demand.brakes[2])) do
    if text then
      local opens, ends, who, where = string.match(text, '^(%d+) (%d+) (%S+) (.*)$')
      if where ~= '-' then ends = redis.call('ZSCORE', where, who .. '#1') or 0 end
      act(demand.brakes[place], tonumber(opens), who, tonumber(ends))
    end
  end
end

-- Note which brakes of a demand are on, and how long it is closed to this holder.
local function look(demand)
  demand.braked, demand.closed, demand.tries = false, 0, {}
  each_brake(demand, function(name, opens, who, ends)
    demand.braked = true
    if now < opens then
      demand.closed = math.max(demand.closed, opens - now)
    elseif who ~= holder and now < ends then
      demand.closed = math.max(demand.closed, 500000)  -- looked at again while another tries
    else
      table.insert(demand.tries, {name, opens})
    end
  end)
end

-- The one that has tried it found it well.
local function open_brakes(demand)
  each_brake(demand, function(name, opens, who)
    if who == holder then redis.call('DEL', name) end
  end)
end

local function forget(line, process)
  for _, waits in ipairs(redis.call('ZRANGE', line, 0, -1)) do
    if string.match(waits, '^([^:]*):') == process then redis.call('ZREM', line, waits) end
  end
end

local function room(demand)
  return demand.most - redis.call('ZCOUNT', demand.held, '-inf', '+inf')
end

-- How many of those that were put aside have been sent back and have not arrived.
local function travelling(demand)
  local count = 0
  for _, member in ipairs(redis.call('ZRANGE', demand.held, 0, -1)) do
    if string.sub(member, 1, 6) == 'aside:' then count = count + 1 end
  end
  return count
end

-- When the rate lets a call of that weight start.
local function due(demand, weight)
  if demand.interval == 0 then return now end
  local theoretical = math.max(tonumber(redis.call('GET', demand.rate) or 0), now)
  return theoretical + (weight - demand.burst) * demand.interval
end

-- Note when to look at a key again: nobody tells of a lease that ends, a rate, or a brake.
local function plan(demand)
  if not demand.keyed then return end
  local which = string.match(demand.line, '{limits}:line:(.*)$')
  if redis.call('EXISTS', demand.line) == 0 then return redis.call('ZREM', looks, which) end
  local at = now + 10000000
  local ends = redis.call('ZRANGE', demand.held, 0, 0, 'WITHSCORES')[2]
  if ends then at = math.min(at, tonumber(ends) + 10000) end
  if demand.interval > 0 then
    local starts = due(demand, 1 + travelling(demand))
    if starts > now then at = math.min(at, starts) end
  end
  if demand.braked then at = math.min(at, now + math.max(demand.closed, 100000)) end
  redis.call('ZADD', looks, string.format('%.0f', math.max(at, now + 1000)), which)
end

-- Whether the first in line may come, which was put aside or not.
local function may_come(demand, weight, put_aside)
  if demand.most > 0 and room(demand) < weight then return false end
  if not put_aside then
    return not demand.braked and (demand.most > 0 or due(demand, weight) <= now)
  end
  local away = travelling(demand)
  if demand.braked and (demand.closed > 0 or away > 0) then return false end
  return due(demand, weight + away) <= now
end

-- Remove those whose lease has ended, and offer what is free to the first in line: who was put
-- aside is sent back, and has its place for as long as that takes.
local function tidy(demand)
  local sent = 0
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', demand.held, '-inf', now)) do
    -- A process that did not take what it was offered stands still.
    local process = string.match(member, '^([^:]*):.*%?%d+$')
    if process and process ~= 'aside' then forget(demand.line, process) end
  end
  redis.call('ZREMRANGEBYSCORE', demand.held, '-inf', now)
  while true do
    local first = redis.call('ZRANGE', demand.line, 0, 0)[1]
    if not first then break end
    local waiting, process, weight = string.match(first, '^(([^:]*):%S*) (%d+)$')
    weight = tonumber(weight)
    if demand.most > 0 then weight = math.min(weight, demand.most) end
    if not may_come(demand, weight, process == 'aside') then break end
    redis.call('ZREM', demand.line, first)
    if process == 'aside' then
      put(demand.held, waiting, '?', weight, now + 5 * moment)
      -- Of all who may come, those whose keys have used least are sent first.
      sent = sent + 1
      redis.call('ZADD', back, used(demand.used, demand.keyed) + sent / 1e6,
                 string.sub(waiting, 7))
    elseif redis.call('PUBLISH', channels .. process, waiting) > 0 then
      put(demand.held, waiting, '?', weight, now + moment)
    end
  end
  plan(demand)
end

-- Take a holder out of what it holds, is offered and waits for.
local function leave(demand)
  if aside then drop(demand.held, aside, '?', demand.weight) end
  if demand.most > 0 or demand.keyed then
    drop(demand.held, holder, '#', demand.weight)
    drop(demand.held, holder, '?', demand.weight)
    redis.call('ZREM', demand.line, demand.waits)
  end
end

-- What the caller is to send back: the name, the message, and until when nobody else does.
local function collect()
  local taken = {}
  for _, name in ipairs(redis.call('ZRANGEBYSCORE', back, '-inf', now, 'LIMIT', 0, ARGV[7])) do
    local message = redis.call('HGET', asides, name)
    if message then
      local ends = string.format('%.0f', now + 10 * moment)
      redis.call('ZADD', back, ends, name)
      table.insert(taken, {name, message, ends})
    else
      redis.call('ZREM', back, name)
    end
  end
  return taken
end
"""
)
