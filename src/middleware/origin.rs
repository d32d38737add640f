//! [`RequestOrigin`]: the origin that a request goes to (RFC 6454), and whether the token may go there.
//! Pure.

use std::{
    hash::{BuildHasher, Hash, Hasher, RandomState},
    sync::{LazyLock, OnceLock},
};

use super::hosts::{AllowedHosts, is_loopback, parse_address, undotted};
use crate::source::OriginKey;

/// The scheme, host and port that a request goes to, as the request spells them.
#[derive(Clone, Copy, Debug)]
pub struct RequestOrigin<'a> {
    pub(super) scheme: Scheme,
    /// A host, and perhaps a port. In a URI with a scheme, userinfo may stand before them.
    pub(super) authority: &'a str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scheme {
    Http,
    Https,
    /// The URI has no scheme, so the connection that the request is sent on decides.
    Unknown,
    Other,
}

/// The decision of the allow-list about an origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The token may go to this origin.
    Allowed(OriginKey),
    /// The host is allowed, but the token would be readable on the network.
    Insecure,
    /// The host is not allowed.
    NotAllowed,
}

const HTTP_PORT: u16 = 80;
const HTTPS_PORT: u16 = 443;

impl Scheme {
    #[inline]
    pub(super) fn of(scheme: &str) -> Self {
        match scheme {
            "https" => Self::Https,
            "http" => Self::Http,
            _ => Self::Other,
        }
    }

    /// The scheme, guessed from the port if the URI has none: port 80 speaks plain `http`.
    const fn or_of_port(self, port: Option<u16>) -> Self {
        match (self, port) {
            (Self::Unknown, Some(HTTP_PORT)) => Self::Http,
            _ => self,
        }
    }

    /// The port of an authority that names none.
    const fn default_port(self) -> Option<u16> {
        match self {
            Self::Http => Some(HTTP_PORT),
            Self::Https => Some(HTTPS_PORT),
            Self::Unknown | Self::Other => None,
        }
    }
}

impl RequestOrigin<'_> {
    pub(super) fn judge(self, hosts: &AllowedHosts) -> Verdict {
        let Some((host, port)) = host_and_port(self.authority) else {
            return Verdict::NotAllowed;
        };
        let scheme = self.scheme.or_of_port(port);
        let port = port.or(scheme.default_port());
        if scheme == Scheme::Other || !hosts.allow(host, port) {
            return Verdict::NotAllowed;
        }
        if scheme == Scheme::Http && !is_loopback(host) {
            return Verdict::Insecure;
        }
        Verdict::Allowed(key(host, port))
    }
}

#[cfg(feature = "reqwest")]
impl RequestOrigin<'_> {
    /// Returns whether this is the origin with that key.
    pub(super) fn is(self, origin: OriginKey) -> bool {
        host_and_port(self.authority).is_some_and(|(host, port)| {
            let port = port.or(self.scheme.or_of_port(port).default_port());
            key(host, port) == origin
        })
    }
}

/// The host of an authority, or `None` if the authority is malformed.
pub(super) fn host_of(authority: &str) -> Option<&str> {
    host_and_port(authority).map(|(host, _)| host)
}

/// The host and the port of an authority, or `None` if it has other parts besides userinfo.
/// The host `[::1].evil.com` and the port 99999 are malformed.
fn host_and_port(authority: &str) -> Option<(&str, Option<u16>)> {
    let text = authority.rsplit_once('@').map_or(authority, |(_userinfo, text)| text);
    let end = match text.strip_prefix('[') {
        Some(_) => text.find(']')? + 1,
        None => text.find(':').unwrap_or(text.len()),
    };
    let (host, port) = text.split_at(end);
    match port {
        "" | ":" => Some((host, None)),
        _ => {
            let digits = port.strip_prefix(':')?;
            let is_number = digits.bytes().all(|digit| digit.is_ascii_digit());
            Some((host, Some(digits.parse().ok().filter(|_| is_number)?)))
        }
    }
}

