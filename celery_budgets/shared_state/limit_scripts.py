"""The scripts by which Redis grants limits: all limits of a call at once, or none.

By limit and key there are these names, in one hash slot:

- *held*, a sorted set: who holds a place, by the end of its lease. A call of weight 3 has three
  members. It is counted by its members, and those whose lease has ended are removed first.
- *line*, a sorted set: who waits for a place, by when it asked first. When a place is free, the
  first in line is offered it: it becomes a member of *held* for a moment, and is told by a message
  on the channel of its process. Where nobody hears that, the next one is offered it.
- *rate*, a number: when the next call is due by the generic cell rate algorithm (GCRA).
- *brake*, of the key, and of the limit with all its keys: until when it is closed, because whoever
  is at the other end has said so (``Throttled``). After that one call tries it; when that one
  gives its place back without having closed it again, the brake is gone.

A holder is named ``process:number``; its members are ``process:number#1``, and ``...?1`` while it
is only offered a place. All times are microseconds of the server's clock.

Runs in the Redis server. See also: :mod:`celery_budgets.shared_state.limit_store`.
"""

from __future__ import annotations

__all__ = ["ACQUIRE", "CLOCK", "RELEASE", "RENEW", "THROTTLE"]

#: Reads the time into ``now``; a test has a clock of its own.
CLOCK = """
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
"""
#: ARGV: length of a lease, then the arguments of each script.
_HELD = """
local length = tonumber(ARGV[1])

local function put(held, holder, mark, weight, ends)
  for place = 1, weight do redis.call('ZADD', held, ends, holder .. mark .. place) end
  redis.call('PEXPIRE', held, math.ceil(length / 500))
end

local function drop(held, holder, mark, weight)
  for place = 1, weight do redis.call('ZREM', held, holder .. mark .. place) end
end
"""
#: KEYS: held, line, rate and the two brakes of each demand. ARGV: length, holder, time of an offer,
#: channels, since when it waits (0: now); of each demand: its most, weight, interval and burst.
_DEMANDS = (
    _HELD
    + """
local holder, moment, channels = ARGV[2], tonumber(ARGV[3]), ARGV[4]
local demands = {}
for place = 1, #KEYS / 5 do
  local at, key = 2 + place * 4, place * 5
  demands[place] = {
    held = KEYS[key - 4], line = KEYS[key - 3], rate = KEYS[key - 2],
    brakes = {KEYS[key - 1], KEYS[key]},
    most = tonumber(ARGV[at]), weight = tonumber(ARGV[at + 1]),
    interval = tonumber(ARGV[at + 2]), burst = tonumber(ARGV[at + 3])}
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

-- Remove those whose lease has ended, and offer what is free to the first in line.
local function tidy(demand)
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', demand.held, '-inf', now)) do
    -- A process that did not take what it was offered stands still.
    local process = string.match(member, '^([^:]*):.*%?%d+$')
    if process then forget(demand.line, process) end
  end
  redis.call('ZREMRANGEBYSCORE', demand.held, '-inf', now)
  while not demand.braked do
    local first = redis.call('ZRANGE', demand.line, 0, 0)[1]
    if not first then return end
    local waiting, process, weight = string.match(first, '^(([^:]*):%S*) (%d+)$')
    weight = math.min(tonumber(weight), demand.most)
    if room(demand) < weight then return end
    redis.call('ZREM', demand.line, first)
    if redis.call('PUBLISH', channels .. process, waiting) > 0 then
      put(demand.held, waiting, '?', weight, now + moment)
    end
  end
end

-- Take a holder out of what it holds, is offered and waits for.
local function leave(demand)
  if demand.most == 0 then return end
  drop(demand.held, holder, '#', demand.weight)
  drop(demand.held, holder, '?', demand.weight)
  redis.call('ZREM', demand.line, demand.waits)
end
"""
)
#: Returns 1 if all are granted; else 0, the demand that is not, how long it has to wait for its
#: rate (0: it waits in line), since when it waits, and how long the first lease there still lasts.
ACQUIRE = (
    _DEMANDS
    + """
local since = tonumber(ARGV[5])
if since == 0 then since = now end

local function has_all()
  local found = false
  for _, demand in ipairs(demands) do
    if demand.most > 0 then
      if not redis.call('ZSCORE', demand.held, holder .. '#1') then return false end
      found = true
    end
  end
  return found
end

local function is_full(demand)
  if demand.most == 0 then return false end
  tidy(demand)
  if redis.call('ZSCORE', demand.held, holder .. '?1') then return false end
  if room(demand) < demand.weight then return true end
  -- Nobody is offered what is braked: who asks first tries it.
  if demand.braked then return false end
  -- The first in line needs more than what is free: who came later does not take that from it.
  local first = redis.call('ZRANGE', demand.line, 0, 0, 'WITHSCORES')
  return first[2] and tonumber(first[2]) < since
end

local function due(demand)
  if demand.interval == 0 then return now end
  local theoretical = math.max(tonumber(redis.call('GET', demand.rate) or 0), now)
  return theoretical + (demand.weight - demand.burst) * demand.interval
end

local function grant()
  for _, demand in ipairs(demands) do
    leave(demand)
    if demand.most > 0 then
      put(demand.held, holder, '#', demand.weight, now + length)
    end
    for _, brake in ipairs(demand.tries) do
      local where = demand.most > 0 and demand.held or '-'
      local text = string.format('%.0f %.0f %s %s', brake[2], now + length, holder, where)
      redis.call('SET', brake[1], text, 'PX', 3600000)
    end
    if demand.interval > 0 then
      local theoretical = math.ceil(due(demand) + demand.burst * demand.interval)
      redis.call('SET', demand.rate, string.format('%.0f', theoretical), 'PX',
                 math.ceil((theoretical - now) / 1000))
    end
  end
  return {1, 0, 0, 0, 0}
end

if has_all() then  -- the reply to it was lost
  for _, demand in ipairs(demands) do
    if demand.most > 0 then
      put(demand.held, holder, '#', demand.weight, now + length)
    end
  end
  return {1, 0, 0, 0, 0}
end
local refused, wait = 0, 0
for _, demand in ipairs(demands) do look(demand) end
for place, demand in ipairs(demands) do
  if demand.closed > 0 then refused, wait = place, demand.closed break end
  if is_full(demand) then refused = place break end
  if due(demand) > now then refused, wait = place, math.ceil(due(demand) - now) break end
end
if refused == 0 then return grant() end
for place, demand in ipairs(demands) do
  leave(demand)
  if place == refused and wait == 0 then
    redis.call('ZADD', demand.line, since, demand.waits)
    redis.call('PEXPIRE', demand.line, math.ceil(length / 500) + 60000)
  elseif demand.most > 0 then
    tidy(demand)
  end
end
local ends = redis.call('ZRANGE', demands[refused].held, 0, 0, 'WITHSCORES')[2]
return {0, refused, wait, string.format('%.0f', since), ends and tonumber(ends) - now or 0}
"""
)
#: Gives back what a holder has, and ends its wait.
RELEASE = (
    _DEMANDS
    + """
for _, demand in ipairs(demands) do
  leave(demand)
  open_brakes(demand)
  look(demand)
  if demand.most > 0 then tidy(demand) end
end
"""
)
#: KEYS: a brake. ARGV: for how long.
THROTTLE = """
local opens = now + tonumber(ARGV[1])
local text = redis.call('GET', KEYS[1])
if text then opens = math.max(opens, tonumber(string.match(text, '^%d+'))) end
-- Who tries it now finds no more than the others: it is closed again.
redis.call('SET', KEYS[1], string.format('%.0f 0 - -', opens),
           'PX', math.ceil((opens - now) / 1000) + 3600000)
"""
#: KEYS: held. ARGV: length; of each key the holder, the most, the weight. Returns for each whether
#: it is held on: who has lost it takes it again where there is room.
RENEW = (
    _HELD
    + """
local renewed = {}
for place, held in ipairs(KEYS) do
  local at = place * 3 - 1
  local holder, most, weight = ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  renewed[place] = 1
  if not redis.call('ZSCORE', held, holder .. '#1') then
    redis.call('ZREMRANGEBYSCORE', held, '-inf', now)
    if most - redis.call('ZCOUNT', held, '-inf', '+inf') < weight then renewed[place] = 0 end
  end
  if renewed[place] == 1 then put(held, holder, '#', weight, now + length) end
end
return renewed
"""
)
