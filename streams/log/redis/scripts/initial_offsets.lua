-- Where a new group begins in a topic, decided once for all its partitions.
--
-- KEYS  the group's topics.
-- ARGV  topic, the positions.
-- Returns 1, or 0 where that was decided before.

local have = call('HGET', KEYS[1], ARGV[1])
if have and have ~= '' then return 0 end
call('HSET', KEYS[1], ARGV[1], ARGV[2])
return 1
