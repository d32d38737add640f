//! Where a request goes, and whether the token may go there. Pure.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::OnceLock,
};

use super::hosts::{AllowedHosts, is_loopback};
use crate::token::HostKey;

/// Where a request goes, in its own words.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    pub(super) scheme: Scheme,
    /// A host and perhaps a port. Userinfo may stand before them in a URI that names its scheme.
    pub(super) authority: &'a str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scheme {
    Http,
    Https,
    /// A URI that is not absolute has no scheme: the connection that it is sent on decides.
    Unsaid,
    Other,
}

/// What the rules say of a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The token may go to this host.
    Allowed(HostKey),
    /// It may go to this host, but not like this: it would be seen on the way.
    Insecure,
    /// The host is not allowed.
    NotAllowed,
}

impl Scheme {
    #[inline]
    pub(super) fn of(scheme: &str) -> Self {
        match scheme {
            "https" => Self::Https,
            "http" => Self::Http,
            _ => Self::Other,
        }
    }

    /// Without a scheme, port 80 is known to be plain.
    const fn known_by(self, port: Option<u16>) -> Self {
        match (self, port) {
            (Self::Unsaid, Some(80)) => Self::Http,
            _ => self,
        }
    }

    /// The port that is meant where none is written.
    const fn default_port(self) -> Option<u16> {
        match self {
            Self::Http => Some(80),
            Self::Https => Some(443),
            Self::Unsaid | Self::Other => None,
        }
    }
}

impl<'a> Place<'a> {
    /// The host alone, if the authority is one that can be judged.
    pub(super) fn host(self) -> Option<&'a str> {
        host_and_port(self.authority).map(|(host, _)| host)
    }

    pub(super) fn judge(self, hosts: &AllowedHosts) -> Verdict {
        let Some((host, port)) = host_and_port(self.authority) else {
            return Verdict::NotAllowed;
        };
        let scheme = self.scheme.known_by(port);
        if scheme == Scheme::Other || !hosts.allow(host, port.or(scheme.default_port())) {
            return Verdict::NotAllowed;
        }
        if scheme == Scheme::Http && !is_loopback(host) {
            return Verdict::Insecure;
        }
        Verdict::Allowed(key(host))
    }
}

#[cfg(feature = "reqwest")]
impl Place<'_> {
    /// Whether this is a place at that host.
    pub(super) fn is_at(self, at: HostKey) -> bool {
        self.host().is_some_and(|host| key(host) == at)
    }
}

/// The host and the port that an authority names, if that is all it names beside its userinfo:
/// `[::1].evil.com` is no host, and 99999 no port.
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

fn key(host: &str) -> HostKey {
    let mut hasher = DefaultHasher::new();
    host.hash(&mut hasher);
    HostKey(hasher.finish())
}

/// What one set of rules said of the first few places that were asked for: to compare two texts
/// costs a tenth of what the rules do.
///
/// Nothing is ever replaced in it, so that all threads read it without a lock. A service talks to
/// few hosts; what comes when it is full is judged anew each time.
#[derive(Debug, Default)]
pub(super) struct KnownPlaces {
    known: [OnceLock<Known>; MOST_KNOWN],
}

/// How many places are remembered.
const MOST_KNOWN: usize = 4;

/// The longest authority that is remembered.
const LONGEST: usize = 64;

#[derive(Debug)]
struct Known {
    scheme: Scheme,
    length: usize,
    /// Not a `String`: a request allocates nothing.
    authority: [u8; LONGEST],
    verdict: Verdict,
}

/// For other rules, or for the same: a copy has to find out for itself.
impl Clone for KnownPlaces {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl KnownPlaces {
    /// What the rules say of `place`. They must be the same each time.
    #[inline]
    pub(super) fn judge(&self, hosts: &AllowedHosts, place: Place<'_>) -> Verdict {
        for known in &self.known {
            match known.get() {
                Some(known) if known.is(place) => return known.verdict,
                Some(_) => {}
                None => break,
            }
        }
        self.look_up(hosts, place)
    }

    #[inline(never)]
    fn look_up(&self, hosts: &AllowedHosts, place: Place<'_>) -> Verdict {
        let verdict = place.judge(hosts);
        // Where another thread was faster the place may be lost, or stand there twice.
        if let Some(free) = self.known.iter().find(|known| known.get().is_none()) {
            if let Some(known) = Known::new(place, verdict) {
                let _ = free.set(known);
            }
        }
        verdict
    }
}

impl Known {
    fn new(place: Place<'_>, verdict: Verdict) -> Option<Self> {
        let length = place.authority.len();
        let mut authority = [0; LONGEST];
        // A password in it is nobody's to keep.
        if place.authority.contains('@') {
            return None;
        }
        authority.get_mut(..length)?.copy_from_slice(place.authority.as_bytes());
        Some(Self { scheme: place.scheme, length, authority, verdict })
    }

    #[inline]
    fn is(&self, place: Place<'_>) -> bool {
        self.length == place.authority.len()
            && self.scheme == place.scheme
            && self.authority.get(..self.length) == Some(place.authority.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Places that are alike but for what matters.
    fn places() -> impl Strategy<Value = (Scheme, String)> {
        let schemes = [Scheme::Http, Scheme::Https, Scheme::Unsaid, Scheme::Other];
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
            "a.host.with.so.long.a.name.that.it.is.not.remembered.at.all.whatever.adobe.io",
        ];
        (prop::sample::select(schemes.to_vec()), prop::sample::select(authorities.to_vec()))
            .prop_map(|(scheme, authority)| (scheme, authority.to_owned()))
    }

    proptest! {
        #[test]
        fn what_is_remembered_is_what_the_rules_say(places in prop::collection::vec(places(), 1..40)) {
            let hosts = AllowedHosts::default().with_host("127.0.0.1");
            let known = KnownPlaces::default();

            for (scheme, authority) in &places {
                let place = Place { scheme: *scheme, authority };
                prop_assert_eq!(known.judge(&hosts, place), place.judge(&hosts), "{:?}", place);
            }
        }
    }

    #[test]
    fn a_password_is_not_remembered() {
        let hosts = AllowedHosts::default();
        let known = KnownPlaces::default();

        let place = Place { scheme: Scheme::Https, authority: "user:hunter2@adobe.io" };

        assert!(matches!(known.judge(&hosts, place), Verdict::Allowed(_)));
        assert!(known.known.iter().all(|known| known.get().is_none()));
    }
}
