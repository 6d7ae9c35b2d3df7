-- Count entries without sending them.
--
-- KEYS  stream.
-- ARGV  XRANGE or XREVRANGE, from, to, how many at most.
-- Returns {number of entries, ID of the last one}.

local rows = call(ARGV[1], KEYS[1], ARGV[2], ARGV[3], 'COUNT', ARGV[4])
if #rows == 0 then return { 0, '' } end
return { #rows, rows[#rows][1] }
