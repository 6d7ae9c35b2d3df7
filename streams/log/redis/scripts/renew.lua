-- Extend one's own leases, and say who has the others.
--
-- KEYS  for each partition: the group's hash in it, stream.
-- ARGV  owner, lease (ms), group, 1 to inspect the streams (which copies their first and last
--       entries), then for each partition: one's own epoch (0: somebody else's),
--       the last entry ID one has read, and the entries read below the group's position where they
--       were counted anew (else empty).
-- Returns for each partition: {state, owner, epoch, beat, until, lease, entries added, length,
--         first entry, last ID, greatest ID deleted}; from the seventh on only where the stream was
--         inspected.
--         State 1: one's own and confirmed; 2: one's own, but the stream ends below what was read
--         of it; 3: one's own, and the stream may be another one; 0: not one's own.

local me, term, group = ARGV[1], ARGV[2], ARGV[3]
local shown = string.format('%.0f', clock() + term)
local found = {}
for pair = 1, #KEYS / 2 do
  local lease, stream = KEYS[2 * pair - 1], KEYS[2 * pair]
  local epoch, seen, read = ARGV[3 * pair + 2], ARGV[3 * pair + 3], ARGV[3 * pair + 4]
  local have = call('HMGET', lease, 'owner', 'epoch', 'beat', 'until', 'lease', 'position')
  local owner, position = have[1] or '', is_id(have[6]) and have[6]
  if epoch ~= '0' and owner == me and have[2] == epoch then
    call('HSET', lease, 'beat', number(have[3], 0) + 1, 'until', shown)
    local row = { 1, owner, have[2], '', '', '' }
    local last = seen
    if ARGV[4] == '1' then
      local info = stream_info(stream)
      last = info.last
      row[7], row[8], row[9] = info.added, info.length, info.first
      row[10], row[11] = info.last, info.deleted
    end
    if compare(seen, last) > 0 then
      row[1] = 2
    elseif position and not native_groups(stream)[group] then
      if ARGV[4] == '1' then show_native_group(stream, group, position, '') end
      if call('EXISTS', stream) == 1 then row[1] = 3 end
    elseif position and read ~= '' then
      call('HSET', lease, 'read', read)
      show_native_group(stream, group, position, read)
    end
    found[pair] = row
  else
    found[pair] = { 0, owner, have[2] or '', have[3] or '', have[4] or '', have[5] or '' }
  end
end
return found
