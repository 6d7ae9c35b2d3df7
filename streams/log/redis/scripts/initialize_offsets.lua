-- Set a new group's position in a partition, unless it has one there.
--
-- KEYS  the group's hash in the partition, stream.
-- ARGV  group, position, entries read.

if call('HEXISTS', KEYS[1], 'position') == 1 then return 0 end
call('HSET', KEYS[1], 'position', ARGV[2], 'progress', '', 'read', ARGV[3])
show_native_group(KEYS[2], ARGV[1], ARGV[2], ARGV[3], true)
return 1
