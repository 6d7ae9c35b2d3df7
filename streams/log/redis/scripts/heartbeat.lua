-- A member's heartbeat.
--
-- KEYS  the group's members.
-- ARGV  member, its static name (empty: it has none), 1 to join under that name whoever has it now,
--       how often its row was written, lease (ms), topics; then members whose rows have expired by
--       this member's clock, each with its row: to be removed if they are unchanged.
-- Returns {1 where the member was known, member, row, …} of all others; or {-1, member} where that
-- one has its name, and nothing was written.
--
-- A row is "times written, lease (ms), until, topics". `until` is on the server's clock, for people
-- alone.

local members, me, name = KEYS[1], ARGV[1], ARGV[2]
local known = call('HEXISTS', members, me)
for i = 7, #ARGV, 2 do
  if call('HGET', members, ARGV[i]) == ARGV[i + 1] then call('HDEL', members, ARGV[i]) end
end

local others = { known }
local rows = call('HGETALL', members)
for i = 1, #rows, 2 do
  local id = rows[i]
  local namesake = name ~= '' and id ~= me and string.sub(id, 1, #name + 1) == name .. ':'
  if namesake and ARGV[3] == '1' then
    call('HDEL', members, id)
  elseif namesake and known == 0 then
    return { -1, id }
  elseif id ~= me then
    others[#others + 1] = id
    others[#others + 1] = rows[i + 1]
  end
end

local shown = string.format('%.0f', clock() + ARGV[5])
call('HSET', members, me, table.concat({ ARGV[4], ARGV[5], shown, ARGV[6] }, ' '))
return others
