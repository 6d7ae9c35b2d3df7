-- Documents in the order of their keys.
--
-- KEYS  the partition's checkpoint, values, failures, the keys to go through.
-- ARGV  least and greatest key as ZRANGE takes them with BYLEX, how many at most (below 5,000).
-- Returns {keys, values, failures}, each value and failure false where there is none; or 0 where
-- there is no such partition.

if call('HEXISTS', KEYS[1], 'writer') == 0 then return 0 end
local keys = call('ZRANGE', KEYS[4], ARGV[1], ARGV[2], 'BYLEX', 'LIMIT', 0, ARGV[3])
if #keys == 0 then return { keys, {}, {} } end
return { keys, call('HMGET', KEYS[2], unpack(keys)), call('HMGET', KEYS[3], unpack(keys)) }
