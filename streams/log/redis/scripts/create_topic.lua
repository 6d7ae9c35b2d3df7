-- Create a topic, or see that it is as it should be.
--
-- KEYS  the topic's facts, the stream of that name.
-- ARGV  partitions, seconds to keep messages, messages to keep, most entries whatever is settled
--       (each empty: no bound), 1 to change these where the topic exists.
-- Returns {1, partitions, seconds, messages, most}, or {0, partitions it has}.

local have = call('HMGET', KEYS[1], 'partitions', 'seconds', 'messages', 'most')
local partitions = have[1]
if not partitions and call('EXISTS', KEYS[2]) == 1 then
  call('XLEN', KEYS[2])  -- an error where it is no stream
  partitions = '1'
end
if partitions and partitions ~= ARGV[1] then return { 0, partitions } end
if not have[1] or ARGV[5] == '1' then
  call('HSET', KEYS[1], 'partitions', ARGV[1], 'seconds', ARGV[2], 'messages', ARGV[3], 'most',
    ARGV[4])
  return { 1, ARGV[1], ARGV[2], ARGV[3], ARGV[4] }
end
return { 1, partitions, have[2], have[3], have[4] }
