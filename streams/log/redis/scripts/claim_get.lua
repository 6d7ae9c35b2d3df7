-- What is kept under a key.
--
-- KEYS  the entry.
-- Returns nil, or {1, fingerprint, outcome, ms left}, or for a claim
--         {0, fingerprint, lease (ms), token, beat, until}.

local have = call('HMGET', KEYS[1], 'token', 'beat', 'until', 'fingerprint', 'value', 'lease')
if have[5] then return { 1, have[4] or '', have[5], call('PTTL', KEYS[1]) } end
if have[1] or have[3] then return held_claim(have) end
return nil
