-- It may have run; the outcome is unknown. ARGV: token, for how long (ms).
local unknown_for = tonumber(ARGV[2])
local head, otherwise = owned()
if not head then return otherwise end
local state = state_of(head)
if state ~= ONGOING and state ~= UNKNOWN then return answer('N') end
redis.call('SET', KEYS[1], with_state(head, UNKNOWN, now + unknown_for), 'PX', unknown_for + ATTEMPTS_KEPT)
ended()
return answer('D')
