-- Heartbeat. ARGV: token, lease (ms).
local lease = tonumber(ARGV[2])
local head, otherwise = owned()
if not head then return otherwise end
-- Lapsed or not: no other request took over, and the owner is alive.
if state_of(head) ~= ONGOING then return answer('N') end
redis.call('SETRANGE', KEYS[1], DEADLINE - 1, u64(now + lease))
redis.call('PEXPIRE', KEYS[1], lease + u64_at(head, UNKNOWN_FOR) + ATTEMPTS_KEPT)
return answer('D')
