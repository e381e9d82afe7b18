-- Tell what leases of an account may be out.
--
-- KEYS: the account's.
-- ARGV: '1' if replication ids are compared.
-- Result: for how long those that are known will be; for how long all have been known, -1: ever.

local found = call('HMGET', KEYS[1], 'l', 'n', 't')
if found[3] ~= id then
  return { 0, 0 }
end
return { found[1] and max(0, found[1] - now) or 0, found[2] and max(0, now - found[2]) or -1 }
