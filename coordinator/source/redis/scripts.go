package redis

import "github.com/redis/go-redis/v9"

// All changes of more than one key are scripts: Redis runs each as a whole or, when it is killed, not at all. Times are the
// server's. KEYS[1] is the set of delayed messages in every script; the streams of the classes follow.

// publish stores one message unless its id was seen: KEYS[2] stream, KEYS[3] mark of the id; ARGV: window in ms, delay in ms,
// class, then the fields.
var publish = redis.NewScript(`
if not redis.call('SET', KEYS[3], 1, 'NX', 'PX', ARGV[1]) then return 0 end
local fields = {}
for i = 4, #ARGV do fields[#fields + 1] = ARGV[i] end
local delay = tonumber(ARGV[2])
if delay > 0 then
  local t = redis.call('TIME')
  local due = t[1] * 1000 + math.floor(t[2] / 1000) + delay
  redis.call('ZADD', KEYS[1], due, cmsgpack.pack({redis.call('INCR', KEYS[1] .. ':n'), ARGV[3], fields}))
else
  redis.call('XADD', KEYS[2], '*', unpack(fields))
end
return 1`)

// tick moves delayed messages that are due into their streams and takes over messages whose lease ended. ARGV: group,
// consumer, lease in ms (0: take over nothing), how many to take over at most, how many looks at a stream at most. Returns whether
// it saw all there is to take over, and what it took over: class, id, deliveries, fields.
var tick = redis.NewScript(`
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, 200)) do
  local m = cmsgpack.unpack(member)
  redis.call('XADD', KEYS[2 + tonumber(m[2])] or KEYS[2], '*', unpack(m[3]))
  redis.call('ZREM', KEYS[1], member)
end
local got, all = {}, 1
local left = tonumber(ARGV[4])
if tonumber(ARGV[3]) == 0 then return {0, got} end
for k = #KEYS, 2, -1 do
  local cursor = '0-0'
  local seen = 0
  for _ = 1, tonumber(ARGV[5]) do
    if left <= 0 then break end
    local r = redis.call('XAUTOCLAIM', KEYS[k], ARGV[1], ARGV[2], ARGV[3], cursor, 'COUNT', left)
    for _, entry in ipairs(r[2]) do
      local p = redis.call('XPENDING', KEYS[k], ARGV[1], entry[1], entry[1], 1)
      got[#got + 1] = {k - 2, entry[1], p[1][4], entry[2]}
      left = left - 1
    end
    cursor = r[1]
    if cursor == '0-0' then
      seen = 1
      break
    end
  end
  if seen == 0 then all = 0 end
end
return {all, got}`)

// extend starts leases anew. KEYS[2] stream; ARGV: group, consumer, ids. Returns 1 for each that is still ours.
var extend = redis.NewScript(`
local out = {}
for i = 3, #ARGV do
  local p = redis.call('XPENDING', KEYS[2], ARGV[1], ARGV[i], ARGV[i], 1, ARGV[2])
  out[#out + 1] = #p
  if #p > 0 then redis.call('XCLAIM', KEYS[2], ARGV[1], ARGV[2], 0, ARGV[i], 'JUSTID') end
end
return out`)

// ack removes messages, with keys, arguments and result as in extend.
var ack = redis.NewScript(`
local out = {}
for i = 3, #ARGV do
  local p = redis.call('XPENDING', KEYS[2], ARGV[1], ARGV[i], ARGV[i], 1, ARGV[2])
  out[#out + 1] = #p
  if #p > 0 then
    redis.call('XACK', KEYS[2], ARGV[1], ARGV[i])
    redis.call('XDEL', KEYS[2], ARGV[i])
  end
end
return out`)

