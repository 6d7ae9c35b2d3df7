-- Set a lease free, if it is one's own.
--
-- KEYS  the group's hash in the partition.
-- ARGV  owner, epoch.

local have = call('HMGET', KEYS[1], 'owner', 'epoch')
if have[1] ~= ARGV[1] or have[2] ~= ARGV[2] then return 0 end
call('HSET', KEYS[1], 'owner', '', 'until', 0)
return 1
