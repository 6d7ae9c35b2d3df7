-- Append to histories, each append under its own condition (streams.log.events).
--
-- KEYS  stream, the refusals, the keys whose history ends with one, the causes, the index of keys;
--       then the history of each append: a list of entry IDs, one for each event.
-- ARGV  for each append: key, base version, base ID, 1 if it is a refusal, cause or empty, number of
--       records, the first one's ID; for each record: number of names and values, and these in turn.
-- Returns for each append {1, entry ID, ...}, {0, reason, version, last ID, 1 if final}, or
-- {2, what is wrong with its history}.
--
-- A script that fails midway keeps what it has written, so all that can fail comes first: the keys
-- that appends share are of the right types, or nothing is written at all; and what an append reads
-- of its own history can be read, or this append alone fails.

local stream, refusals, refused, causes, index = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
call('XLEN', stream)
call('HLEN', refusals)
call('HLEN', causes)
call('ZCARD', index)
local has_refused = call('HLEN', refused) > 0

-- What stands in ARGV from `at`, and where the next append begins.
local function parse(at)
  local count = tonumber(ARGV[at + 5])
  local append = {
    key = ARGV[at], base_version = tonumber(ARGV[at + 1]), base_id = ARGV[at + 2],
    is_refusal = ARGV[at + 3] == '1', cause = ARGV[at + 4], count = count,
    first_id = ARGV[at + 6], records = {},
  }
  at = at + 7
  for record = 1, count do
    local width = tonumber(ARGV[at])
    append.records[record] = { at + 1, at + width }
    at = at + width + 1
  end
  return append, at
end

-- The answer for an append that was written before.
local function repeated(entries, count)
  for place = 1, count do
    if not is_id(entries[place]) then error('what was appended before cannot be found') end
  end
  table.insert(entries, 1, 1)
  return entries
end

-- The answer for an append that is not to be written; nil, and the history's version, for another.
local function judge(history, append)
  local key, base_version, base_id = append.key, append.base_version, append.base_id
  local version = call('LLEN', history)
  local last_id, is_final = last_record(stream, history, has_refused and refused, key)
  if version ~= base_version or last_id ~= base_id then
    if append.is_refusal then
      local found = call('HGET', refusals, member(key, append.first_id))
      if found then return repeated({ string.match(found, ' (.*)$') }, 1) end
    elseif event_id(stream, history, base_version + 1) == append.first_id then
      local last = base_version + append.count - 1
      return repeated(call('LRANGE', history, base_version, last), append.count)
    end
    local reason = is_final and 'final' or 'conflict'
    if not has_base(stream, history, refusals, key, base_version, base_id) then
      reason = 'truncated'
    end
    return { 0, reason, version, last_id, is_final and 1 or 0 }
  end
  if is_final then return { 0, 'final', version, last_id, 1 } end
  return nil, version
end

local function write(history, append, version)
  local key, count, entries = append.key, append.count, { 1 }
  for record, range in ipairs(append.records) do
    entries[record + 1] = call('XADD', stream, '*', unpack(ARGV, range[1], range[2]))
  end
  if version == 0 then call('ZADD', index, 0, key) end
  if append.is_refusal then
    call('HSET', refusals, member(key, append.first_id), version .. ' ' .. entries[2])
    call('HSET', refused, key, append.first_id)
    has_refused = true
  else
    for first = 2, count + 1, 5000 do  -- Lua's stack takes 8,000 values at once
      call('RPUSH', history, unpack(entries, first, math.min(first + 4999, count + 1)))
    end
    if has_refused and append.base_id ~= '' then call('HDEL', refused, key) end
  end
  if append.cause ~= '' then
    local events = append.is_refusal and 0 or count
    call('HSETNX', causes, member(key, append.cause), (version + 1) .. ' ' .. events)
  end
  return entries
end

local outcomes, at, has_written, is_repeated = {}, 1, false, false
for number = 6, #KEYS do
  local history, append, outcome = KEYS[number], nil, nil
  append, at = parse(at)
  local could_read, answer, version = pcall(judge, history, append)
  if not could_read then
    outcome = { 2, type(answer) == 'table' and answer.err or tostring(answer) }
  else
    if answer then
      is_repeated = is_repeated or answer[1] == 1
    else
      has_written = true
    end
    outcome = answer or write(history, append, version)
  end
  outcomes[number - 5] = outcome
end
if is_repeated and not has_written then
  -- WAIT waits for the last write of its own connection, so there must be one, though nothing is new.
  local info = call('XINFO', 'STREAM', stream)
  for at = 1, #info, 2 do
    if info[at] == 'last-generated-id' then call('XSETID', stream, info[at + 1]) end
  end
end
return outcomes
