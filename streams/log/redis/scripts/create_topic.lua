-- Create a topic, or see that it is as it should be.
--
-- KEYS  the topic's facts, the stream of that name, the index of the histories in it.
-- ARGV  partitions, seconds to keep messages, messages to keep, most entries whatever is settled
--       (each empty: no bound), 1 to change these where the topic exists, 1 for an event topic.
-- Returns {1, partitions, seconds, messages, most, events}, {0, partitions it has} where that is
--       another number, or {2} where it is an event topic or not, unlike what was asked for.

local have = call('HMGET', KEYS[1], 'partitions', 'seconds', 'messages', 'most', 'events')
local partitions = have[1]
if not partitions and call('EXISTS', KEYS[2]) == 1 then
  call('XLEN', KEYS[2])  -- an error where it is no stream
  -- Histories of which nothing is known were appended while an event topic was deleted.
  if ARGV[6] ~= '1' or call('EXISTS', KEYS[3]) == 0 then partitions = '1' end
end
if partitions and ARGV[6] == '1' and have[5] ~= '1' then return { 2 } end
if partitions and partitions ~= ARGV[1] then return { 0, partitions } end
if partitions and ARGV[5] == '1' and have[5] == '1' and ARGV[6] ~= '1' then return { 2 } end
if not have[1] or ARGV[5] == '1' then
  call('HSET', KEYS[1], 'partitions', ARGV[1], 'seconds', ARGV[2], 'messages', ARGV[3], 'most',
    ARGV[4], 'events', ARGV[6])
  return { 1, ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[6] }
end
return { 1, partitions, have[2], have[3], have[4], have[5] or '' }
