-- Before `append`: nothing is written if the partition of another topic is not one's own (any more).
--
-- KEYS  the last: the group's hash in that partition.
-- ARGV  the last two: owner, epoch.
-- Returns 0 in that case; a list of entry IDs is what an append returns.

local epoch, owner = table.remove(ARGV), table.remove(ARGV)
local have = call('HMGET', KEYS[#KEYS], 'owner', 'epoch')
if have[1] ~= owner or have[2] ~= epoch then return 0 end

