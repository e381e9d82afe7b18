-- Draw up a mark for a counter, to be written to the database; nothing may be charged under it yet (see raise.lua).
--
-- Its serial is above those of all marks that were drawn up before. Where the mark is not to be as high above the count
-- as they were, a part of what may be charged is written off: so much less fits until the new one is written.
--
-- KEYS: the counter's.
-- ARGV: '1' if replication ids are compared; how many units shall fit at least; how many it is reserved ahead by;
--   '1' if the mark may be too high; the serial below which it may not be, by b and the rest; the counter,
--   packed.
-- Result: the status: CHARGED: it is drawn up, and then b, serial, ahead, period, and the state: head, newest,
--   used and ring, or end and used. KNOWN: it is high enough. LOAD: the counter is not known here. CLOCK, time: it needs
--   a calendar period of the time here.

local counter = counter_at(KEYS[1], ARGV[7], 1)
local need, block, lower = tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4] == '1'
if not counter.known then
  return { LOAD }
end
local used, head_or_stop, newest = counter.used, counter.head or counter.stop_at, counter.newest or 0
if not bring(counter) then
  return { CLOCK, now }
end
local left = max(0, counter.amount - counter.used)
local free = room(counter)
if not lower and counter.marked == counter.period and free >= need and free >= min(floor(block / 2), left) then
  return { KNOWN }
end

local found = call('HMGET', KEYS[1], 'b', 'w')
local base, asked = tonumber(found[1]), tonumber(found[2])

-- Count from a later base on.
local function shift(by)
  base = base + by
  counter.charged, counter.mark, asked = counter.charged - by * MOST, counter.mark - by * MOST, asked - by * MOST
end

local floor_base, lowest = tonumber(ARGV[5]), tonumber(ARGV[6])
if floor_base > base then
  shift(floor_base - base)
end
if floor_base == base then
  asked = max(asked, lowest)
end
local ahead = max(need, min(block, left))
counter.charged = max(counter.charged, asked + 1 - ahead)
if counter.charged >= MOST then
  shift(floor(counter.charged / MOST))
end
local serial = counter.charged + ahead
-- The state is told as it stands now, but not written: only what is charged moves it.
local state = state_of(counter.charged, counter.mark, counter.marked, used, head_or_stop, newest)
call('HSET', KEYS[1], 's', state, 'b', base, 'w', serial, 'q', counter.period)
keep(counter)
if counter.window then
  local ring = ring_now(counter)
  return { CHARGED, base, serial, ahead, counter.period, counter.head, counter.newest, counter.used, ring }
end
return { CHARGED, base, serial, ahead, counter.period, counter.stop_at, counter.used }
