-- Take a partition's lease, if it is free, one's own, a predecessor's of the same name, or still as it
-- was when it expired by one's own clock.
--
-- KEYS  the group's hash in the partition, stream.
-- ARGV  owner, lease (ms), group, window, then where to begin if no position is stored:
--       position (empty: nothing), progress, entries read; the epoch to go beyond; the
--       predecessor (empty: none); the lease that expired: owner, epoch, beat, until (else empty).
-- Returns {0}, or {1, epoch, position, progress, entries read, entries added, length, first entry,
--         last ID, greatest ID deleted, the position that was stored and is beyond the end (else
--         empty)}, or {-1, position}: what is stored there is no position.

local lease, stream = KEYS[1], KEYS[2]
local me, group = ARGV[1], ARGV[3]
local have = call('HMGET', lease, 'owner', 'epoch', 'beat', 'until', 'position', 'progress', 'read')
local owner = have[1] or ''
if owner ~= '' and owner ~= me and owner ~= ARGV[9] then
  for i = 1, 4 do
    if (have[i] or '') ~= ARGV[9 + i] then return { 0 } end
  end
end

local epoch = math.max(number(have[2], 0), tonumber(ARGV[8])) + 1
local position, progress = have[5], have[6] or ''
local read = number(have[7])
read = read and string.format('%.0f', read) or ''
if position and not is_id(position) then return { -1, position } end
if not position then position, progress, read = ARGV[5], ARGV[6], ARGV[7] end

local info, beyond = stream_info(stream), ''
if position ~= '' then
  local native = native_groups(stream)[group]
  if compare(position, after(info.last)) > 0 then
    -- The stream ends below the group's position. If the native group is still there, a failover has
    -- lost the stream's tail, and what comes next is new. If not, it is another stream, and all of it
    -- is new. A native group's position within the stream is better than one beyond its end.
    beyond = position
    position = native and after(native['last-delivered-id']) or '0-0'
    if compare(position, after(info.last)) > 0 then position = after(info.last) end
    progress, read = '', ''
    show_native_group(stream, group, position, '')
  elseif not native then
    show_native_group(stream, group, position, '')
    read = ''
  end
  call('HSET', lease, 'position', position, 'progress', progress, 'read', read)
end
call('HSET', lease, 'owner', me, 'epoch', epoch, 'beat', 0, 'lease', ARGV[2],
  'until', string.format('%.0f', clock() + ARGV[2]), 'window', ARGV[4], 'version', 0)
return { 1, epoch, position, progress, read, info.added, info.length, info.first,
  info.last, info.deleted, beyond }