// release gives messages back: ARGV: group, consumer, delay in ms, class, ids. A stream's entries cannot be handed out a second
// time to whoever asks first, so it is a new entry, with the count of deliveries and the first entry's id.
var release = redis.NewScript(`
local out = {}
for i = 5, #ARGV do
  local p = redis.call('XPENDING', KEYS[2], ARGV[1], ARGV[i], ARGV[i], 1, ARGV[2])
  out[#out + 1] = #p
  local e = redis.call('XRANGE', KEYS[2], ARGV[i], ARGV[i])
  if #p > 0 and #e > 0 then
    local count, origin, fields = p[1][4], ARGV[i], {}
    local old = e[1][2]
    for j = 1, #old, 2 do
      if old[j] == 'retinue-count' then count = count + tonumber(old[j + 1])
      elseif old[j] == 'retinue-origin' then origin = old[j + 1]
      else fields[#fields + 1] = old[j]; fields[#fields + 1] = old[j + 1] end
    end
    fields[#fields + 1] = 'retinue-count'; fields[#fields + 1] = tostring(count)
    fields[#fields + 1] = 'retinue-origin'; fields[#fields + 1] = origin
    redis.call('XACK', KEYS[2], ARGV[1], ARGV[i])
    redis.call('XDEL', KEYS[2], ARGV[i])
    local delay = tonumber(ARGV[3])
    if delay > 0 then
      local t = redis.call('TIME')
      local due = t[1] * 1000 + math.floor(t[2] / 1000) + delay
      redis.call('ZADD', KEYS[1], due, cmsgpack.pack({redis.call('INCR', KEYS[1] .. ':n'), ARGV[4], fields}))
    else
      redis.call('XADD', KEYS[2], '*', unpack(fields))
    end
  end
end
return out`)

// back gives messages back where they lie, for whoever takes over next: the oldest first, and all of them before what nobody had. The
// entry stays pending, with a lease that ended long ago, at a consumer that is none. With keys, arguments and result as in extend.
var back = redis.NewScript(`
local out = {}
for i = 3, #ARGV do
  local p = redis.call('XPENDING', KEYS[2], ARGV[1], ARGV[i], ARGV[i], 1, ARGV[2])
  out[#out + 1] = #p
  if #p > 0 then redis.call('XCLAIM', KEYS[2], ARGV[1], '` + nobody + `', 0, ARGV[i], 'TIME', 1, 'JUSTID') end
end
return out`)

// missed gives back what a consumer has and does not know of, because the answer was lost. KEYS[2] stream; ARGV: group, consumer,
// the ids that it knows of.
var missed = redis.NewScript(`
local known = {}
for i = 3, #ARGV do known[ARGV[i]] = true end
local from = '-'
while true do
  local p = redis.call('XPENDING', KEYS[2], ARGV[1], from, '+', 500, ARGV[2])
  for _, e in ipairs(p) do
    if not known[e[1]] then redis.call('XCLAIM', KEYS[2], ARGV[1], '` + nobody + `', 0, e[1], 'TIME', 1, 'JUSTID') end
    from = '(' .. e[1]
  end
  if #p == 0 then break end
end
return 0`)

// nobody is the consumer of messages that were given back. No real one has that name.
const nobody = "(given back)"

// depth counts: ARGV: group, and who has what was given back. Returns ready, delayed, in flight, and for the first entries of each
// class that wait the time of publication, or the id.
var depth = redis.NewScript(`
local ready, flying, first = 0, 0, {}
local function oldest(e)
  if #e > 0 then
    local at = e[1][1]
    for j = 1, #e[1][2], 2 do if e[1][2][j] == 'retinue-published' then at = e[1][2][j + 1] end end
    first[#first + 1] = at
  end
end
for k = 2, #KEYS do
  local p = redis.call('XPENDING', KEYS[k], ARGV[1])
  local pending = p[1]
  for _, c in ipairs(p[4] or {}) do
    if c[1] == ARGV[2] then
      pending = pending - c[2]
      local e = redis.call('XPENDING', KEYS[k], ARGV[1], '-', '+', 1, ARGV[2])
      if #e > 0 then oldest(redis.call('XRANGE', KEYS[k], e[1][1], e[1][1])) end
    end
  end
  flying = flying + pending
  ready = ready + redis.call('XLEN', KEYS[k]) - pending
  for _, g in ipairs(redis.call('XINFO', 'GROUPS', KEYS[k])) do
    local name, last
    for j = 1, #g, 2 do
      if g[j] == 'name' then name = g[j + 1] elseif g[j] == 'last-delivered-id' then last = g[j + 1] end
    end
    if name == ARGV[1] then oldest(redis.call('XRANGE', KEYS[k], '(' .. last, '+', 'COUNT', 1)) end
  end
end
local t = redis.call('TIME')
return {ready, redis.call('ZCARD', KEYS[1]), flying, t[1] * 1000 + math.floor(t[2] / 1000), first}`)

// sweep forgets consumers that have nothing and were not seen for an hour. ARGV: group.
var sweep = redis.NewScript(`
for k = 2, #KEYS do
  for _, c in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[k], ARGV[1])) do
    local f = {}
    for j = 1, #c, 2 do f[c[j]] = c[j + 1] end
    if f['pending'] == 0 and f['idle'] > 3600000 then redis.call('XGROUP', 'DELCONSUMER', KEYS[k], ARGV[1], f['name']) end
  end
end
return 0`)
