-- Claim a key, unless it has an outcome, or a claim that was not seen to be over.
--
-- KEYS  the entry.
-- ARGV  token, lease (ms), for how long a claim is kept (ms), fingerprint; then the claim that stood
--       for its whole length by one's own clock, if there is one: token, beat, until.
-- Returns nil where it was taken, else {1, fingerprint, outcome, ms left}, or for a claim
--         {0, fingerprint, lease (ms), token, beat, until}.

local have = call('HMGET', KEYS[1], 'token', 'beat', 'until', 'fingerprint', 'value', 'lease')
if have[5] then return { 1, have[4] or '', have[5], call('PTTL', KEYS[1]) } end
local beat = 0
if have[1] == ARGV[1] then
  beat = number(have[2], 0) + 1
elseif have[1] or have[3] then -- without a token it is damaged, and somebody's
  local unchanged = #ARGV > 4
  for i = 1, 3 do
    if (have[i] or '') ~= ARGV[4 + i] then unchanged = false end
  end
  if not unchanged then return held_claim(have) end
end
call('DEL', KEYS[1])
call('HSET', KEYS[1], 'token', ARGV[1], 'fingerprint', ARGV[4], 'beat', beat, 'lease', ARGV[2],
  'until', string.format('%.0f', clock() + ARGV[2]))
call('PEXPIRE', KEYS[1], ARGV[2] + ARGV[3])
return nil
