-- Remove a group from a partition.
--
-- KEYS  the group's hash in the partition, stream.
-- ARGV  group.
-- Returns 1, or 0 where somebody owns it.

local have = call('HMGET', KEYS[1], 'owner', 'until')
if have[1] and have[1] ~= '' and tonumber(have[2]) > clock() then return 0 end
call('DEL', KEYS[1])
if groups_of(KEYS[2])[ARGV[1]] then call('XGROUP', 'DESTROY', KEYS[2], ARGV[1]) end
return 1
