-- What the scripts share; it is put before each of them.
--
-- A counter is a hash. Its field s is its state, packed (`state_of`): the numbers that each check reads and most write.
-- Beside it are, of a window, the slots 0 to 59 of its ring, where they are not 0, and of what outlives Redis, once it
-- was seeded,
--   w  how far marks were asked for: every mark's serial so far is at most this
--   q  the period of the newest of them
--   b  the counts of this counter are counted from b * 2^52 on
-- or else i, the incarnation under which it may be seeded, and t, the replication id of the Redis that wrote that.
--
-- An account is a hash: e, the replication id of the Redis that wrote all this, and behind it the account's epoch; or
--   i, the incarnation under which that may be seeded
--   t  that replication id
--   l  when the last of the leases is over that were granted under what this hash knows
--   n  when the hash was made, of leases before which it knows nothing; absent: there were none
--
-- In ARGV a counter is packed too: its kind, its amount, and
--   1 (rolling, at most 5 minutes) and 2 (rolling, longer):  window
--   3 (calendar):                                            the longest period; start, end and next end of one
--   4 (lifetime):                                            0
-- What is packed are doubles, least byte first: one call takes them apart, of text it would be one for each.
-- Times are microseconds. Numbers are exact to 2^53; counts end at MOST, so that one can be added to another.

local MOST = 4503599627370496
local DAY = 86400000000
local SHORTEST_LEASE = 1000
local KEPT = 86400000 -- milliseconds that a counter is kept after nothing in it counts any more

local CHARGED, DENIED, KNOWN, MOVED, MISSING, CLOCK, LOAD, MARK, FAILED = 0, 1, 2, 3, 4, 5, 6, 7, 8

local SHORT, LONG, CALENDAR, LIFETIME = 49, 50, 51, 52 -- the digits that are a counter's kind

local call, floor, min, max = redis.call, math.floor, math.min, math.max
local pack, unpacked, byte, sub = struct.pack, struct.unpack, string.byte, string.sub

local function microseconds(time)
  return time[1] * 1000000 + time[2]
end

local now = microseconds(redis.call('TIME'))

-- The replication id, if it is wanted: who writes under another one has not seen all that this one has.
local id = '-'
if ARGV[1] == '1' then
  local told = call('INFO', 'replication')
  -- Found as plain text first: to look for a pattern takes longer than the command itself.
  local _, before = string.find(told, 'master_replid:', 1, true)
  id = before and string.match(told, '^%x%x%x%x%x%x%x%x%x%x%x%x%x%x%x%x', before + 1)
end

-- All of this is run anew in each call: nothing is made here that most calls do not need.
local function all_slots()
  local slots = {}
  for slot = 0, 59 do
    slots[slot + 1] = slot
  end
  return unpack(slots)
end

-- Whether the number a, in decimal digits, is above b.
local function above(a, b)
  return #a > #b or #a == #b and a > b
end

-- Fail where a state is none: something that is not ours is in it.
local function ours(is)
  if not is then
    error('bad argument: no state of a counter', 0)
  end
end

-- Whether these can be a state's. What is no number is within no bounds.
local function sound(used, head_or_stop, newest)
  return used >= 0 and used <= MOST and newest >= 0 and newest <= MOST and head_or_stop >= -1 and head_or_stop < math.huge
end

-- Return the state of a counter that outlives Redis, packed. With the replication id it has the 64 bytes that a hash's
-- value may have at the most where Redis is to keep it in a compact form (hash-max-listpack-value, by default).
local function state_of(charged, mark, marked, used, head_or_stop, newest)
  return id .. pack('<dddddd', charged, mark, marked, used, head_or_stop, newest)
end

