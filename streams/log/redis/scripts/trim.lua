-- Drop old entries that every group has settled, a bounded number at once.
--
-- KEYS  stream, then the hashes of our groups in the partition.
-- ARGV  oldest entry ID to keep by age (empty: no bound), how many to keep (empty: no bound), most
--       entries whatever is settled (empty: no bound), how many to drop at most, then for each
--       hash its group's name.
-- Returns {dropped, dropped though a group had not settled them}.
--
-- How many may be dropped is counted, so that no payload is read: a group has `read` entries below
-- its position, of which `added - length` are gone already, and its dedup window stays. Groups of
-- other clients keep everything from their oldest pending entry on.

local stream = KEYS[1]
local info = stream_info(stream)
if info.length == 0 then return { 0, 0 } end
local removed = info.added - info.length
local limit = tonumber(ARGV[4])
local most, below = info.length, after(info.last)

local native = native_groups(stream)
local windows = {}
for i = 2, #KEYS do
  local name = ARGV[3 + i]
  local have = call('HMGET', KEYS[i], 'window', 'position')
  windows[name] = number(have[1], have[2] and 0)
  if have[1] and not number(have[1]) then windows[name] = 10000 end  -- damaged: the usual one
  -- It has no native group yet: how much it has read is not known.
  if have[2] and not native[name] then most = 0 end
end
for name, group in pairs(native) do
  local position = after(group['last-delivered-id'])
  if group['pending'] > 0 then
    local oldest = call('XPENDING', stream, name)[2]
    if compare(oldest, position) < 0 then position = oldest end
  end
  if compare(position, below) < 0 then below = position end
  if windows[name] then
    local read = group['entries-read']
    local may = read and read - removed - windows[name] or 0
    if may < most then most = may end
  end
end

local function drop(keep_from, count)
  if compare(below, keep_from) < 0 then keep_from = below end
  count = math.min(count, limit, most)
  if count <= 0 then return 0 end
  local gone = call('XTRIM', stream, 'MINID', '~', keep_from, 'LIMIT', count)
  limit, most = limit - gone, most - gone
  return gone
end

local settled, forced = 0, 0
if ARGV[1] ~= '' then settled = drop(ARGV[1], most) end
if ARGV[2] ~= '' then settled = settled + drop(below, info.length - settled - ARGV[2]) end
if ARGV[3] ~= '' and info.length - settled > tonumber(ARGV[3]) and limit > 0 then
  forced = call('XTRIM', stream, 'MAXLEN', '~', ARGV[3], 'LIMIT', limit)
end
return { settled, forced }