/// The key of an origin, which is the same however the origin is spelled: letter case, one trailing
/// dot, the default port and the notation of an IP address do not matter. The scheme is part of the
/// key only by its port.
///
/// Without a port and a scheme the port is taken to be 443, because Adobe's APIs are served there.
fn key(host: &str, port: Option<u16>) -> OriginKey {
    // Randomly keyed, so that a caller who chooses host names cannot produce two with the same key.
    static STATE: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    let mut hasher = STATE.build_hasher();
    match parse_address(host) {
        Some(address) => address.to_canonical().hash(&mut hasher),
        None => {
            // In pieces of 32 bytes, because hashing byte by byte takes ten times as long.
            let mut lower = [0; 32];
            for piece in undotted(host).as_bytes().chunks(lower.len()) {
                let lower = &mut lower[..piece.len()];
                lower.copy_from_slice(piece);
                lower.make_ascii_lowercase();
                hasher.write(lower);
            }
        }
    }
    hasher.write_u16(port.unwrap_or(HTTPS_PORT));
    OriginKey(hasher.finish())
}

/// A cache of the verdicts of one allow-list about the first few origins that requests went to.
///
/// Reading a cached verdict takes fewer instructions than judging the whole host: a rule that read
/// eight bytes at a time took 160 more for each request. An entry is never replaced, so all threads
/// read the entries without a lock. Most services talk to few origins. When all entries are taken, a
/// request to any other origin is judged by the allow-list.
#[derive(Debug, Default)]
pub(super) struct KnownOrigins {
    known: [OnceLock<Known>; MAX_KNOWN],
}

/// Bounds the memory, and the comparisons for an origin that is not among the entries.
const MAX_KNOWN: usize = 4;

/// The longest authority of an entry, in bytes. It bounds the memory of an entry.
const MAX_LENGTH: usize = 64;

#[derive(Debug)]
struct Known {
    scheme: Scheme,
    length: usize,
    /// An array, because a request must not allocate.
    authority: [u8; MAX_LENGTH],
    verdict: Verdict,
}

/// A clone is empty, because the allow-list of the clone may be changed.
impl Clone for KnownOrigins {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl KnownOrigins {
    /// The verdict of `hosts` about `origin`. `hosts` must be the same in each call.
    #[inline]
    pub(super) fn judge(&self, hosts: &AllowedHosts, origin: RequestOrigin<'_>) -> Verdict {
        let RequestOrigin { scheme, authority } = origin;
        match self.known[0].get() {
            Some(known) if known.is(scheme, authority) => known.verdict,
            _ => self.judge_further(hosts, scheme, authority),
        }
    }

    // The parts of an origin are passed in registers; the whole would be built in memory first.
    #[inline(never)]
    fn judge_further(&self, hosts: &AllowedHosts, scheme: Scheme, authority: &str) -> Verdict {
        let mut known = self.known.iter().map_while(OnceLock::get);
        if let Some(known) = known.find(|known| known.is(scheme, authority)) {
            return known.verdict;
        }
        let origin = RequestOrigin { scheme, authority };
        let verdict = origin.judge(hosts);
        // If another thread fills the same entry first, a later request caches this origin.
        if let Some(free) = self.known.iter().find(|known| known.get().is_none()) {
            if let Some(known) = Known::new(origin, verdict) {
                let _ = free.set(known);
            }
        }
        verdict
    }
}

impl Known {
    fn new(origin: RequestOrigin<'_>, verdict: Verdict) -> Option<Self> {
        let length = origin.authority.len();
        let mut authority = [0; MAX_LENGTH];
        // Userinfo may contain a password, which must not stay in memory.
        if origin.authority.contains('@') {
            return None;
        }
        authority.get_mut(..length)?.copy_from_slice(origin.authority.as_bytes());
        Some(Self { scheme: origin.scheme, length, authority, verdict })
    }