-- Return what `state_of` has packed; nil: nothing is there, or another Redis has written it.
local function taken_apart(state)
  if state and sub(state, 1, #id) == id then
    ours(#state == #id + 48)
    local charged, mark, marked, used, head_or_stop, newest = unpacked('<dddddd', state, #id + 1)
    ours(sound(used, head_or_stop, newest) and math.abs(charged) < math.huge and math.abs(mark) < math.huge)
    return charged, mark, marked, used, head_or_stop, newest
  end
end

-- Return the counter that begins at `at` of what is packed, as Redis has it, and where the next one begins.
-- Its state: of a window used, head and newest; of a span used and stop_at; head and stop_at are -1 where nothing was
-- counted yet. Of one that outlives Redis also
--   charged  how much was ever charged to it (or written off): it never goes back
--   mark     how far that may run: the database holds that mark
--   marked   the period that the mark is of; -1: there is none
-- and before all of these the replication id of the Redis that wrote them. Where that is another, or nothing is there,
-- `known` is false: it must be seeded first.
local function counter_at(key, packed, at)
  local kind = byte(packed, at)
  local state = call('HGET', key, 's')
  local amount, length = unpacked('<dd', packed, at + 1)
  if kind == SHORT then
    local used, head, newest = 0, -1, 0
    if state then
      ours(#state == 24)
      used, head, newest = unpacked('<ddd', state)
      ours(sound(used, head, newest))
    end
    return {
      key = key,
      amount = amount,
      window = length,
      known = true,
      durable = false,
      head = head,
      newest = newest,
      used = used,
      moved = false,
      period = 0,
    },
      at + 17
  end
  local charged, mark, marked, used, head_or_stop, newest = taken_apart(state)
  local known, behind = charged ~= nil, at + (kind == CALENDAR and 41 or 17)
  -- One table for each: what is nil in it would take place, and time.
  if kind == LONG then
    return {
      key = key,
      amount = amount,
      window = length,
      known = known,
      durable = true,
      charged = charged,
      mark = mark,
      marked = marked,
      used = used,
      head = head_or_stop,
      newest = newest,
      moved = false,
      period = 0,
    },
      behind
  end
  return {
    key = key,
    kind = kind,
    packed = packed,
    at = at,
    amount = amount,
    longest = length,
    known = known,
    durable = true,
    charged = charged,
    mark = mark,
    marked = marked,
    used = used,
    stop_at = head_or_stop,
    moved = false,
    period = 0,
  },
    behind
end

-- Write a counter's state as it stands.
local function write(counter)
  local state
  if counter.durable then
    local head_or_stop, newest = counter.head or counter.stop_at, counter.newest or 0
    state = state_of(counter.charged, counter.mark, counter.marked, counter.used, head_or_stop, newest)
  else
    state = pack('<ddd', counter.used, counter.head, counter.newest)
  end
  call('HSET', counter.key, 's', state)
end

-- Leave an incarnation in a counter that is not known here, and return the one that is there.
local function incarnation_of(counter, random)
  local found = call('HMGET', counter.key, 'i', 't')
  if found[1] and found[2] == id then
    return found[1]
  end
  call('DEL', counter.key)
  call('HSET', counter.key, 'i', random, 't', id)
  call('PEXPIRE', counter.key, 3600000)
  return random
end

local function ring_of(counter)
  local ring = call('HMGET', counter.key, all_slots())
  for slot = 1, 60 do
    ring[slot] = tonumber(ring[slot] or 0)
  end
  return ring
end

-- Bring a window to the sub-window `number`, as `_roll` in core/limits.py does; `put` writes it.
local function roll(counter, number)
  local head = counter.head
  if head < 0 then
    counter.head, counter.newest, counter.used, counter.moved = number, 0, 0, true
    counter.ring = {} -- whatever is in its slots is nothing that was counted
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
      counter.used = min(MOST, counter.used + ring[slot])
    end
    counter.ring = ring
    return
  end
  if has_ring then
    local passed = {}
    for each = head, number - 1 do
      passed[#passed + 1] = each % 60
    end
    local units = call('HMGET', counter.key, unpack(passed))
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
    local whole = floor(now / window)
    roll(counter, whole * 60 + floor((now - whole * window) * 60 / window))
    if counter.durable then
      counter.period = floor(now / max(window, DAY))
    end
    return true
  end
  local stop = counter.stop_at
  if counter.kind == LIFETIME then
    counter.period = 0
    if stop < 0 then
      counter.stop_at, counter.used, counter.moved = 0, 0, true
    end
    return true
  end
  if not (now < stop and stop <= now + counter.longest) then
    local first, last, next_last = unpacked('<ddd', counter.packed, counter.at + 17)
    local back = now < stop -- the clock was set back; this period's end could be a moment away
    if back or not (last <= now and now < next_last) then
      if not (first <= now and now < last) then
        return false
      end
      counter.stop_at = back and next_last or last
    else
      counter.stop_at = next_last
    end
    counter.used = back and counter.used or 0
    counter.moved = true
  end
  counter.period = counter.stop_at
  return true
end

-- How much may be charged to a counter, up to now, under its mark; 0 of one that has none.
local function room(counter)
  return counter.marked == counter.period and counter.mark - counter.charged or 0
end

-- Keep a counter as long as something in it, or in its mark, may count.
local function keep(counter)
  if counter.window then
    local last = counter.durable and max(counter.window, DAY) + KEPT * 1000 or 60000000
    call('PEXPIRE', counter.key, math.ceil((2 * counter.window + last) / 1000))
  elseif counter.kind == CALENDAR then
    call('PEXPIRE', counter.key, math.ceil((counter.stop_at - now) / 1000) + KEPT)
  end
end

-- Write a counter, up to now, with `units` charged.
local function put(counter, units)
  if units == 0 and not counter.moved then
    return
  end
  counter.used = min(MOST, counter.used + units)
  if counter.durable then
    counter.charged = counter.charged + units
  end
  if counter.window then
    counter.newest = min(MOST, counter.newest + units)
    if counter.ring then
      call('HDEL', counter.key, all_slots())
      local slots = {}
      for slot = 0, 59 do
        local there = counter.ring[slot + 1] or 0
        if there > 0 then
          slots[#slots + 1] = slot
          slots[#slots + 1] = there
        end
      end
      if #slots > 0 then
        call('HSET', counter.key, unpack(slots))
      end
    elseif counter.gone and #counter.gone > 0 then
      call('HDEL', counter.key, unpack(counter.gone))
    end
    if counter.full and counter.full_units > 0 then
      call('HSET', counter.key, counter.full, counter.full_units)
    end
    counter.ring, counter.gone, counter.full = nil, nil, nil
  end
  write(counter)
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
