//! The two steps of a store as Lua scripts, each of which the server runs as one step.
//!
//! The keys are `KEYS[1]` the record, `KEYS[2]` the owner of the lease, and `KEYS[3]` the highest fencing
//! token. A record is kept as its fencing token in decimal digits, a space, and its value. Anybody may
//! have written a value of any type into a key, so that the scripts ignore what this crate cannot have
//! written:
//!
//! - a fencing token that is more than a year ahead of the server's clock, because no other could ever
//!   replace it;
//! - a lease that never ends, or ends more than a minute later than the requested one would, because
//!   nobody could request a token until then.

/// Returns the record with the rest of its time to live in milliseconds (-1: none), and the fencing
/// token of the lease, if it was granted.
///
/// `ARGV`: the owner (empty: no request), the lease's time to live in milliseconds, `above` and `seen`.
/// The owner gets its own lease again, because its first request may have been repeated after a broken
/// connection. A record longer than 128 KiB is returned as an empty one.
pub(super) const ACQUIRE: &str = r"
    local far = (redis.call('TIME')[1] + 31536000) * 1000
    local function fencing(text, pattern)
        local number = type(text) == 'string' and tonumber(string.match(text, pattern) or 0) or 0
        return number < far and number or 0
    end
    local text = redis.pcall('GET', KEYS[1])
    local record = false
    if type(text) == 'string' and #text <= 131072 then
        record = {text, redis.call('PTTL', KEYS[1])}
    elseif text then
        record = {'', -1}
    end
    local kept = fencing(text, '^(%d+) ')
    if ARGV[1] == '' or kept > tonumber(ARGV[4]) then return {record, false} end
    local granted = fencing(redis.pcall('GET', KEYS[3]), '^(%d+)$')
    local token = math.max(kept, granted, tonumber(ARGV[3])) + 1
    if token > 9007199254740992 then return {record, false} end
    local left = redis.call('PTTL', KEYS[2])
    if left == -1 or left > ARGV[2] + 60000 then redis.call('DEL', KEYS[2]) end
    if redis.pcall('GET', KEYS[2]) ~= ARGV[1]
        and not redis.call('SET', KEYS[2], ARGV[1], 'NX', 'PX', ARGV[2]) then return {record, false} end
    redis.call('SET', KEYS[3], string.format('%.0f', token), 'PX', 31536000000)
    return {record, token}";

/// Ends the lease of the owner, and keeps the record if its fencing token is higher than that of the
/// kept one. Returns `committed`, `superseded` or `released`.
///
/// `ARGV`: the owner, the channel and the message to publish if anything changed (ignored if the user
/// must not publish), and of the record, if there is one, the fencing token, the value and the time to
/// live in milliseconds.
///
/// The lease ends first, so that a server without memory for the record keeps no lease either.
pub(super) const COMMIT: &str = r"
    local ended = 0
    if redis.pcall('GET', KEYS[2]) == ARGV[1] then ended = redis.pcall('DEL', KEYS[2]) end
    local outcome = 'released'
    if ARGV[4] then
        local far = (redis.call('TIME')[1] + 31536000) * 1000
        local function fencing(text, pattern)
            local number = type(text) == 'string' and tonumber(string.match(text, pattern) or -1) or -1
            return number < far and number or -1
        end
        local token = tonumber(ARGV[4])
        outcome = 'superseded'
        if fencing(redis.pcall('GET', KEYS[1]), '^(%d+) ') < token then
            redis.call('SET', KEYS[1], ARGV[4] .. ' ' .. ARGV[5], 'PX', ARGV[6])
            if token < far and fencing(redis.pcall('GET', KEYS[3]), '^(%d+)$') < token then
                redis.call('SET', KEYS[3], ARGV[4], 'PX', 31536000000)
            end
            outcome = 'committed'
        end
    end
    if outcome == 'committed' or ended == 1 then redis.pcall('PUBLISH', ARGV[2], ARGV[3]) end
    if type(ended) == 'table' then return ended end
    return outcome";
