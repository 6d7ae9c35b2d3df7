-- What is kept under a key.
--
-- KEYS  the entry.
-- Returns nil, or {1 for an outcome, fingerprint, outcome, ms left}.

local have = call('HMGET', KEYS[1], 'until', 'fingerprint', 'value')
if have[3] then return { 1, have[2] or '', have[3], call('PTTL', KEYS[1]) } end
local left = number(have[1], 0) - clock()
if left > 0 then return { 0, have[2] or '', '', left } end
return nil
