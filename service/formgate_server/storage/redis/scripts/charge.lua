-- Checks, each decided and charged in one step, in order; also looks, adjustments and leases.
--
-- KEYS: for each account its own, and for each of its checks the key that remembers it, if it is to be, and those of its
--   counters.
-- ARGV: '1' if replication ids are compared; a random number; '1' to go beyond marks; then for each account a word, packed
--   as doubles: how many checks, keys and words of ARGV are its own (the keys with its own, the words with this); and for
--   each of its checks one, packed: what: 'c' (check), 'l' (look), 'a' (adjust: without an epoch, and beyond the amounts) or
--   'e' (lease); as doubles its cost (of a lease the most) and for how many milliseconds it is remembered (0: it is not);
--   its epoch, in digits, and a zero byte; its counters, as the prelude says. Then of a lease for how long at most; and,
--   if it is remembered, words of the caller's that are kept.
-- Result: the time; then for each check a list, which begins with:
--   CHARGED, DENIED, KNOWN (remembered from before), and for each counter: head, newest, used, room under the mark, and
--           the ring, where newest does not tell, else 0; of a span its end, used and room. CHARGED and KNOWN of what
--           is no lease come packed where no ring is told: the status in a byte, each number in eight, least byte first
--   MOVED, epoch: it is above the check's       MISSING, incarnation: there is no epoch here
--   CLOCK: it needs calendar periods of the time here
--   LOAD, index, incarnation, …: these counters are not known here
--   MARK: it would go beyond a mark
--   FAILED, why: something that is not ours is under a key of its account; what was done for it before is done
--   Of a lease that is granted (CHARGED) or not (KNOWN), behind the counters: how many units; for how long, or for how
--   long not to ask again.
-- But for CHARGED, DENIED and FAILED nothing was changed, other than that an epoch may have been raised, or an
-- incarnation left. Any other error breaks off the call: what was done for the accounts before it is done.

local random, force = ARGV[2], ARGV[3] == '1'
local account, epoch, incarnation -- of the checks that are decided

