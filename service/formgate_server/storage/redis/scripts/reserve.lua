-- Draw up a mark for a counter, to be written to the database; nothing may be charged under it yet (see raise.lua).
--
-- Its serial is above those of all marks that were drawn up before. Where the mark is not to be as high above the count
-- as they were, a part of what may be charged is written off: so much less fits until the new one is written.
--
-- KEYS: the counter's.
-- ARGV: '1' if replication ids are compared; how many units shall fit at least; how many it is reserved ahead by;
--   '1' if the mark may be too high; the serial below which it may not be, by b and the rest; the counter.
-- Result: the status: CHARGED: it is drawn up, and then b, serial, ahead, period, and the state: head, newest,
--   used and ring, or end and used. KNOWN: it is high enough. LOAD: the counter is not known here. CLOCK, time: it needs
--   a calendar period of the time here.

local counter = counter_at(KEYS[1], 7)
local need, block, lower = tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4] == '1'
if not read(counter, replication(ARGV[1])) then
  return { LOAD }
end
if not bring(counter) then
  return { CLOCK, now }
end
local left = math.max(0, counter.amount - counter.used)
local free = room(counter)
if not lower and counter.marked == counter.period and free >= need and free >= math.min(math.floor(block / 2), left) then
  return { KNOWN }
end

local found = redis.call('HMGET', KEYS[1], 'b', 'w')
local base, asked = tonumber(found[1]), tonumber(found[2])

-- Count from a later base on.
local function shift(by)
  base = base + by
  counter.charged, counter.mark, asked = counter.charged - by * MOST, counter.mark - by * MOST, asked - by * MOST
end

local floor_base, floor = tonumber(ARGV[5]), tonumber(ARGV[6])
if floor_base > base then
  shift(floor_base - base)
end
if floor_base == base then
  asked = math.max(asked, floor)
end
local ahead = math.max(need, math.min(block, left))
counter.charged = math.max(counter.charged, asked + 1 - ahead)
if counter.charged >= MOST then
  shift(math.floor(counter.charged / MOST))
end
local serial = counter.charged + ahead
-- The state is told as it stands now, but not written: only what is charged moves it.
redis.call('HSET', KEYS[1], 'b', base, 'c', counter.charged, 'm', counter.mark, 'w', serial, 'q', counter.period)
keep(counter)
if counter.window then
  local ring = ring_now(counter)
  return { CHARGED, base, serial, ahead, counter.period, counter.head, counter.newest, counter.used, ring }
end
return { CHARGED, base, serial, ahead, counter.period, counter.stop_at, counter.used }
