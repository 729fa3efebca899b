-- Nothing was executed. ARGV: token.
local head, otherwise = owned()
if not head then return otherwise end
local state = state_of(head)
if state ~= ONGOING and state ~= UNKNOWN then return answer('N') end
if u32_at(head, ATTEMPT) > 1 then
  redis.call('SET', KEYS[1], with_state(head, UNKNOWN, now), 'PX', ATTEMPTS_KEPT)
else
  redis.call('DEL', KEYS[1])
end
ended()
return answer('D')
