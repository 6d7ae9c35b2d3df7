-- Who is in a group.
--
-- KEYS  the group's members.
-- Returns {the server's clock (ms), member, row, …}.

local rows = call('HGETALL', KEYS[1])
table.insert(rows, 1, clock())
return rows
