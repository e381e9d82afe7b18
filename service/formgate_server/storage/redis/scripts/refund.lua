-- Give back what a remembered admission was charged, as `give_back` in core/limits.py does, and forget it.
--
-- KEYS: the one that remembers it; those of its counters.
-- ARGV: '1' if replication ids are compared; what is remembered, whole; its time; its cost; then for each counter its
--   kind, its window or longest period (a lifetime: 0), and the moment at which it was charged.
-- Result: 1; 0: it is not remembered, or something else is.

if redis.call('GET', KEYS[1]) ~= ARGV[2] then
  return 0
end
redis.call('DEL', KEYS[1])
if math.abs(now - ARGV[3]) >= 60000000 then
  return 0
end
local id, cost = replication(ARGV[1]), tonumber(ARGV[4])

local function give_back_to_window(counter, charged_at)
  if counter.head - 60 > charged_at or charged_at > counter.head or counter.used >= MOST then
    return
  end
  local back
  if charged_at == counter.head then
    back = math.min(cost, counter.newest)
    counter.newest = counter.newest - back
  else
    local slot = charged_at % 60
    back = math.min(cost, tonumber(redis.call('HGET', counter.key, slot) or 0))
    if back > 0 then
      redis.call('HINCRBY', counter.key, slot, -back)
    end
  end
  counter.used = counter.used - back
end

for index = 2, #KEYS do
  local at = index * 3 - 1
  local counter = { key = KEYS[index], kind = ARGV[at], durable = ARGV[at] ~= '1' }
  local charged_at, length = tonumber(ARGV[at + 2]), tonumber(ARGV[at + 1])
  if counter.kind == '1' or counter.kind == '2' then
    counter.window = length
  end
  if read(counter, id) then
    if counter.window and counter.head then
      bring(counter)
      put(counter, 0)
      give_back_to_window(counter, charged_at)
      counter.moved = true
      put(counter, 0)
    elseif counter.stop_at == charged_at and counter.used < MOST then
      if counter.kind == '4' or now < charged_at and charged_at <= now + length then
        redis.call('HSET', counter.key, 'u', math.max(0, counter.used - cost))
      end
    end
  end
end
return 1
