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

- *set*, of the limit with all its keys: a hash of what an operator has set instead of what its
  program says.
- *used*, of the limit with all its keys, a sorted set: the slot-seconds that each key has used
  lately. At limits that keys share, those that have used less come first.

A holder is named ``process:number``; its members are ``process:number#1``, and ``...?1`` while it
is only offered a place. All times are microseconds of the server's clock.

Runs in the Redis server. See also: :mod:`celery_budgets.shared_state.limit_store`.
"""

from __future__ import annotations

from celery_budgets.shared_state.scripts.demands import DEMANDS, HELD

__all__ = ["ACQUIRE", "RELEASE", "RENEW", "THROTTLE"]

#: Returns 1 if all are granted, and since when it has waited; else 0, the demand that is not, how
#: long it has to wait for its rate (0: it waits in line, -1: it is to be put aside), since when it
#: waits, and how long the first lease there still lasts. Then the time of the server, and what the
#: caller is to send back.
ACQUIRE = (
    DEMANDS
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

-- Where a call stands in the line of a limit. Where keys share it, one whose key has used more than
-- a second lately stands as if it came as many seconds later, from now: but no more than lets all
-- of one key keep their order while what they have used halves.
local function stands(demand)
  if demand.keyed then return since end
  local stood = redis.call('ZSCORE', demand.line, demand.waits)
  if stood then return tonumber(stood) end
  local most = 0
  for _, other in ipairs(demands) do
    if other.keyed then most = math.max(most, used(other.used, other.keyed)) end
  end
  if most < 1 then return since end
  return math.floor(now + math.min(most, 865) * 1000000)
end

local function is_full(demand)
  if demand.most == 0 and not demand.keyed then return false end
  tidy(demand)
  -- Also where it has lost the others: it is not in its own way.
  if redis.call('ZSCORE', demand.held, holder .. '#1') then return false end
  if redis.call('ZSCORE', demand.held, holder .. '?1') then return false end
  if aside and redis.call('ZSCORE', demand.held, aside .. '?1') then return false end
  if demand.most > 0 and room(demand) < demand.takes then return true end
  -- Nobody is offered what is braked: who asks first tries it.
  if demand.braked then return false end
  -- The first in line needs more than what is free: who came later does not take that from it.
  local first = redis.call('ZRANGE', demand.line, 0, 0, 'WITHSCORES')
  return first[2] and tonumber(first[2]) < stands(demand)
end

local function grant()
  if aside then
    redis.call('ZREM', back, ARGV[6])
    redis.call('HDEL', asides, ARGV[6])
  end
  for _, demand in ipairs(demands) do
    leave(demand)
    if aside then redis.call('ZREM', demand.line, aside .. ' ' .. demand.weight) end
    if demand.most > 0 then
      put(demand.held, holder, '#', demand.takes, now + length)
    end
    for _, brake in ipairs(demand.tries) do
      local where = demand.most > 0 and demand.held or '-'
      local text = string.format('%.0f %.0f %s %s', brake[2], now + length, holder, where)
      redis.call('SET', brake[1], text, 'PX', 3600000)
    end
    if demand.interval > 0 then
      local theoretical = math.ceil(due(demand, demand.weight) + demand.burst * demand.interval)
      redis.call('SET', demand.rate, string.format('%.0f', theoretical), 'PX',
                 math.ceil((theoretical - now) / 1000))
    end
  end
  return {1, 0, 0, string.format('%.0f', since), 0, string.format('%.0f', now), collect()}
end

if has_all() then  -- the reply to it was lost
  for _, demand in ipairs(demands) do
    if demand.most > 0 then
      put(demand.held, holder, '#', demand.takes, now + length)
    end
  end
  return {1, 0, 0, string.format('%.0f', since), 0, string.format('%.0f', now), collect()}
end
local refused, wait = 0, 0
local function ask(place)
  local demand = demands[place]
  if demand.closed > 0 then refused, wait = place, demand.closed return end
  if is_full(demand) then refused = place return end
  local weight = demand.weight
  if demand.keyed and not (aside and redis.call('ZSCORE', demand.held, aside .. '?1')) then
    weight = weight + travelling(demand)  -- they come for the turns that they were sent back for
  end
  local starts = due(demand, weight)
  if starts > now then refused, wait = place, math.ceil(starts - now) end
end
for _, demand in ipairs(demands) do look(demand) end
-- Keys first: whose key is full does not stand in the way of others at what they share.
for _, keyed in ipairs({true, false}) do
  for place, demand in ipairs(demands) do
    if refused == 0 and (demand.keyed ~= false) == keyed then ask(place) end
  end
end
if refused == 0 then return grant() end
local keeps = aside and not demands[refused].keyed
if aside and demands[refused].keyed then wait = -1 end  -- the caller puts it aside
for place, demand in ipairs(demands) do
  local stood = place == refused and wait == 0 and string.format('%.0f', stands(demand))
  leave(demand)
  if keeps and demand.keyed then
    -- No more of a key wait for what keys share than it may have: until it asks again.
    put(demand.held, aside, '?', demand.takes, now + 10 * moment)
  end
  if stood then
    redis.call('ZADD', demand.line, stood, demand.waits)
    if demand.keyed then
      plan(demand)
    else
      redis.call('PEXPIRE', demand.line, math.ceil(length / 500) + 60000)
    end
  elseif demand.most > 0 or demand.keyed then
    -- It has its turn before its message is here: else who came later might be sent back first.
    if place == refused and wait < 0 then
      local waits = aside .. ' ' .. demand.weight
      redis.call('ZADD', demand.line, 'NX', string.format('%.0f', since), waits)
    end
    tidy(demand)
  end
end
local ends = redis.call('ZRANGE', demands[refused].held, 0, 0, 'WITHSCORES')[2]
return {0, refused, wait, string.format('%.0f', since), ends and tonumber(ends) - now or 0,
        string.format('%.0f', now), collect()}
"""
)
#: Gives back what a holder has, and ends its wait. Returns what the caller is to send back.
RELEASE = (
    DEMANDS
    + """
for _, demand in ipairs(demands) do
  leave(demand)
  if demand.keyed then use(demand.used, demand.keyed, tonumber(ARGV[8]) * demand.takes) end
  open_brakes(demand)
  look(demand)
  if demand.most > 0 or demand.keyed then tidy(demand) end
end
return collect()
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
#: KEYS: held, set and used of each place. ARGV: length; of each place the holder, the most, the
#: weight, its key in used, or nothing, and the seconds for which it was held since the last time.
#: Returns for each whether it is held on: who has lost it takes it again where there is room.
RENEW = (
    HELD
    + """
local renewed = {}
for place = 1, #KEYS / 3 do
  local held, at = KEYS[place * 3 - 2], place * 5 - 3
  local holder, most = ARGV[at], in_force(KEYS[place * 3 - 1], tonumber(ARGV[at + 1]), 0)
  local weight = math.min(tonumber(ARGV[at + 2]), most)
  if ARGV[at + 3] ~= '' then
    use(KEYS[place * 3], ARGV[at + 3], tonumber(ARGV[at + 4]) * weight)
  end
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
