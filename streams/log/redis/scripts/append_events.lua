-- Append to histories, each append under its own condition (streams.log.events).
--
-- KEYS  stream, the refusals, the keys whose history ends with one, the causes, the index of keys;
--       then the history of each append: a list of entry IDs, one for each event.
-- ARGV  for each append: key, base version, base ID, 1 if it is a refusal, cause or empty, number of
--       records, the first one's ID; for each record: number of names and values, and these in turn.
-- Returns for each append {1, entry ID, ...}, or {0, reason, version, last ID, 1 if final}.

local stream, refusals, refused, causes, index = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local has_refused = call('EXISTS', refused) == 1

local function append(history, at)
  local key, base_version, base_id = ARGV[at], tonumber(ARGV[at + 1]), ARGV[at + 2]
  local is_refusal, cause, count = ARGV[at + 3] == '1', ARGV[at + 4], tonumber(ARGV[at + 5])
  local first_id = ARGV[at + 6]
  at = at + 7
  local records = {}
  for record = 1, count do
    local width = tonumber(ARGV[at])
    records[record] = { at + 1, at + width }
    at = at + width + 1
  end

  local version = call('LLEN', history)
  local last_id, is_final = last_record(stream, history, has_refused and refused, key)
  if version ~= base_version or last_id ~= base_id then
    if is_refusal then
      local found = call('HGET', refusals, member(key, first_id))
      if found then return { 1, string.match(found, ' (.*)$') }, at end
    elseif event_id(stream, history, base_version + 1) == first_id then
      local entries = call('LRANGE', history, base_version, base_version + count - 1)
      table.insert(entries, 1, 1)
      return entries, at
    end
    local reason = is_final and 'final' or 'conflict'
    if not has_base(stream, history, refusals, key, base_version, base_id) then
      reason = 'truncated'
    end
    return { 0, reason, version, last_id, is_final and 1 or 0 }, at
  end
  if is_final then return { 0, 'final', version, last_id, 1 }, at end

  local entries = { 1 }
  for record, range in ipairs(records) do
    entries[record + 1] = call('XADD', stream, '*', unpack(ARGV, range[1], range[2]))
  end
  if version == 0 then call('ZADD', index, 0, key) end
  if is_refusal then
    call('HSET', refusals, member(key, first_id), version .. ' ' .. entries[2])
    call('HSET', refused, key, first_id)
    has_refused = true
  else
    for first = 2, count + 1, 5000 do  -- Lua's stack takes 8,000 values at once
      call('RPUSH', history, unpack(entries, first, math.min(first + 4999, count + 1)))
    end
    if has_refused and last_id ~= '' then call('HDEL', refused, key) end
  end
  if cause ~= '' then
    local events = is_refusal and 0 or count
    call('HSETNX', causes, member(key, cause), (version + 1) .. ' ' .. events)
  end
  return entries, at
end

local outcomes, at = {}, 1
for number = 6, #KEYS do
  outcomes[number - 5], at = append(KEYS[number], at)
end
return outcomes
