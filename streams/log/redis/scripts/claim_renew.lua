-- Extend the lease of one's own claim.
--
-- KEYS  the entry.
-- ARGV  token, lease (ms), for how long a claim is kept (ms).
-- Returns 1 (also where one has completed it: that stays as it is), or 0 where it is not one's own any more.

local have = call('HMGET', KEYS[1], 'token', 'value', 'beat')
if have[1] ~= ARGV[1] then return 0 end
if not have[2] then
  call('HSET', KEYS[1], 'beat', number(have[3], 0) + 1, 'lease', ARGV[2],
    'until', string.format('%.0f', clock() + ARGV[2]))
  call('PEXPIRE', KEYS[1], ARGV[2] + ARGV[3])
end
return 1
