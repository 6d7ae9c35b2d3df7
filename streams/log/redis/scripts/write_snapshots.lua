-- Keep snapshots (streams.log.events), each if it is of a version that its history has, and none
-- that is newer is kept.
--
-- KEYS  stream, the refusals, the hash of this kind of snapshots; then the history of each.
-- ARGV  for each snapshot: key, version, ID, and the rest of what is kept.

local stream, refusals, snapshots = KEYS[1], KEYS[2], KEYS[3]

for number_of = 4, #KEYS do
  local at = 4 * (number_of - 4) + 1
  local key, version, id = ARGV[at], tonumber(ARGV[at + 1]), ARGV[at + 2]
  local kept = call('HGET', snapshots, key) or ''
  if version >= number(string.match(kept, '^(%d+) '), 0)
    and version > 0 and has_base(stream, KEYS[number_of], refusals, key, version, id) then
    call('HSET', snapshots, key, version .. ' ' .. id .. ' ' .. ARGV[at + 3])
  end
end
return #KEYS - 3
