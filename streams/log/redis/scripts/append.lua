-- Append records, each identity (message ID, with source, redrive count and first position if any) once.
--
-- KEYS  stream, and three hashes of identity to entry ID, used in rotation: the current one, the
--       one before, and the one to be deleted.
-- ARGV  rotation (ms), then runs of records with the same fields: number of records, of fields, which
--       value is the identity (from 0; it may follow the fields'), the fields' names, the
--       values record by record.
-- Returns the entry IDs in order; where the ID was known, the one it got then.
--
-- Nothing is written before the first record is certain to be accepted: a server that refuses
-- writes (OOM, MISCONF, READONLY) refuses the first of a script, and no later one.

local stream, rotation = KEYS[1], tonumber(ARGV[1])
local round = math.floor(clock() / rotation)
local current, previous = KEYS[2 + round % 3], KEYS[2 + (round - 1) % 3]
local mark = string.format('%.0f', round)

local total = #ARGV
local ids, runs = {}, {}
local at = 2
while at <= total do
  local count, width, identity = tonumber(ARGV[at]), tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  local names = at + 2
  local stride = math.max(width, identity + 1)
  at = names + width + 1
  runs[#runs + 1] = { count, width, names, at, stride }
  for _ = 1, count do
    ids[#ids + 1] = ARGV[at + identity]
    at = at + stride
  end
end

-- Field '' of a hash says which round it is of; an identity is never empty.
local known, older
if call('HGET', current, '') == mark then known = call('HMGET', current, unpack(ids)) end
if call('HGET', previous, '') == string.format('%.0f', round - 1) then
  older = call('HMGET', previous, unpack(ids))
end

local last
-- A remembered entry beyond the stream's end was in another stream of this name, deleted since.
local function exists(entry)
  last = last or stream_info(stream).last
  return compare(entry, last) <= 0
end

local entries, new = {}, {}
local n, m = 0, 0
for _, run in ipairs(runs) do
  local count, width, names, from, stride = run[1], run[2], run[3], run[4], run[5]
  local fields = {}
  for f = 1, width do fields[2 * f - 1] = ARGV[names + f] end
  for _ = 1, count do
    n = n + 1
    local entry = (known and known[n]) or (older and older[n])
    if not entry or not is_id(entry) or not exists(entry) then
      for f = 0, width - 1 do fields[2 * f + 2] = ARGV[from + f] end
      entry = call('XADD', stream, '*', unpack(fields))
      new[m + 1], new[m + 2] = ids[n], entry
      m = m + 2
    end
    entries[n] = entry
    from = from + stride
  end
end

-- A hash stays one round longer than it is used: as long as there are writers, they delete it
-- without blocking; the server's own expiry may block for a hash of a million IDs.
local function keep(hash, of)
  call('PEXPIREAT', hash, string.format('%.0f', (of + 3) * rotation))
end

if m > 0 then
  if not known then
    call('UNLINK', current, KEYS[2 + (round - 2) % 3])
    call('HSET', current, '', mark)
    keep(current, round)
  end
  call('HSET', current, unpack(new))
elseif known then
  -- WAIT waits for the last write of its own connection, so there must be one, though nothing is new.
  keep(current, round)
else
  keep(previous, round - 1)
end
return entries
