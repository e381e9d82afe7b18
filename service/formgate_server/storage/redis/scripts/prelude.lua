-- What the scripts share; it is put before each of them.
--
-- A counter is a hash. Its state: a window's h (head), n (newest), u (used) and the slots 0 to 59 of its ring, where
-- they are not 0; a span's e (end, 0: for ever) and u. One that outlives Redis has beside it, once it was seeded,
--   c  how much was ever charged to it (or written off): it never goes back
--   m  how far c may run: the database holds that mark        p  the period that m is of
--   w  how far marks were asked for: every mark's serial so far is at most this     q  the period of the newest of them
--   b  c, m and w are counted from b * 2^52 on
--   t  the replication id of the Redis that wrote all this
-- or else i, the incarnation under which it may be seeded, and t.
--
-- In ARGV a counter is its kind, its amount, and
--   1 (rolling, at most 5 minutes) and 2 (rolling, longer):  window
--   3 (calendar):                                            start, end and next end of a period, and the longest one
--   4 (lifetime):                                            nothing
-- Times are microseconds. Numbers are exact to 2^53; counts end at MOST, so that one can be added to another.

local MOST = 4503599627370496
local DAY = 86400000000
local KEPT = 86400000 -- milliseconds that a counter is kept after nothing in it counts any more

local CHARGED, DENIED, KNOWN, MOVED, MISSING, CLOCK, LOAD, MARK = 0, 1, 2, 3, 4, 5, 6, 7

local function microseconds(time)
  return time[1] * 1000000 + time[2]
end

local now = microseconds(redis.call('TIME'))

-- Return 0 to 59. Made where it is asked for: few checks touch a ring.
local function slots()
  local all = {}
  for slot = 0, 59 do
    all[slot + 1] = slot
  end
  return unpack(all)
end

-- The replication id, if it is `wanted`: who writes under another one has not seen all that this one has.
local function replication(wanted)
  if wanted ~= '1' then
    return '-'
  end
  local told = redis.call('INFO', 'replication')
  -- Found as plain text first: to look for a pattern takes longer than the command itself.
  local _, before = string.find(told, 'master_replid:', 1, true)
  return before and string.match(told, '^%x%x%x%x%x%x%x%x%x%x%x%x%x%x%x%x', before + 1)
end

-- Whether the number a, in decimal digits, is above b.
local function above(a, b)
  return #a > #b or #a == #b and a > b
end

-- Return the counter at ARGV[at] with its key, and what comes behind it.
local function counter_at(key, at)
  local kind, amount = ARGV[at], tonumber(ARGV[at + 1])
  if kind == '3' then
    return {
      key = key,
      kind = kind,
      amount = amount,
      durable = true,
      start = tonumber(ARGV[at + 2]),
      stop = tonumber(ARGV[at + 3]),
      next_stop = tonumber(ARGV[at + 4]),
      longest = tonumber(ARGV[at + 5]),
    }, at + 6
  elseif kind == '4' then
    return { key = key, kind = kind, amount = amount, durable = true }, at + 2
  end
  return { key = key, kind = kind, amount = amount, durable = kind == '2', window = tonumber(ARGV[at + 2]) }, at + 3
end

-- Read a counter's state. False: it is not known here, and must be seeded.
local function read(counter, id)
  if counter.window then
    if not counter.durable then
      local found = redis.call('HMGET', counter.key, 'h', 'n', 'u')
      counter.head, counter.newest, counter.used = tonumber(found[1]), tonumber(found[2]), tonumber(found[3])
      return true
    end
    local found = redis.call('HMGET', counter.key, 't', 'c', 'm', 'p', 'i', 'u', 'h', 'n')
    counter.charged, counter.mark, counter.marked = tonumber(found[2]), tonumber(found[3]), tonumber(found[4])
    counter.head, counter.newest, counter.used = tonumber(found[7]), tonumber(found[8]), tonumber(found[6])
    counter.incarnation = found[1] == id and found[5]
    return found[1] == id and found[2]
  end
  local found = redis.call('HMGET', counter.key, 't', 'c', 'm', 'p', 'i', 'u', 'e')
  counter.charged, counter.mark, counter.marked = tonumber(found[2]), tonumber(found[3]), tonumber(found[4])
  counter.stop_at, counter.used = tonumber(found[7]), tonumber(found[6])
  counter.incarnation = found[1] == id and found[5]
  return found[1] == id and found[2]
end

-- Leave an incarnation in a counter that is not known here, and return the one that is there.
local function incarnation_of(counter, id, random)
  if not counter.incarnation then
    counter.incarnation = random
    redis.call('DEL', counter.key)
    redis.call('HSET', counter.key, 'i', random, 't', id)
    redis.call('PEXPIRE', counter.key, 3600000)
  end
  return counter.incarnation
end

local function ring_of(counter)
  local ring = redis.call('HMGET', counter.key, slots())
  for slot = 1, 60 do
    ring[slot] = tonumber(ring[slot] or 0)
  end
  return ring
end

