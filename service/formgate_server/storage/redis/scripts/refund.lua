-- Give back what a remembered admission was charged, as `give_back` in core/limits.py does, and forget it.
--
-- KEYS: the one that remembers it; those of its counters.
-- ARGV: '1' if replication ids are compared; what is remembered, whole; its time; how many units to give back; for how
--   many microseconds it may be given back; its counters, packed; the moment at which each of them was charged.
-- Result: 1; 0: it is not remembered, or something else is.

if call('GET', KEYS[1]) ~= ARGV[2] then
  return 0
end
call('DEL', KEYS[1])
if math.abs(now - ARGV[3]) >= tonumber(ARGV[5]) then
  return 0
end
local cost = tonumber(ARGV[4])

local function give_back_to_window(counter, charged_at)
  if counter.head - 60 > charged_at or charged_at > counter.head or counter.used >= MOST then
    return
  end
  local back
  if charged_at == counter.head then
    back = min(cost, counter.newest)
    counter.newest = counter.newest - back
  else
    local slot = charged_at % 60
    back = min(cost, tonumber(call('HGET', counter.key, slot) or 0))
    if back > 0 then
      call('HINCRBY', counter.key, slot, -back)
    end
  end
  counter.used = counter.used - back
end

local next_one = 1
for index = 2, #KEYS do
  local counter
  counter, next_one = counter_at(KEYS[index], ARGV[6], next_one)
  local charged_at = tonumber(ARGV[5 + index])
  if not counter.known then
    -- Gone: what will be restored counts it as charged.
  elseif counter.window then
    if counter.head >= 0 then
      bring(counter)
      put(counter, 0)
      give_back_to_window(counter, charged_at)
      counter.moved = true
      put(counter, 0)
    end
  elseif counter.stop_at == charged_at and counter.used < MOST then
    if counter.kind == LIFETIME or now < charged_at and charged_at <= now + counter.longest then
      counter.used = max(0, counter.used - cost)
      write(counter)
    end
  end
end
return 1
