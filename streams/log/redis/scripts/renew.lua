-- Extend one's leases, and see who has the others.
--
-- KEYS  for each partition: the group's hash in it, stream.
-- ARGV  owner, lease (ms), group, then for each partition: one's own epoch (0: somebody else's),
--       the last entry ID one has read, and the entries read below the group's position where they
--       were counted anew (else empty).
-- Returns for each partition: {state, owner, epoch, ms left, entries added, length, first entry,
--         last ID, greatest ID deleted}; the facts of the stream only for one's own. State 1: one's
--         own and extended; 2: one's own, but the stream ends below what was read of it; 0: not.

local me, term, group = ARGV[1], ARGV[2], ARGV[3]
local now = clock()
local found = {}
for pair = 1, #KEYS / 2 do
  local lease, stream = KEYS[2 * pair - 1], KEYS[2 * pair]
  local epoch, seen, read = ARGV[3 * pair + 1], ARGV[3 * pair + 2], ARGV[3 * pair + 3]
  local have = call('HMGET', lease, 'owner', 'epoch', 'until', 'position')
  local owner, left = have[1] or '', tonumber(have[3] or 0) - now
  if epoch ~= '0' and owner == me and have[2] == epoch then
    call('HSET', lease, 'until', string.format('%.0f', now + term))
    local there = facts(stream)
    local state = 1
    if compare(seen, there.last) > 0 then
      state = 2
    elseif have[4] and not groups_of(stream)[group] then
      show(stream, group, have[4], '')
      state = 3
    elseif have[4] and read ~= '' then
      call('HSET', lease, 'read', read)
      show(stream, group, have[4], read)
    end
    found[pair] = { state, owner, have[2], term + 0, there.added, there.length, there.first,
      there.last, there.deleted }
  else
    found[pair] = { 0, owner, have[2] or '0', left }
  end
end
return found
