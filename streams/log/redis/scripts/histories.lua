-- What the scripts for histories have in common.
--
-- A history is a list of entry IDs, one for each event. A record's ID and whether it is final stand
-- in its entry.

-- A field of a hash that holds something of many keys.
local function member(key, name)
  return #key .. ':' .. key .. name
end

local function read_entry(stream, entry)
  local found = is_id(entry) and call('XRANGE', stream, entry, entry)[1]
  local id, is_final = '', false
  if found then
    local fields = found[2]
    for at = 1, #fields, 2 do
      if fields[at] == 'ce_id' then id = fields[at + 1] end
      if fields[at] == 'streams_final' then is_final = fields[at + 1] == '1' end
    end
  end
  return id, is_final
end

-- The ID of the event of a version, nil where there is none.
local function event_id(stream, history, version)
  if version < 1 then return nil end
  local entry = call('LINDEX', history, version - 1)
  if not entry then return nil end
  local id = read_entry(stream, entry)
  return id
end

-- The ID of a history's last record, empty where it has none, and whether it is final. `refused` is
-- false where that hash is empty.
local function last_record(stream, history, refused, key)
  local refusal = refused and call('HGET', refused, key)
  if refusal then return refusal, false end
  local entry = call('LINDEX', history, -1)
  if not entry then return '', false end
  return read_entry(stream, entry)
end

-- Whether a history once ended at a version and record.
local function has_base(stream, history, refusals, key, version, id)
  if version == 0 and id == '' then return true end
  if event_id(stream, history, version) == id then return true end
  local found = call('HGET', refusals, member(key, id))
  return found and tonumber(string.match(found, '^(%d+) ')) == version
end

-- The version and the ID of what a snapshot was made of; 0 of what is no snapshot.
local function snapshot_base(stored)
  local version, id, entry = string.match(stored, '^(%d+) ([^ ]*) ([^ ]*) ')
  if not is_id(entry) then return 0, '' end
  return number(version, 0), id
end
