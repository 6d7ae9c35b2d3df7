-- What every script begins with.

local call = redis.call

-- The server's clock, in milliseconds. It can be set, so it decides about no lease.
local function clock()
  local now = call('TIME')
  return now[1] * 1000 + math.floor(now[2] / 1000)
end

-- A stored number that a Lua number holds exactly; `otherwise` for anything else, as anybody can
-- write into these keys.
local function number(text, otherwise)
  if type(text) == 'string' and #text <= 15 and string.match(text, '^%d+$') then
    return tonumber(text)
  end
  return otherwise
end

-- Whether a lease seems to be held: for refusing a change, and for people.
local function is_running(owner, until_, term)
  local left = number(until_, 0) - clock()
  return owner and owner ~= '' and left > 0 and left <= number(term, 3600000)
end

-- Entry IDs are two 64-bit numbers, more than a Lua number holds: they stay decimal strings.

local LAST = '18446744073709551615'

local function split(id)
  return string.match(id, '^(%d+)%-(%d+)$')
end

-- Whether a text is an entry ID.
local function is_id(text)
  local high, low = split(text or '')
  local function fits(digits)
    return (digits == '0' or string.sub(digits, 1, 1) ~= '0')
      and (#digits < 20 or (#digits == 20 and digits <= LAST))
  end
  return high ~= nil and fits(high) and fits(low)
end

local function order(a, b)
  if #a ~= #b then return #a < #b and -1 or 1 end
  if a == b then return 0 end
  return a < b and -1 or 1
end

-- -1, 0 or 1: whether one entry ID is less than, equal to or greater than another.
local function compare(a, b)
  local high, low = split(a)
  local other_high, other_low = split(b)
  local first = order(high, other_high)
  return first ~= 0 and first or order(low, other_low)
end

-- A decimal string plus or minus one.
local function step(digits, by)
  if #digits < 16 then return string.format('%.0f', digits + by) end
  local over, under = by == 1 and '9' or '0', by == 1 and '0' or '9'
  local at = #digits
  while at > 0 and string.sub(digits, at, at) == over do at = at - 1 end
  if at == 0 then return '1' .. string.rep(under, #digits) end
  local digit = string.char(string.byte(digits, at) + by)
  if at == 1 and digit == '0' then digit = '' end
  return string.sub(digits, 1, at - 1) .. digit .. string.rep(under, #digits - at)
end

-- The next possible entry ID, and the one before.
local function after(id)
  local high, low = split(id)
  if low == LAST then return step(high, 1) .. '-0' end
  return high .. '-' .. step(low, 1)
end

local function before(id)
  local high, low = split(id)
  if low ~= '0' then return high .. '-' .. step(low, -1) end
  if high ~= '0' then return step(high, -1) .. '-' .. LAST end
  return id
end

-- A reply of alternating names and values, as a table.
local function to_table(reply)
  local found = {}
  for i = 1, #reply, 2 do found[reply[i]] = reply[i + 1] end
  return found
end

-- What the server knows of a stream; one that does not exist yet is an empty one.
local function stream_info(stream)
  if call('EXISTS', stream) == 0 then
    return { added = 0, length = 0, first = '0-0', last = '0-0', deleted = '0-0', exists = false }
  end
  local info = to_table(call('XINFO', 'STREAM', stream))
  return {
    added = info['entries-added'],
    length = info['length'],
    first = info['recorded-first-entry-id'],
    last = info['last-generated-id'],
    deleted = info['max-deleted-entry-id'],
    exists = true,
  }
end

-- The native groups of a stream, by name.
local function native_groups(stream)
  local found = {}
  if call('EXISTS', stream) == 1 then
    for _, reply in ipairs(call('XINFO', 'GROUPS', stream)) do
      local group = to_table(reply)
      found[group['name']] = group
    end
  end
  return found
end

-- Set the native group to our group's position, so that Redis's own tools show the truth. `read` is
-- the number of entries ever added below the position, empty where that is not known. Returns true
-- where there was no native group: then the stream may be another one than was counted, so `read`
-- counts only if it is `certain`. A stream that does not exist is not created: somebody may have
-- deleted it.
local function show_native_group(stream, group, position, read, certain)
  local args = { 'SETID', stream, group, before(position) }
  if read ~= '' then
    args[5], args[6] = 'ENTRIESREAD', read
  end
  local reply = redis.pcall('XGROUP', unpack(args))
  if type(reply) ~= 'table' or not reply['err'] then return false end
  -- Nor is a group created above the end of a stream: that is another stream, to be read anew.
  local info = stream_info(stream)
  if not info.exists or compare(position, after(info.last)) > 0 then return true end
  args = { 'CREATE', stream, group, before(position) }
  if certain and read ~= '' then
    args[5], args[6] = 'ENTRIESREAD', read
  end
  call('XGROUP', unpack(args))
  return true
end
