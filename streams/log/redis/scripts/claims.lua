-- What scripts upon claims have in common.

-- A claim for whoever wants its key, of {token, beat, until, fingerprint, outcome, lease}. One that
-- names no length (a former version wrote it) has what seems to be left of it.
local function held_claim(have)
  local lease = number(have[6], 0)
  if lease == 0 then lease = math.max(0, number(have[3], 0) - clock()) end
  return { 0, have[4] or '', lease, have[1] or '', have[2] or '', have[3] or '' }
end
