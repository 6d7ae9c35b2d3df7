-- Documents by key and their checkpoint, of one moment.
--
-- KEYS  the partition's checkpoint, values, failures.
-- ARGV  keys.
-- Returns {position or false, data or false, values, failures}, each value and failure false where
-- there is none, no failures at all where no document is stopped; or 0 where there is no such
-- partition.

local have = call('HMGET', KEYS[1], 'writer', 'position', 'data')
if not have[1] then return 0 end

local function read(hash)
  local found, place = {}, 0
  if call('HLEN', hash) == 0 and hash == KEYS[3] then return found end
  for first = 1, #ARGV, 5000 do  -- Lua's stack takes 8,000 values at once
    for _, each in ipairs(call('HMGET', hash, unpack(ARGV, first, math.min(first + 4999, #ARGV)))) do
      place = place + 1
      found[place] = each
    end
  end
  return found
end

return { have[2], have[3], read(KEYS[2]), read(KEYS[3]) }
