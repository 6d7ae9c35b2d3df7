-- Change documents and their checkpoint, if the writer is still the one that claimed the partition
-- and all that it wrote is there.
--
-- KEYS  the partition's checkpoint, values, failures, keys, keys of stopped documents.
-- ARGV  writer, how many times it has written, position, data, four counts; then, as many as these
--       say: keys and values in turn, keys and failures in turn, keys of documents that have no
--       value any more, and keys of those that are no more.
-- Returns 1; 0 where another has claimed the partition, 2 where there is no such partition, or 3
-- where what the writer wrote last is not there. Where this write was done already, it is not done
-- again: 1.
--
-- A script that fails midway keeps what it has written, so all that can fail comes first.

local checkpoint, values, failures, keys, stopped = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local have = call('HMGET', checkpoint, 'writer', 'writes')
call('HLEN', values)
call('ZCARD', keys)
call('ZCARD', stopped)
local has_stopped = call('HLEN', failures) > 0

local writes = tonumber(ARGV[2])
if not have[1] then return 2 end
if have[1] ~= ARGV[1] then return 0 end
if have[2] == tostring(writes + 1) then return 1 end
if have[2] ~= ARGV[2] then return 3 end

-- Lua's stack takes 8,000 values at once.
local STEP = 5000

-- A command with the arguments from `first` to `last`; how many it says were new or gone.
local function each(command, key, first, last)
  local changed = 0
  for start = first, last, STEP do
    changed = changed + call(command, key, unpack(ARGV, start, math.min(start + STEP - 1, last)))
  end
  return changed
end

-- Put every second argument into a sorted set, or take it out.
local function add(set, first, last)
  for start = first, last, STEP do
    local members = {}
    for at = start, math.min(start + STEP - 1, last), 2 do
      members[#members + 1] = 0
      members[#members + 1] = ARGV[at]
    end
    call('ZADD', set, unpack(members))
  end
end

local function forget_failures(first, last, by)
  for start = first, last, STEP do
    local fields = {}
    for at = start, math.min(start + STEP - 1, last), by do fields[#fields + 1] = ARGV[at] end
    call('HDEL', failures, unpack(fields))
    call('ZREM', stopped, unpack(fields))
  end
end

local valued = 9  -- where the keys of each kind begin
local failed = valued + 2 * tonumber(ARGV[5])
local valueless = failed + 2 * tonumber(ARGV[6])
local gone = valueless + tonumber(ARGV[7])
local last = gone + tonumber(ARGV[8]) - 1

-- This first: a server that is full refuses it, but nothing after a deletion has succeeded.
call('HSET', checkpoint, 'writes', writes + 1, 'position', ARGV[3], 'data', ARGV[4])

if has_stopped then
  forget_failures(valued, failed - 1, 2)
  forget_failures(gone, last, 1)
end
if each('HSET', values, valued, failed - 1) > 0 then add(keys, valued, failed - 1) end
each('HSET', failures, failed, valueless - 1)
add(keys, failed, valueless - 1)
add(stopped, failed, valueless - 1)
each('HDEL', values, valueless, gone - 1)
each('HDEL', values, gone, last)
each('ZREM', keys, gone, last)
return 1
