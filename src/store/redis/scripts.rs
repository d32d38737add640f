//! What is one step at the server. The first key of all but the leases' is the only one.
//!
//! A value is its version in decimal digits, a space, and what is kept. Versions are about the time
//! in milliseconds: one that is a year ahead of it is none of ours, and nothing could replace it. A
//! key may hold anything, of any type, that somebody wrote by mistake.

/// The value and what is left of its time in milliseconds (-1 if it has no end), or nothing. What is
/// longer than any of ours stays there.
pub(super) const LOAD: &str = r"
    local kept = redis.pcall('GET', KEYS[1])
    if not kept then return false end
    if type(kept) ~= 'string' or #kept > 131072 then return {'', -1} end
    return {kept, redis.call('PTTL', KEYS[1])}";

/// Keeps the value ARGV[2] of version ARGV[1] for ARGV[3] milliseconds, unless a newer one is kept.
/// Says ARGV[5] on the channel ARGV[4] then, if that is allowed.
pub(super) const SAVE: &str = r"
    local far = (redis.call('TIME')[1] + 31536000) * 1000
    local kept = redis.pcall('GET', KEYS[1])
    local version = type(kept) == 'string' and tonumber(string.match(kept, '^(%d+) ') or 0) or 0
    if version >= tonumber(ARGV[1]) and version < far then return 0 end
    redis.call('SET', KEYS[1], ARGV[1] .. ' ' .. ARGV[2], 'PX', ARGV[3])
    redis.pcall('PUBLISH', ARGV[4], ARGV[5])
    return 1";

/// A lease for the owner ARGV[1] and ARGV[2] milliseconds: its version, which is above ARGV[3], or
/// nothing if somebody has it. Asked again, as after a connection that broke, the owner gets it
/// again. A lease without an end is none of ours.
pub(super) const LEASE: &str = r"
    if redis.call('PTTL', KEYS[1]) == -1 then redis.call('DEL', KEYS[1]) end
    if redis.pcall('GET', KEYS[1]) ~= ARGV[1]
        and not redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return false end
    local far = (redis.call('TIME')[1] + 31536000) * 1000
    local version = tonumber(ARGV[3])
    local function above(text)
        local other = tonumber(text or 0) or 0
        if other < far and other > version then version = other end
    end
    local granted = redis.pcall('GET', KEYS[2])
    if type(granted) == 'string' then above(string.match(granted, '^%d+$')) end
    local kept = redis.pcall('GET', KEYS[3])
    if type(kept) == 'string' then above(string.match(kept, '^(%d+) ')) end
    version = version + 1
    redis.call('SET', KEYS[2], string.format('%.0f', version), 'PX', 31536000000)
    return version";

/// Ends the lease of the owner ARGV[1].
pub(super) const RELEASE: &str = r"
    if redis.pcall('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
    return redis.status_reply('OK')";
