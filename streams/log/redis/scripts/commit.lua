-- Store a position, if the partition is still the member's own. That also confirms the lease, even if
-- a newer position is stored already.
--
-- KEYS  the group's hash in the partition, stream.
-- ARGV  owner, epoch, lease (ms), group, version, position, progress, entries read, the greatest
--       version that the owner ever sent.
-- Returns 1: stored; 0: it is not one's own (any more); 2: something newer is stored; 3: stored,
--         but the stream may be another one than the entries were counted in.

local lease, stream = KEYS[1], KEYS[2]
local have = call('HMGET', lease, 'owner', 'epoch', 'version', 'position', 'beat')
if have[1] ~= ARGV[1] or have[2] ~= ARGV[2] then return 0 end
local version, beat = number(have[3], 0), number(have[5], 0) + 1
local until_ = string.format('%.0f', clock() + ARGV[3])
local is_known = tonumber(ARGV[5]) <= version and version <= tonumber(ARGV[9])
if is_known or (is_id(have[4]) and compare(ARGV[6], have[4]) < 0) then
  call('HSET', lease, 'beat', beat, 'until', until_)
  return 2
end
call('HSET', lease, 'version', ARGV[5], 'position', ARGV[6], 'progress', ARGV[7], 'read', ARGV[8],
  'beat', beat, 'until', until_)
-- At the first commit of all there is no native group yet.
local first = not have[4]
return show_native_group(stream, ARGV[4], ARGV[6], ARGV[8], first) and not first and 3 or 1
