-- Seed a counter with what the database has of it, read after the incarnation was told; else do nothing.
--
-- KEYS: the counter's.
-- ARGV: '1' if replication ids are compared; the incarnation; b and serial of the database's mark; for how many
--   milliseconds it is kept (0: for ever); its state: used, head (or the end of a span) and newest; then slots of the ring
--   and their units.
-- Result: 1 if it was seeded.

local found = call('HMGET', KEYS[1], 'i', 't')
if found[1] ~= ARGV[2] or found[2] ~= id then
  return 0
end
local serial = ARGV[4]
call('DEL', KEYS[1])
call('HSET', KEYS[1], 's', state_of(serial, serial, -1, ARGV[6], ARGV[7], ARGV[8]), 'b', ARGV[3], 'w', serial, 'q', -1)
if ARGV[9] then
  call('HSET', KEYS[1], unpack(ARGV, 9))
end
if ARGV[5] ~= '0' then
  call('PEXPIRE', KEYS[1], ARGV[5])
end
return 1
