-- Take a partition's lease, if it is free, one's own, a predecessor's of the same name, or stands as
-- it stood when its length was over on one's own clock.
--
-- KEYS  the group's hash in the partition, stream.
-- ARGV  owner, lease (ms), group, window, then what to begin with where nothing is stored:
--       position (empty: nothing), progress, entries read; the epoch to go beyond; the
--       predecessor (empty: none); how it stood: owner, epoch, beat, until (empty: it is not over).
-- Returns {0}, or {1, epoch, position, progress, entries read, entries added, length, first entry,
--         last ID, greatest ID deleted, the position that was stored and is beyond the end (else
--         empty)}, or {-1, position}: what is stored there is no place.

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

local now_there, beyond = facts(stream), ''
if position ~= '' then
  local native = groups_of(stream)[group]
  if compare(position, after(now_there.last)) > 0 then
    -- The stream ends below the group's place. With the native group still in it, a failover has
    -- lost the stream's tail: what comes next is new. Without, it is another stream: all is new.
    -- A native group that stands within the stream knows better than a place that cannot be.
    beyond = position
    position = native and after(native['last-delivered-id']) or '0-0'
    if compare(position, after(now_there.last)) > 0 then position = after(now_there.last) end
    progress, read = '', ''
    show(stream, group, position, '')
  elseif not native then
    show(stream, group, position, '')
    read = ''
  end
  call('HSET', lease, 'position', position, 'progress', progress, 'read', read)
end
call('HSET', lease, 'owner', me, 'epoch', epoch, 'beat', 0, 'lease', ARGV[2],
  'until', string.format('%.0f', clock() + ARGV[2]), 'window', ARGV[4], 'version', 0)
return { 1, epoch, position, progress, read, now_there.added, now_there.length, now_there.first,
  now_there.last, now_there.deleted, beyond }
