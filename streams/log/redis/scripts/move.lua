-- Set a group's place in a partition; its owner, if any, loses the partition.
--
-- KEYS  the group's hash in the partition, stream.
-- ARGV  group, 1 to do so even while it is owned, position, progress, entries read.
-- Returns 1, or 0 where somebody owns it.

local have = call('HMGET', KEYS[1], 'owner', 'epoch', 'until')
if ARGV[2] ~= '1' and have[1] and have[1] ~= '' and tonumber(have[3]) > clock() then return 0 end
call('HSET', KEYS[1], 'owner', '', 'epoch', tonumber(have[2] or 0) + 1, 'until', 0, 'version', 0,
  'position', ARGV[3], 'progress', ARGV[4], 'read', ARGV[5])
show(KEYS[2], ARGV[1], ARGV[3], ARGV[5], true)
return 1
