-- Raise an account's epoch; where there is none, leave a new incarnation, so that a seed under way fails.
--
-- KEYS: the account's.
-- ARGV: '1' if replication ids are compared; the epoch; a random number.
-- Result: 1.

local found = call('HMGET', KEYS[1], 'e', 't')
if not found[1] and found[2] == id then -- what is known of its leases stays
  call('HSET', KEYS[1], 'i', ARGV[3])
elseif found[2] ~= id then
  call('DEL', KEYS[1])
  call('HSET', KEYS[1], 'i', ARGV[3], 't', id, 'n', string.format('%.0f', now))
elseif above(ARGV[2], sub(found[1], #id + 1)) then
  call('HSET', KEYS[1], 'e', id .. ARGV[2])
end
return 1
