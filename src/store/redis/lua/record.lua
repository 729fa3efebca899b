-- Shared by all scripts. The line before this one, made from the codec, has the offsets of a record's fields,
-- counted from 1, and the letters of its states. ATTEMPTS_KEPT is in milliseconds.

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function u32(number) return struct.pack('>I4', number) end
local function u64(number) return struct.pack('>I8', number) end
local function u32_at(record, at) return (struct.unpack('>I4', record, at)) end
local function u64_at(record, at) return (struct.unpack('>I8', record, at)) end
local function token_of(record) return record:sub(TOKEN, FINGERPRINT - 1) end
local function state_of(record) return record:sub(STATE, STATE) end

-- The first argument is the claim's token, or its head. Every reply begins with four bytes of the token, which
-- name the command that it answers.
local token = #ARGV[1] == HEAD_LEN and token_of(ARGV[1]) or ARGV[1]
local function answer(rest) return token:sub(1, 4) .. rest end

-- The error of a record, nil if there is none. Never a miss: an unreadable record may be a claim.
local function unreadable(record)
  if #record < HEAD_LEN then return 'UNREADABLE the record is shorter than its head' end
  if record:byte(1) ~= VERSION then return 'UNREADABLE the record was written by another version' end
  if not STATES:find(state_of(record), 1, true) then
    return 'UNREADABLE the record is in a state that does not exist'
  end
end

-- The head of the record that the token owns; else nil and the reply. The answer is not read.
local function owned()
  local head = redis.call('GETRANGE', KEYS[1], 0, HEAD_LEN - 1)
  if head == '' then return nil, answer('N') end
  local wrong = unreadable(head)
  if wrong then return nil, redis.error_reply(wrong) end
  if token_of(head) ~= token then return nil, answer('N') end
  return head
end

-- The same head in another state.
local function with_state(head, state, deadline)
  return head:sub(1, STATE - 1) .. state .. head:sub(TOKEN, DEADLINE - 1) .. u64(deadline) .. u64(0)
    .. head:sub(ATTEMPT, HEAD_LEN)
end

-- Wakes the requests that wait for the end of the claim. A user without the right to publish still ends claims.
local function ended() redis.pcall('PUBLISH', KEYS[1], '') end
