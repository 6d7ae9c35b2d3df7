-- Append records and store positions, if all of the partitions are still one's own; else nothing.
--
-- KEYS  of each partition whose position is stored: the group's hash in it, and its stream; then the
--       streams that records go to.
-- ARGV  owner, lease (ms), group, records in MessagePack, how many positions; then of each position:
--       epoch, version, position, progress, entries read.
--       A record is a list: which of the streams it goes to, from 1, and its fields' names and
--       values in turn.
-- Returns what became of each position, 1: stored; 3: stored, but the stream may be another one than
--         the entries were counted in. Or, where nothing was stored, 0 and which position, from 1,
--         is of a partition that is not one's own (any more).
--
-- A script that fails midway keeps what it has written, so all that can fail comes first; and a
-- server that refuses writes (OOM, MISCONF, READONLY) refuses the first of a script.

local owner, lease_ms, group, count = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[5])
local streams = 2 * count  -- the keys before them

local have = {}
for n = 1, count do
  local at = 1 + 5 * n
  have[n] = call('HMGET', KEYS[2 * n - 1], 'owner', 'epoch', 'version', 'position', 'beat')
  local version, position = number(have[n][3], 0), have[n][4]
  if have[n][1] ~= owner or have[n][2] ~= ARGV[at]
    or tonumber(ARGV[at + 1]) <= version
    or (is_id(position) and compare(ARGV[at + 2], position) < 0)
  then
    return { 0, n }
  end
end
for n = streams + 1, #KEYS do call('XLEN', KEYS[n]) end

for _, record in ipairs(cmsgpack.unpack(ARGV[4])) do
  local stream = table.remove(record, 1)
  call('XADD', KEYS[streams + stream], '*', unpack(record))
end

local stored = {}
local until_ = string.format('%.0f', clock() + lease_ms)
for n = 1, count do
  local at, hash = 1 + 5 * n, KEYS[2 * n - 1]
  local position, read = ARGV[at + 2], ARGV[at + 4]
  call('HSET', hash, 'version', ARGV[at + 1], 'position', position, 'progress', ARGV[at + 3],
    'read', read, 'beat', number(have[n][5], 0) + 1, 'until', until_)
  -- At the first commit of all there is no native group yet.
  local first = not have[n][4]
  local is_other = show_native_group(KEYS[2 * n], group, position, read, first)
  stored[n] = is_other and not first and 3 or 1
end
return stored
