-- Set a group's position in a partition; its owner, if any, loses the partition.
--
-- KEYS  the group's hash in the partition, stream.
-- ARGV  group, 1 to do so even if it is owned, position, progress, entries read.
-- Returns 1, or 0 where somebody owns it.

local have = call('HMGET', KEYS[1], 'owner', 'epoch', 'until', 'lease')
if ARGV[2] ~= '1' and is_running(have[1], have[3], have[4]) then return 0 end
call('HSET', KEYS[1], 'owner', '', 'epoch', number(have[2], 0) + 1, 'until', 0, 'version', 0,
  'position', ARGV[3], 'progress', ARGV[4], 'read', ARGV[5])
show_native_group(KEYS[2], ARGV[1], ARGV[3], ARGV[5], true)
return 1
