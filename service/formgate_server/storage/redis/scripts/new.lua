-- Note that an account is new, and no lease of it can be out; else do nothing.
--
-- KEYS: the account's.
-- ARGV: '1' if replication ids are compared; a random number.
-- Result: 1.

if call('EXISTS', KEYS[1]) == 0 then
  call('HSET', KEYS[1], 'i', ARGV[2], 't', id)
end
return 1
