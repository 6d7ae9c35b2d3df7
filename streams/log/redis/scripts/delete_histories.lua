-- Delete histories of a partition, and with the last of them all else that it has. That is one step,
-- as there may be those who still append: what they append is deleted wholly, or stays wholly.
--
-- KEYS  the index of keys; what the partition has beside histories.
-- ARGV  what the names of its histories begin with, how many of them to delete.
-- Returns 1 if there are more, else 0.
--
-- Which histories there are stands in the index, so they are not among KEYS: they are in its slot.
-- A server that is full lets this pass, as the first that it writes is a deletion.

local index = KEYS[1]
for _, key in ipairs(call('ZRANGE', index, 0, ARGV[2] - 1)) do
  call('UNLINK', ARGV[1] .. key)
  call('ZREM', index, key)
end
if call('ZCARD', index) > 0 then return 1 end
for number = 2, #KEYS do call('UNLINK', KEYS[number]) end
return 0
