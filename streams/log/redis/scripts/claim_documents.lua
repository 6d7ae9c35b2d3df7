-- Become the writer of a partition of documents; whoever was is fenced.
--
-- KEYS  the partition's checkpoint.
-- ARGV  the new writer.
-- Returns {position or false, data or false}, or 0 where there is no such partition.

local have = call('HMGET', KEYS[1], 'writer', 'position', 'data')
if not have[1] then return 0 end
call('HSET', KEYS[1], 'writer', ARGV[1], 'writes', 0)
return { have[2], have[3] }
