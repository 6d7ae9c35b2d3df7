-- Who is alive in a group.
--
-- KEYS  the group's members.
-- Returns {member, topics, …}.

local now = clock()
local alive = {}
local rows = call('HGETALL', KEYS[1])
for i = 1, #rows, 2 do
  local expires, topics = string.match(rows[i + 1], '^(%d+) (.*)$')
  if rows[i] ~= '' and tonumber(expires) > now then
    alive[#alive + 1] = rows[i]
    alive[#alive + 1] = topics
  end
end
return alive
