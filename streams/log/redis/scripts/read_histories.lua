-- Read parts of histories, all as of one moment (streams.log.events).
--
-- KEYS  stream, the refusals, the keys whose history ends with one, the causes; then, for each
--       request, its history and the hash of its kind of snapshots.
-- ARGV  for each request: key, version and ID that are known, how many events at most, cause or
--       empty.
-- Returns for each request {version, last ID, 1 if final, 1 if truncated, cause or '', snapshot or
--       '', entries}.

local stream, refusals, refused, causes = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local answers = {}
local has_refused = call('EXISTS', refused) == 1

-- While a script runs, the server does nothing else. So once it has read about as many entries as one
-- request may ask for, it answers each of the other requests with a few, and the client asks again.
local budget, LEAST = 1000, 16

local function read(history, snapshots, at, number_of)
  local key, known, known_id = ARGV[at], tonumber(ARGV[at + 1]), ARGV[at + 2]
  local limit, cause = tonumber(ARGV[at + 3]), ARGV[at + 4]
  local version = call('LLEN', history)
  local last_id, is_final = last_record(stream, history, has_refused and refused, key)
  local caused = cause ~= '' and call('HGET', causes, member(key, cause)) or ''
  local is_end = version == known and last_id == known_id
  if not is_end and not has_base(stream, history, refusals, key, known, known_id) then
    return { version, last_id, is_final and 1 or 0, 1, caused, '', {} }
  end
  local snapshot, start = call('HGET', snapshots, key) or '', known
  if snapshot ~= '' then
    local made_of, made_of_id = snapshot_base(snapshot)
    local is_ahead = made_of > known and made_of <= version
    if is_ahead and has_base(stream, history, refusals, key, made_of, made_of_id) then
      start = made_of
    else
      snapshot = ''
    end
  end
  local entries = {}
  if number_of > 1 then limit = math.min(limit, math.max(LEAST, budget)) end
  if version > start then
    for place, entry in ipairs(call('LRANGE', history, start, start + limit - 1)) do
      entries[place] = call('XRANGE', stream, entry, entry)[1] or entry
    end
    budget = budget - #entries
  end
  return { version, last_id, is_final and 1 or 0, 0, caused, snapshot, entries }
end

local requests = (#KEYS - 4) / 2
for request = 1, requests do
  answers[request] = read(KEYS[3 + 2 * request], KEYS[4 + 2 * request], 5 * request - 4, request)
end
return answers
