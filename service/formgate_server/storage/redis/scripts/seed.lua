-- Set the epoch of an account that has none, if its incarnation is still the one that was told.
--
-- KEYS: the account's.
-- ARGV: '1' if replication ids are compared; the epoch; the incarnation.
-- Result: 1 if it was set.

local found = call('HMGET', KEYS[1], 'e', 'i', 't')
if found[1] or found[2] ~= ARGV[3] or found[3] ~= id then
  return 0
end
call('HSET', KEYS[1], 'e', id .. ARGV[2])
call('HDEL', KEYS[1], 'i')
return 1
