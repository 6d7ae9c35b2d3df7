-- A member's heartbeat.
--
-- KEYS  the group's members.
-- ARGV  member, its topics, lease (ms), ms for which the member could not reach the server.
-- Returns {1 where the member was known, member, ms left, topics, …}: all that are alive.
--
-- While the server did not answer, nobody could send a heartbeat: the others are given that time
-- too, or the first one back would take the silence of all for their death.

local members, me, silence = KEYS[1], ARGV[1], tonumber(ARGV[4])
local now = clock()
local alive = { call('HEXISTS', members, me) }
local rows = call('HGETALL', members)
for i = 1, #rows, 2 do
  local id, expires, topics = rows[i], string.match(rows[i + 1], '^(%d+) (.*)$')
  if id ~= me then
    local left = tonumber(expires) - now
    if left <= 0 and left + silence > 0 then
      left = left + silence
      call('HSET', members, id, string.format('%.0f %s', now + left, topics))
    end
    if left > 0 then
      alive[#alive + 1] = id
      alive[#alive + 1] = left
      alive[#alive + 1] = topics
    else
      call('HDEL', members, id)
    end
  end
end
call('HSET', members, me, string.format('%.0f %s', now + ARGV[3], ARGV[2]))
call('PEXPIRE', members, 10 * ARGV[3])
alive[#alive + 1] = me
alive[#alive + 1] = tonumber(ARGV[3])
alive[#alive + 1] = ARGV[2]
return alive