-- Bring a window to the sub-window `number`, as `_roll` in core/limits.py does; `put` writes it.
local function roll(counter, number)
  local head = counter.head
  if not head then
    counter.head, counter.newest, counter.used, counter.moved = number, 0, 0, true
    return
  end
  local ahead = number - head
  if ahead <= 0 and ahead >= -60 then
    return
  end
  counter.moved = true
  local newest, used = counter.newest, counter.used
  local has_ring = used > newest or used >= MOST
  if ahead < 0 then
    local turn = (ahead + 1) % 60
    counter.head = number + 1
    if has_ring and turn > 0 then
      local ring = ring_of(counter)
      counter.ring = {}
      for slot = 0, 59 do
        counter.ring[(slot + turn) % 60 + 1] = ring[slot + 1]
      end
    end
    return
  end
  counter.head, counter.newest = number, 0
  if ahead > 60 or used == 0 then
    counter.used = 0
    if has_ring then
      counter.ring = {}
    end
    return
  end
  if used >= MOST then -- a count that came to its end says nothing of what is left: sum it up
    local ring = ring_of(counter)
    counter.used = 0
    for passed = head, number - 1 do
      ring[passed % 60 + 1] = passed == head and newest or 0
    end
    for slot = 1, 60 do
      counter.used = math.min(MOST, counter.used + ring[slot])
    end
    counter.ring = ring
    return
  end
  if has_ring then
    local passed = {}
    for each = head, number - 1 do
      passed[#passed + 1] = each % 60
    end
    local units = redis.call('HMGET', counter.key, unpack(passed))
    local gone = {}
    for each = 1, #passed do
      if units[each] then
        used = used - units[each]
        gone[#gone + 1] = passed[each]
      end
    end
    counter.used, counter.gone = used, gone
  end
  counter.full, counter.full_units = head % 60, newest
end

-- Bring a counter up to now, as `up_to_now` does. False: the period that is needed was not given.
local function bring(counter)
  if counter.window then
    local window = counter.window
    roll(counter, math.floor(now / window) * 60 + math.floor(now % window * 60 / window))
    counter.period = counter.durable and math.floor(now / math.max(window, DAY)) or 0
    return true
  end
  local stop = counter.stop_at
  if counter.kind == '4' then
    counter.period = 0
    if not stop then
      counter.stop_at, counter.used, counter.moved = 0, 0, true
    end
    return true
  end
  if not (stop and now < stop and stop <= now + counter.longest) then
    local back = stop and now < stop -- the clock was set back; this period's end could be a moment away
    if back or not (counter.stop <= now and now < counter.next_stop) then
      if not (counter.start <= now and now < counter.stop) then
        return false
      end
      counter.stop_at = back and counter.next_stop or counter.stop
    else
      counter.stop_at = counter.next_stop
    end
    counter.used = back and counter.used or 0
    counter.moved = true
  end
  counter.period = counter.stop_at
  return true
end

-- How much may be charged to a counter, up to now, under its mark.
local function room(counter)
  return counter.marked == counter.period and counter.mark - counter.charged or 0
end

-- Keep a counter as long as something in it, or in its mark, may count.
local function keep(counter)
  if counter.window then
    local last = counter.durable and math.max(counter.window, DAY) + KEPT * 1000 or 60000000
    redis.call('PEXPIRE', counter.key, math.ceil((2 * counter.window + last) / 1000))
  elseif counter.kind == '3' then
    redis.call('PEXPIRE', counter.key, math.ceil((counter.stop_at - now) / 1000) + KEPT)
  end
end

-- Write a counter, up to now, with `units` charged.
local function put(counter, units)
  if units == 0 and not counter.moved then
    return
  end
  counter.used = math.min(MOST, counter.used + units)
  if counter.charged then
    counter.charged = counter.charged + units
  end
  if counter.window then
    counter.newest = math.min(MOST, counter.newest + units)
    if counter.ring then
      redis.call('HDEL', counter.key, slots())
      local slots = {}
      for slot = 0, 59 do
        local there = counter.ring[slot + 1] or 0
        if there > 0 then
          slots[#slots + 1] = slot
          slots[#slots + 1] = there
        end
      end
      if #slots > 0 then
        redis.call('HSET', counter.key, unpack(slots))
      end
    elseif counter.gone and #counter.gone > 0 then
      redis.call('HDEL', counter.key, unpack(counter.gone))
    end
    if counter.full and counter.full_units > 0 then
      redis.call('HSET', counter.key, counter.full, counter.full_units)
    end
    counter.ring, counter.gone, counter.full = nil, nil, nil
    if counter.charged then
      redis.call('HSET', counter.key, 'c', counter.charged, 'u', counter.used, 'n', counter.newest, 'h', counter.head)
    else
      redis.call('HSET', counter.key, 'u', counter.used, 'n', counter.newest, 'h', counter.head)
    end
  else
    redis.call('HSET', counter.key, 'c', counter.charged, 'u', counter.used, 'e', counter.stop_at)
  end
  if counter.moved then
    keep(counter)
    counter.moved = false
  end
end

-- Return a window's ring as it stands, whether written or not.
local function ring_now(counter)
  if counter.ring then
    for slot = 1, 60 do
      counter.ring[slot] = counter.ring[slot] or 0
    end
    return counter.ring
  end
  local ring = ring_of(counter)
  for _, slot in ipairs(counter.gone or {}) do
    ring[slot + 1] = 0
  end
  if counter.full then
    ring[counter.full + 1] = counter.full_units
  end
  return ring
end