local function enter(key)
  account, epoch, incarnation = key, nil, nil
  local found = call('HGET', key, 'e')
  if found and sub(found, 1, #id) == id then
    epoch = sub(found, #id + 1)
    return
  end
  found = call('HMGET', key, 'i', 't')
  if found[2] == id then
    incarnation = found[1]
  end
end

-- Compare a check's epoch with the account's; nil: it may go on.
local function compare(of)
  if not epoch then
    if not incarnation then
      incarnation = random
      call('DEL', account)
      call('HSET', account, 'i', random, 't', id, 'n', string.format('%.0f', now))
    end
    return { MISSING, incarnation }
  end
  if epoch ~= of then
    if not string.find(epoch, '^%d+$') then
      error('bad argument: no epoch', 0)
    end
    if above(epoch, of) then
      return { MOVED, epoch }
    end
    epoch = of
    call('HSET', account, 'e', id .. of)
  end
end

local function told(status, counters, denied)
  local reply, size = { status }, 1
  for index = 1, #counters do
    local counter = counters[index]
    local left = room(counter)
    if counter.window then
      local ring = 0
      if counter.used > 0 and (denied or counter.newest == 0) then
        ring = ring_now(counter)
      end
      reply[size + 1], reply[size + 2], reply[size + 3] = counter.head, counter.newest, counter.used
      reply[size + 4], reply[size + 5] = left, ring
      size = size + 5
    else
      reply[size + 1], reply[size + 2], reply[size + 3] = counter.stop_at, counter.used, left
      size = size + 3
    end
  end
  return reply
end

-- Tell the same in one string: made and read in less time than a list.
local function told_packed(status, counters)
  local text = pack('b', status)
  for index = 1, #counters do
    local counter = counters[index]
    local left = room(counter)
    if not counter.window then
      text = text .. pack('<i8i8i8', counter.stop_at, counter.used, left)
    elseif counter.used > 0 and counter.newest == 0 then
      return told(status, counters)
    else
      text = text .. pack('<i8i8i8i8i8', counter.head, counter.newest, counter.used, left, 0)
    end
  end
  return text
end

-- Keep an admission: its time, its cost, the moments at which its counters were charged, and the caller's words.
local function remember(key, milliseconds, what, cost, counters, words)
  if what == 'a' then
    call('SET', key, '1', 'PX', milliseconds)
    return
  end
  local moments = {}
  for index = 1, #counters do
    moments[index] = string.format('%.0f', counters[index].head or counters[index].stop_at)
  end
  local kept = string.format('%.0f\n%.0f\n%s\n%s', now, cost, table.concat(moments, ' '), words)
  call('SET', key, kept, 'PX', milliseconds)
end

-- Whether this was done before. With another cost it was not this: an id does not open what it did not pay for.
local function known(key, what, cost)
  local value = call('GET', key)
  if value and what == 'c' then
    local at, paid = string.match(value, '^(%d+)\n(%d+)\n')
    return math.abs(now - tonumber(at)) < 60000000 and tonumber(paid) == cost
  end
  return value
end

-- Return what is missing of the counters of a check; nil: nothing is, and they are up to now.
local function prepare(counters)
  local missing
  for index = 1, #counters do
    local counter = counters[index]
    if not counter.known then
      missing = missing or { LOAD }
      missing[#missing + 1] = index
      missing[#missing + 1] = incarnation_of(counter, random)
    end
  end
  if missing then
    return missing
  end
  for index = 1, #counters do
    if not bring(counters[index]) then
      return { CLOCK }
    end
  end
end

local function decide(what, cost, key, milliseconds, counters, words)
  local missing = prepare(counters)
  if missing then
    return missing
  end
  if what == 'l' or key and known(key, what, cost) then
    return told_packed(KNOWN, counters)
  end
  local wanted = cost > 0 and cost or 1
  local marked = true
  for index = 1, #counters do
    local counter = counters[index]
    if what == 'c' and not (counter.used + wanted <= counter.amount) then -- so that what is no number denies, too
      local denied = told(DENIED, counters, true)
      for each = 1, #counters do
        put(counters[each], 0)
      end
      return denied
    end
    if counter.durable and room(counter) < cost then
      marked = false
    end
  end
  if cost > 0 and not force and not marked then
    return { MARK }
  end
  for index = 1, #counters do
    put(counters[index], cost)
  end
  if key and cost > 0 then
    remember(key, milliseconds, what, cost, counters, words)
  end
  return told_packed(CHARGED, counters)
end

-- Charge what may be leased, as `lend` in core/limits.py says, and as much as fits under all marks.
local function lease(wanted, longest, key, milliseconds, counters, words)
  local missing = prepare(counters)
  if missing then
    return missing
  end
  local units, free, duration = wanted, wanted, longest
  for index = 1, #counters do
    local counter = counters[index]
    units = min(units, floor((counter.amount - counter.used) / 2))
    if counter.durable then
      free = min(free, room(counter))
    end
    if counter.window then
      local whole = floor((counter.head + 1) / 60)
      local over = whole * counter.window + floor((counter.head + 1 - whole * 60) * counter.window / 60)
      duration = min(duration, over - now)
    elseif counter.stop_at > 0 then
      duration = min(duration, counter.stop_at - now)
    end
  end
  local status = CHARGED
  if units < 1 or duration < SHORTEST_LEASE or key and call('EXISTS', key) == 1 then
    units, status = 0, KNOWN
  elseif free < 1 then
    return { MARK }
  else
    units = min(units, free)
    for index = 1, #counters do
      put(counters[index], units)
    end
    if key then
      remember(key, milliseconds, 'e', units, counters, words)
    end
    local over = string.format('%.0f', now + duration)
    local last = call('HGET', account, 'l')
    if not last or above(over, last) then
      call('HSET', account, 'l', over)
    end
  end
  local reply = told(status, counters)
  reply[#reply + 1], reply[#reply + 2] = units, max(duration, SHORTEST_LEASE)
  return reply
end

local replies = { now }
local at_key, at = 1, 4

local function check()
  local packed = ARGV[at]
  local what, cost, milliseconds, of, next_one = unpacked('<c1dds', packed)
  at = at + 1
  local longest, key, words
  if what == 'e' then
    longest = tonumber(ARGV[at])
    at = at + 1
  end
  if milliseconds > 0 then
    key, words = KEYS[at_key], ARGV[at]
    at_key, at = at_key + 1, at + 1
  end
  local counters, many = {}, 0
  while next_one <= #packed do
    many = many + 1
    counters[many], next_one = counter_at(KEYS[at_key], packed, next_one)
    at_key = at_key + 1
  end
  if longest then
    return compare(of) or lease(cost, longest, key, milliseconds, counters, words)
  end
  return what == 'c' and compare(of) or decide(what, cost, key, milliseconds, counters, words)
end

local function checks_of(key, many)
  enter(key)
  for _ = 1, many do
    replies[#replies + 1] = check()
  end
end

-- What fails for one account alone may not fail for all that are asked for with it.
local function of_its_own(why)
  local text = type(why) == 'table' and why.err or why
  for _, sign in ipairs({ 'WRONGTYPE', 'attempt to ', 'bad argument' }) do
    if string.find(text, sign, 1, true) then
      return text
    end
  end
end

local wanted = 1
while ARGV[at] do
  local many, keys, words = unpacked('<ddd', ARGV[at])
  local key, after_key, after = KEYS[at_key], at_key + keys, at + words
  wanted, at, at_key = wanted + many, at + 1, at_key + 1
  local well, why = pcall(checks_of, key, many)
  if well and (at ~= after or at_key ~= after_key) then
    error('an account has other words or keys than it says', 0)
  end
  if not well then
    local text = of_its_own(why)
    if not text then
      error(why, 0)
    end
    while #replies < wanted do
      replies[#replies + 1] = { FAILED, text }
    end
    at_key, at = after_key, after
  end
end
return replies
