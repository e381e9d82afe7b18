-- Seed a counter with what the database has of it, read after the incarnation was told; else do nothing.
--
-- KEYS: the counter's.
-- ARGV: '1' if replication ids are compared; the incarnation; b and serial of the database's mark; for how many
--   milliseconds it is kept (0: for ever); then fields and values of the state.
-- Result: 1 if it was seeded.

local found = call('HMGET', KEYS[1], 'i', 't')
if found[1] ~= ARGV[2] or found[2] ~= id then
  return 0
end
call('DEL', KEYS[1])
call('HSET', KEYS[1], 't', id, 'b', ARGV[3], 'c', ARGV[4], 'm', ARGV[4], 'w', ARGV[4], 'p', -1, 'q', -1)
if ARGV[6] then
  call('HSET', KEYS[1], unpack(ARGV, 6))
end
if ARGV[5] ~= '0' then
  call('PEXPIRE', KEYS[1], ARGV[5])
end
return 1