    #[inline]
    fn is(&self, scheme: Scheme, authority: &str) -> bool {
        self.length == authority.len()
            && self.scheme == scheme
            && self.authority.get(..authority.len()) == Some(authority.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Origins that differ in one detail each.
    fn origins() -> impl Strategy<Value = (Scheme, String)> {
        let schemes = [Scheme::Http, Scheme::Https, Scheme::Unknown, Scheme::Other];
        let authorities = [
            "adobe.io",
            "ADOBE.io",
            "adobe.io:80",
            "adobe.io:443",
            "adobe.io:",
            "adobe.io.",
            "adobe.ioo",
            "x.adobe.io",
            "x.adobe.io:99999",
            "user:password@adobe.io",
            "adobe.io@evil.com",
            "127.0.0.1",
            "127.0.0.1:80",
            "[::1]",
            "[::1].evil.com",
            "",
            "a.host.with.so.long.a.name.that.its.verdict.is.not.kept.at.all.ever.adobe.io",
        ];
        (prop::sample::select(schemes.to_vec()), prop::sample::select(authorities.to_vec()))
            .prop_map(|(scheme, authority)| (scheme, authority.to_owned()))
    }

    proptest! {
        #[test]
        fn a_kept_verdict_is_that_of_the_rules(origins in prop::collection::vec(origins(), 1..40)) {
            let hosts = AllowedHosts::default().with_host("127.0.0.1");
            let known = KnownOrigins::default();

            for (scheme, authority) in &origins {
                let origin = RequestOrigin { scheme: *scheme, authority };
                prop_assert_eq!(known.judge(&hosts, origin), origin.judge(&hosts), "{:?}", origin);
            }
        }
    }

    fn allowed(scheme: Scheme, authority: &str) -> OriginKey {
        let hosts = AllowedHosts::default().with_host("127.0.0.1").with_host("::1");
        match (RequestOrigin { scheme, authority }).judge(&hosts) {
            Verdict::Allowed(key) => key,
            verdict => panic!("{authority}: {verdict:?}"),
        }
    }

    proptest! {
        #[test]
        fn the_spelling_of_an_origin_does_not_change_its_key(
            label in "[a-z0-9_-]{1,63}",
            case in any::<u64>(),
            dot in "\\.?",
            port in prop::sample::select(vec!["", ":", ":443", ":0443"]),
            userinfo in prop::sample::select(vec!["", "user@", "user:pa@ss@"]),
            scheme in prop::sample::select(vec![Scheme::Https, Scheme::Unknown]),
        ) {
            let name = format!("{label}.adobe.io");
            let letter = |(at, letter): (usize, char)| {
                if case >> (at % 64) & 1 == 1 { letter.to_ascii_uppercase() } else { letter }
            };
            let spelled: String = name.char_indices().map(letter).collect();

            let key = allowed(scheme, &format!("{userinfo}{spelled}{dot}{port}"));

            prop_assert_eq!(key, allowed(Scheme::Https, &name));
        }
    }

    #[test]
    fn the_key_tells_hosts_and_ports_apart() {
        let keys = [
            allowed(Scheme::Https, "adobe.io"),
            allowed(Scheme::Https, "a.adobe.io"),
            allowed(Scheme::Https, "aa.adobe.io"),
            allowed(Scheme::Https, "adobe.io:8443"),
            allowed(Scheme::Https, "adobe.io:80"),
            allowed(Scheme::Https, "127.0.0.1"),
            allowed(Scheme::Http, "127.0.0.1"),
            allowed(Scheme::Http, "127.0.0.1:8080"),
            allowed(Scheme::Http, "[::1]"),
            allowed(Scheme::Http, "[::1]:8080"),
        ];

        for (at, key) in keys.iter().enumerate() {
            assert!(!keys[..at].contains(key), "{at}");
        }
    }

    #[test]
    fn the_notation_of_an_address_does_not_change_its_key() {
        let loopback = allowed(Scheme::Http, "[::1]:80");

        for notation in ["[::1]", "[0:0:0:0:0:0:0:1]", "[0000::0001]", "[::0.0.0.1]"] {
            assert_eq!(allowed(Scheme::Http, notation), loopback, "{notation}");
        }
    }

    #[test]
    fn an_authority_with_userinfo_is_not_kept() {
        let hosts = AllowedHosts::default();
        let known = KnownOrigins::default();

        let origin = RequestOrigin { scheme: Scheme::Https, authority: "user:hunter2@adobe.io" };

        assert!(matches!(known.judge(&hosts, origin), Verdict::Allowed(_)));
        assert!(known.known.iter().all(|known| known.get().is_none()));
    }
}
