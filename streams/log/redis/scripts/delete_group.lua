-- Delete a group's hash and its native group in a partition.
--
-- KEYS  the group's hash in the partition, stream.
-- ARGV  group.
-- Returns 1, or 0 where somebody owns it.

local have = call('HMGET', KEYS[1], 'owner', 'until', 'lease')
if is_running(have[1], have[2], have[3]) then return 0 end
call('DEL', KEYS[1])
if native_groups(KEYS[2])[ARGV[1]] then call('XGROUP', 'DESTROY', KEYS[2], ARGV[1]) end
return 1
