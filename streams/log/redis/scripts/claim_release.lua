-- Release one's own claim.
--
-- KEYS  the entry.
-- ARGV  token.
-- Returns 1, or 0 where it is not one's own any more.

local have = call('HMGET', KEYS[1], 'token', 'value')
if have[1] ~= ARGV[1] or have[2] then return 0 end
call('DEL', KEYS[1])
return 1
