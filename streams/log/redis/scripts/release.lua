-- Set a lease free, if its owner is the one that is named.
--
-- KEYS  the group's hash in the partition.
-- ARGV  owner, epoch (empty: whatever it is, as that owner has ended).
-- Returns 1, or 0 where it is somebody else's.

local have = call('HMGET', KEYS[1], 'owner', 'epoch')
if have[1] ~= ARGV[1] or (ARGV[2] ~= '' and have[2] ~= ARGV[2]) then return 0 end
call('HSET', KEYS[1], 'owner', '', 'until', 0)
return 1
