"""What Redis does for a worker in one step: fetch and note messages, acknowledge, hand back.

Lua scripts over kombu's own keys and formats, so that plain workers, older ones and ``celery
purge`` share the queues: a message lies in the list of its queue and priority, its oldest at the
right; one that is in hand lies in the hash ``unacked`` as ``[message, exchange, routing key]``
under its delivery tag, and in the sorted set ``unacked_index`` by the time of its delivery.

A script is not rolled back where it fails. So each stores before it deletes, and where Redis is
out of memory a first write that frees (``HDEL`` of nothing) lets it go on to its end.
"""

from __future__ import annotations

from hashlib import sha1

from celery_budgets.worker.transport.holder import HOLDERS, PARTS

__all__ = ["FETCH", "HAND_BACK", "MOST_AT_ONCE", "TURNS", "UNDECODABLE", "Script"]

#: Messages or acknowledgements in one step; Lua takes some thousands of arguments.
MOST_AT_ONCE = 100
#: Behind a list's name: the list of what nobody can read as a message.
UNDECODABLE = ".undecodable"
#: The list of turns, by which one worker at a time comes to wait for its messages again; and the
#: tag of what the last one took who was woken (:mod:`celery_budgets.worker.transport.waiting`).
TURNS = ".turns"
TAKEN = ".taken"


class Script:
    """A script, and how it is called."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.digest = sha1(source.encode(), usedforsecurity=False).hexdigest()

    def call(
        self, keys: list[str], arguments: list[object], *, whole: bool = False
    ) -> list[object]:
        """Return the command that runs it: by its digest, or *whole* where Redis lacks it."""
        head = ("EVAL", self.source) if whole else ("EVALSHA", self.digest)
        return [*head, len(keys), *keys, *arguments]


#: ARGV: how many tags are acknowledged, the number of the holder, those tags. What another one
#: holds by now stays as it is (:mod:`celery_budgets.worker.transport.holder`).
_ACKNOWLEDGE = f"""
local acknowledged, holder = tonumber(ARGV[1]), tonumber(ARGV[2])
local function is_held(tag)
  if holder < 0 then return true end
  local noted = redis.call('ZSCORE', KEYS[2], tag)
  return not noted or tonumber(noted) * {PARTS} % {HOLDERS} == holder
end
local settled = {{}}
for i = 3, 2 + acknowledged do
  if is_held(ARGV[i]) then settled[#settled + 1] = ARGV[i] end
end
if #settled > 0 then
  redis.call('ZREM', KEYS[2], unpack(settled))
  redis.call('HDEL', KEYS[1], unpack(settled))
else
  redis.call('HDEL', KEYS[1], '')
end
"""

#: KEYS: unacked, its index, the lists by whose turn it is. ARGV: acknowledgements as above; how
#: many messages are wanted, the time, the place of the list whose message has woken the worker,
#: or 0; for each list what follows a message in unacked.
#: Returns for each message the place of its list, its tag (empty: it is no message), its text. For
#: a worker that was woken and finds nothing, only the tag of what another one took who was woken.
#:
#: The text is never decoded and encoded again: numbers would lose digits. The tag is found by a
#: search, which costs little in a message of megabytes; decoding is for what the search leaves
#: in doubt.
FETCH = Script(
    _ACKNOWLEDGE
    + f"""
local function tag_of(text)
  local first, last = string.find(text, '"delivery_tag"', 1, true)
  if first and not string.find(text, '"delivery_tag"', last, true) then
    local tag = string.match(text, '^%s*:%s*"([^"\\\\]+)"', last + 1)
    if tag then return tag end
  end
  local read, message = pcall(cjson.decode, text)
  local properties = read and type(message) == 'table' and message['properties']
  local tag = type(properties) == 'table' and properties['delivery_tag']
  if type(tag) == 'string' and tag ~= '' then return tag end
  if type(tag) == 'number' and tag % 1 == 0 and tag < 2 ^ 53 then
    return string.format('%.0f', tag)
  end
  return nil
end

local function wake_next(list, tag)
  local turns, left = list .. '{TURNS}', redis.call('LLEN', list)
  redis.pcall('SET', list .. '{TAKEN}', tag, 'EX', 5)
  if redis.pcall('LLEN', turns) == 0 then
    for _ = 1, math.max(1, math.min(4, left)) do redis.pcall('LPUSH', turns, '') end
    redis.pcall('EXPIRE', turns, 5)
  end
end

local at = 3 + acknowledged
local wanted, now, woken_by = tonumber(ARGV[at]), ARGV[at + 1], tonumber(ARGV[at + 2])
local found = {{}}
for i = 3, #KEYS do
  if wanted < 1 then break end
  local texts = redis.call('LRANGE', KEYS[i], -wanted, -1)
  if #texts > 0 then
    local entries, index = {{}}, {{}}
    for j = #texts, 1, -1 do
      local text = texts[j]
      local tag = tag_of(text)
      if tag then
        entries[#entries + 1] = tag
        entries[#entries + 1] = '[' .. text .. ARGV[at + i]
        index[#index + 1] = now
        index[#index + 1] = tag
      else
        redis.call('LPUSH', KEYS[i] .. '{UNDECODABLE}', text)
      end
      found[#found + 1] = i - 3
      found[#found + 1] = tag or ''
      found[#found + 1] = text
    end
    if #entries > 0 then
      redis.call('HSET', KEYS[1], unpack(entries))
      redis.call('ZADD', KEYS[2], unpack(index))
    end
    redis.call('LTRIM', KEYS[i], 0, -1 - #texts)
    wanted = wanted - #texts
    if i - 2 == woken_by then wake_next(KEYS[i], found[2]) end
  end
end
if woken_by > 0 and #found == 0 then
  local taken = redis.pcall('GET', KEYS[2 + woken_by] .. '{TAKEN}')
  if type(taken) == 'string' then return {{taken}} end
end
return found
"""
)

#: KEYS: unacked, its index, lists. ARGV: acknowledgements as above; RPUSH (to the head of the
#: queue) or LPUSH; for each message its tag, its text, the number of lists that it goes to, their
#: places. Returns how many went back: what is in unacked no more has been settled, or handed back
#: by others.
HAND_BACK = Script(
    _ACKNOWLEDGE
    + """
local handed_back = 0
local push = ARGV[3 + acknowledged]
local at = 4 + acknowledged
while at < #ARGV do
  local tag, text, lists = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2])
  if redis.call('HEXISTS', KEYS[1], tag) == 1 and is_held(tag) then
    for i = at + 3, at + 2 + lists do
      redis.call(push, KEYS[3 + tonumber(ARGV[i])], text)
    end
    redis.call('HDEL', KEYS[1], tag)
    redis.call('ZREM', KEYS[2], tag)
    handed_back = handed_back + 1
  end
  at = at + 3 + lists
end
return handed_back
"""
)
