-- Claims KEYS[1], or returns its record. ARGV: the claim's head, with deadline, attempt and first seen not
-- filled in; lease (ms); the claim's deadline in transit by this clock (ms; 0: not known).
local claim, lease, not_after = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])

local function put(attempt, first_seen)
  -- It was in transit for too long. Its sender has given up, and may have released it already.
  if not_after > 0 and now > not_after then return answer('L' .. u64(now)) end
  local record = claim:sub(1, DEADLINE - 1) .. u64(now + lease) .. claim:sub(UNKNOWN_FOR, ATTEMPT - 1)
    .. u32(attempt) .. first_seen .. claim:sub(STATUS)
  redis.call('SET', KEYS[1], record, 'PX', lease + u64_at(claim, UNKNOWN_FOR) + ATTEMPTS_KEPT)
  return answer('C' .. u64(now) .. u32(attempt))
end

local record = redis.call('GET', KEYS[1])
if not record then return put(1, u64(now)) end
local wrong = unreadable(record)
if wrong then return redis.error_reply(wrong) end

local state, deadline = state_of(record), u64_at(record, DEADLINE)
if state == ONGOING and now >= deadline then
  -- The lease has lapsed: the outcome is unknown.
  state, deadline = UNKNOWN, deadline + u64_at(record, UNKNOWN_FOR)
  record = with_state(record, state, deadline)
end
if now < deadline then
  -- A retry of itself: its first reply was lost.
  if state == ONGOING and token_of(record) == token_of(claim) then
    return answer('C' .. u64(now) .. record:sub(ATTEMPT, FIRST_SEEN - 1))
  end
  return answer('E' .. u64(now) .. record)
end
if state == UNKNOWN then
  return put(u32_at(record, ATTEMPT) + 1, record:sub(FIRST_SEEN, STATUS - 1))
end
return put(1, u64(now))
