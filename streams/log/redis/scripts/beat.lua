-- A member's heartbeat.
--
-- KEYS  the group's members.
-- ARGV  member, its topics, lease (ms).
-- Returns {1 where the member was known, member, ms left, topics, …}: all that are alive.
--
-- While a server is frozen, nobody's heartbeat gets through; then the first of a member that was
-- there before would take the silence of all for the death of the others. So the time of the last
-- heartbeat of any member is kept (in field ''), and a silence of everybody is given to everybody.

local members, me, lease = KEYS[1], ARGV[1], tonumber(ARGV[3])
local now = clock()
local known = call('HEXISTS', members, me)
local silence = 0
if known == 1 then
  silence = now - (call('HGET', members, '') or now)
  if silence < lease / 2 then silence = 0 end
end

local alive = { known }
local rows = call('HGETALL', members)
for i = 1, #rows, 2 do
  local id = rows[i]
  if id ~= '' and id ~= me then
    local expires, topics = string.match(rows[i + 1], '^(%d+) (.*)$')
    local left = expires - now + silence
    if left <= 0 then
      call('HDEL', members, id)
    else
      if silence > 0 then
        call('HSET', members, id, string.format('%.0f %s', now + left, topics))
      end
      alive[#alive + 1] = id
      alive[#alive + 1] = left
      alive[#alive + 1] = topics
    end
  end
end

call('HSET', members, me, string.format('%.0f %s', now + lease, ARGV[2]),
  '', string.format('%.0f', now))
call('PEXPIRE', members, 10 * lease)
alive[#alive + 1] = me
alive[#alive + 1] = lease
alive[#alive + 1] = ARGV[2]
return alive
