-- Let a counter run up to a mark that the database holds by now.
--
-- KEYS: the counter's.
-- ARGV: '1' if replication ids are compared; the mark's b and serial, and its period, as reserve.lua told them.
-- Result: 1; 0: the counter is not known here, or another period has begun since.

local found = call('HMGET', KEYS[1], 't', 'b', 'm', 'p', 'q')
if found[1] ~= id or not found[2] or found[5] ~= ARGV[4] then
  return 0
end
local serial = tonumber(ARGV[3]) + (ARGV[2] - found[2]) * MOST
if found[4] == ARGV[4] then
  serial = max(serial, tonumber(found[3]))
end
call('HSET', KEYS[1], 'm', serial, 'p', ARGV[4])
return 1
