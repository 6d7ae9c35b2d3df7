-- What every script begins with.

local call = redis.call

-- The server's clock, in milliseconds. It can be set, so nobody takes a lease by it.
local function clock()
  local now = call('TIME')
  return now[1] * 1000 + math.floor(now[2] / 1000)
end

-- A stored number, as far as a Lua number holds it exactly. Anybody can write into these keys:
-- what makes no sense counts as `otherwise`.
local function number(text, otherwise)
  if type(text) == 'string' and #text <= 15 and string.match(text, '^%d+$') then
    return tonumber(text)
  end
  return otherwise
end

-- Whether somebody seems to have a lease: for refusals, and for what people look at.
local function running(owner, until_, term)
  local left = number(until_, 0) - clock()
  return owner and owner ~= '' and left > 0 and left <= number(term, 3600000)
end

-- Entry IDs are two 64-bit numbers, more than a Lua number holds: they stay decimal strings.

local LAST = '18446744073709551615'

local function split(id)
  return string.match(id, '^(%d+)%-(%d+)$')
end

-- Whether it is an entry ID at all.
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

-- -1, 0 or 1: how one entry ID stands to another.
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

-- A reply of names and values in turn, as a table.
local function pairs_of(reply)
  local found = {}
  for i = 1, #reply, 2 do found[reply[i]] = reply[i + 1] end
  return found
end

-- What is known of a stream; one that is not there yet is an empty one.
local function facts(stream)
  if call('EXISTS', stream) == 0 then
    return { added = 0, length = 0, first = '0-0', last = '0-0', deleted = '0-0', there = false }
  end
  local info = pairs_of(call('XINFO', 'STREAM', stream))
  return {
    added = info['entries-added'],
    length = info['length'],
    first = info['recorded-first-entry-id'],
    last = info['last-generated-id'],
    deleted = info['max-deleted-entry-id'],
    there = true,
  }
end

-- The native groups of a stream, by name.
local function groups_of(stream)
  local found = {}
  if call('EXISTS', stream) == 1 then
    for _, reply in ipairs(call('XINFO', 'GROUPS', stream)) do
      local group = pairs_of(reply)
      found[group['name']] = group
    end
  end
  return found
end

-- Make a native group stand where ours does, so that Redis's own tools tell the truth. `read` is
-- the number of entries ever added below the position, empty where that is not known. True where
-- there was no such group: then the stream may be another one than was counted, so `read` counts
-- only if it is `certain`. A stream that is not there is not made: somebody may have deleted it.
local function show(stream, group, position, read, certain)
  local args = { 'SETID', stream, group, before(position) }
  if read ~= '' then
    args[5], args[6] = 'ENTRIESREAD', read
  end
  local there = redis.pcall('XGROUP', unpack(args))
  if type(there) ~= 'table' or not there['err'] then return false end
  -- Nor is a group made above the end of a stream: that is another stream, to be read anew.
  local now_there = facts(stream)
  if not now_there.there or compare(position, after(now_there.last)) > 0 then return true end
  args = { 'CREATE', stream, group, before(position) }
  if certain and read ~= '' then
    args[5], args[6] = 'ENTRIESREAD', read
  end
  call('XGROUP', unpack(args))
  return true
end
