-- Nothing was executed. ARGV: token.
local head, otherwise = owned()
if not head then return otherwise end
local state = state_of(head)
if state ~= ONGOING and state ~= UNKNOWN then return answer('N') end
local attempt = u32_at(head, ATTEMPT)
if attempt > 1 then
  -- The attempts before this one may have run; this one has not.
  head = head:sub(1, ATTEMPT - 1) .. u32(attempt - 1) .. head:sub(FIRST_SEEN, HEAD_LEN)
  redis.call('SET', KEYS[1], with_state(head, UNKNOWN, now), 'PX', ATTEMPTS_KEPT)
else
  redis.call('DEL', KEYS[1])
end
ended()
return answer('D')
