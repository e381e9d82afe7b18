-- Let a counter run up to a mark that the database holds by now.
--
-- KEYS: the counter's.
-- ARGV: '1' if replication ids are compared; the mark's b and serial, and its period, as reserve.lua told them.
-- Result: 1; 0: the counter is not known here, or another period has begun since.

local found = call('HMGET', KEYS[1], 's', 'b', 'q')
if not found[2] or found[3] ~= ARGV[4] then
  return 0
end
local charged, mark, marked, used, head_or_stop, newest = taken_apart(found[1])
if not charged then
  return 0
end
local serial, period = tonumber(ARGV[3]) + (ARGV[2] - found[2]) * MOST, tonumber(ARGV[4])
if marked == period then
  serial = max(serial, mark)
end
call('HSET', KEYS[1], 's', state_of(charged, serial, period, used, head_or_stop, newest))
return 1
