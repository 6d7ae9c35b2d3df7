-- Set a lease free whose owner has ended.
--
-- KEYS  the group's hash in the partition.
-- ARGV  owner.
-- Returns 1, or 0 where it is somebody else's.

if call('HGET', KEYS[1], 'owner') ~= ARGV[1] then return 0 end
call('HSET', KEYS[1], 'owner', '', 'until', 0)
return 1
