-- Delete the documents and the checkpoint of a partition; its writer is fenced.
--
-- KEYS  the partition's checkpoint, values, failures, keys, keys of stopped documents.
-- Returns 1, or 0 where there is no such partition.
--
-- A server that is full lets this pass, as the first that it writes is a deletion.

if call('EXISTS', KEYS[1]) == 0 then return 0 end
call('UNLINK', unpack(KEYS))
call('HSET', KEYS[1], 'writer', '')
return 1
