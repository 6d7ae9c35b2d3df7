-- Claim a key, unless it is claimed or has an outcome.
--
-- KEYS  the entry.
-- ARGV  token, lease (ms), for how long a claim that is over is kept (ms), fingerprint.
-- Returns nil where it was taken, else {1 for an outcome, fingerprint, outcome, ms left}.

local now = clock()
local have = call('HMGET', KEYS[1], 'token', 'until', 'fingerprint', 'value')
if have[4] then return { 1, have[3] or '', have[4], call('PTTL', KEYS[1]) } end
local left = number(have[2], 0) - now
if have[1] and have[1] ~= ARGV[1] and left > 0 then return { 0, have[3] or '', '', left } end
call('DEL', KEYS[1])
call('HSET', KEYS[1], 'token', ARGV[1], 'fingerprint', ARGV[4],
  'until', string.format('%.0f', now + ARGV[2]))
call('PEXPIRE', KEYS[1], ARGV[2] + ARGV[3])
return nil
