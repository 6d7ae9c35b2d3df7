-- Keep snapshots (streams.log.events), each if it is of a version that its history has, and none
-- that is newer and of that history is kept.
--
-- KEYS  stream, the refusals, the hash of this kind of snapshots; then the history of each.
-- ARGV  for each snapshot: key, version, ID, and the rest of what is kept.

local stream, refusals, snapshots = KEYS[1], KEYS[2], KEYS[3]

for number_of = 4, #KEYS do
  local at = 4 * (number_of - 4) + 1
  local key, version, id = ARGV[at], tonumber(ARGV[at + 1]), ARGV[at + 2]
  local history = KEYS[number_of]
  local kept, kept_id = snapshot_base(call('HGET', snapshots, key) or '')
  local is_older = version < kept and has_base(stream, history, refusals, key, kept, kept_id)
  if version > 0 and not is_older and has_base(stream, history, refusals, key, version, id) then
    call('HSET', snapshots, key, version .. ' ' .. id .. ' ' .. ARGV[at + 3])
  end
end
return #KEYS - 3
