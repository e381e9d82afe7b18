-- Let a counter run up to a mark that the database holds by now.
--
-- KEYS: the counter's.
-- ARGV: '1' if replication ids are compared; the mark's b and serial, and its period, as reserve.lua told them; the
--   counter, packed.
-- Result: 1; 0: the counter is not known here, or another period has begun since.

local counter = counter_at(KEYS[1], ARGV[5], 1)
local found = call('HMGET', KEYS[1], 'b', 'q')
if not counter.known or found[2] ~= ARGV[4] then
  return 0
end
local serial, period = tonumber(ARGV[3]) + (ARGV[2] - found[1]) * MOST, tonumber(ARGV[4])
if counter.marked == period then
  serial = max(serial, counter.mark)
end
counter.mark, counter.marked = serial, period
write(counter)
return 1
