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

__all__ = ["FETCH", "HAND_BACK", "MOST_AT_ONCE", "UNDECODABLE", "Script"]

#: Messages or acknowledgements in one step; Lua takes some thousands of arguments.
MOST_AT_ONCE = 100
#: Behind a list's name: the list of what nobody can read as a message.
UNDECODABLE = ".undecodable"


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


_ACKNOWLEDGE = """
local acknowledged = tonumber(ARGV[1])
if acknowledged > 0 then
  redis.call('ZREM', KEYS[2], unpack(ARGV, 2, 1 + acknowledged))
  redis.call('HDEL', KEYS[1], unpack(ARGV, 2, 1 + acknowledged))
end
"""

#: KEYS: unacked, its index, the lists by whose turn it is. ARGV: how many tags are acknowledged,
#: those; how many messages are wanted, the time; for each list what follows a message in unacked.
#: Returns for each message the place of its list, its tag (empty: it is no message), its text.
#:
#: The text is never decoded and encoded again: numbers would lose digits. The tag is found by a
#: search, which costs little in a message of megabytes; decoding is for what the search leaves
#: in doubt.
FETCH = Script(
    _ACKNOWLEDGE
    + """
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

local at = 2 + acknowledged
local wanted, now = tonumber(ARGV[at]), ARGV[at + 1]
local found = {}
for i = 3, #KEYS do
  if wanted < 1 then break end
  local texts = redis.call('LRANGE', KEYS[i], -wanted, -1)
  if #texts > 0 then
    local entries, index = {}, {}
    for j = #texts, 1, -1 do
      local text = texts[j]
      local tag = tag_of(text)
      if tag then
        entries[#entries + 1] = tag
        entries[#entries + 1] = '[' .. text .. ARGV[at + i - 1]
        index[#index + 1] = now
        index[#index + 1] = tag
      else
        redis.call('HDEL', KEYS[1], '')
        redis.call('LPUSH', KEYS[i] .. '.undecodable', text)
      end
      found[#found + 1] = i - 3
      found[#found + 1] = tag or ''
      found[#found + 1] = text
    end
    if #entries > 0 then
      if acknowledged == 0 then redis.call('HDEL', KEYS[1], '') end
      redis.call('HSET', KEYS[1], unpack(entries))
      redis.call('ZADD', KEYS[2], unpack(index))
    end
    redis.call('LTRIM', KEYS[i], 0, -1 - #texts)
    wanted = wanted - #texts
  end
end
return found
"""
)

#: KEYS: unacked, its index, lists. ARGV: how many tags are acknowledged, those; RPUSH (to the
#: head of the queue) or LPUSH; for each message its tag, its text, the number of lists that it
#: goes to, their places. Returns how many went back: what is in unacked no more has been settled,
#: or handed back by others.
HAND_BACK = Script(
    _ACKNOWLEDGE
    + """
local handed_back = 0
local push = ARGV[2 + acknowledged]
local at = 3 + acknowledged
redis.call('HDEL', KEYS[1], '')
while at < #ARGV do
  local tag, text, lists = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2])
  if redis.call('HEXISTS', KEYS[1], tag) == 1 then
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
