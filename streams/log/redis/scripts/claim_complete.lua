-- Replace one's own claim by its outcome.
--
-- KEYS  the entry.
-- ARGV  token, for how long the outcome is kept (ms), the outcome.
-- Returns 1 (also where that was done before), or 0 where it is not one's own any more.

local have = call('HMGET', KEYS[1], 'token', 'value')
if have[1] ~= ARGV[1] then return 0 end
if not have[2] then
  call('HDEL', KEYS[1], 'beat', 'lease', 'until')
  call('HSET', KEYS[1], 'value', ARGV[3])
  call('PEXPIRE', KEYS[1], ARGV[2])
else
  -- WAIT waits for the last write of its own connection, so there must be one, though nothing is new.
  call('PEXPIRE', KEYS[1], math.max(1, call('PTTL', KEYS[1])))
end
return 1
