-- Put an outcome under a key, whatever it replaces.
--
-- KEYS  the entry.
-- ARGV  for how long it is kept (ms), the outcome.
-- Returns 1.

call('DEL', KEYS[1])
call('HSET', KEYS[1], 'token', '', 'fingerprint', '', 'value', ARGV[2])
call('PEXPIRE', KEYS[1], ARGV[1])
return 1
