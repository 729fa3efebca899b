-- The execution ended. ARGV: token, ttl (ms), the record to keep; its fingerprint, deadline, attempt
-- and first seen are not filled in.
local ttl, kept = tonumber(ARGV[2]), ARGV[3]
local head, otherwise = owned()
if not head then return otherwise end
local state = state_of(head)
-- A retry of itself: its first reply was lost.
if state ~= ONGOING and state ~= UNKNOWN then return answer('D') end
local record = kept:sub(1, FINGERPRINT - 1) .. head:sub(FINGERPRINT, DEADLINE - 1) .. u64(now + ttl)
  .. kept:sub(UNKNOWN_FOR, ATTEMPT - 1) .. head:sub(ATTEMPT, STATUS - 1) .. kept:sub(STATUS)
-- Redis has no time to live of zero; the deadline says that it is over.
redis.call('SET', KEYS[1], record, 'PX', math.max(ttl, 1))
ended()
return answer('D')
