//! [`AllowedHosts`]: the allow-list of hosts that get the token. Pure.
//!
//! A token of Adobe IMS acts for a whole organization, for a day. Firefly and similar APIs return
//! pre-signed URLs of storage hosts that Adobe does not operate, and applications fetch these URLs
//! through the same client. Such a host would reject or log the token. So the token goes only to
//! hosts on the allow-list, compared label by label.

use std::net::IpAddr;

/// The hosts that get the token: by default `adobe.io` and its subdomains.
///
/// Names are compared label by label, without regard to letter case and one trailing dot:
/// `firefly-api.adobe.io` is a subdomain of `adobe.io`, `evil-adobe.io` is not. IP addresses are
/// compared as addresses. Names are not resolved. A name with characters outside ASCII has to be
/// given in its punycode form.
///
/// # Example
///
/// ```
/// use tower_adobe_auth::AllowedHosts;
///
/// let hosts = AllowedHosts::default().with_host("api.frame.io");
///
/// assert!(hosts.allow("firefly-api.adobe.io", None));
/// assert!(hosts.allow("api.frame.io", Some(443)));
/// assert!(!hosts.allow("adobe.io.evil.com", None));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowedHosts {
    rules: Vec<Rule>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Rule {
    /// This host; on this port only, if one was given.
    Exactly(Host, Option<u16>),
    /// This domain and its subdomains.
    Within(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Host {
    Address(IpAddr),
    /// In lower case, without a trailing dot.
    Name(String),
}

impl Default for AllowedHosts {
    fn default() -> Self {
        Self::none().with_subdomains_of("adobe.io")
    }
}

impl AllowedHosts {
    /// An empty allow-list, to start a list of your own.
    #[must_use]
    pub const fn none() -> Self {
        Self { rules: Vec::new() }
    }

    /// Adds exactly this host: on any port, or on one port if given as `host:port`.
    ///
    /// A URL adds its host, on its port if it names one. A value without a valid host is ignored.
    #[must_use]
    pub fn with_host(mut self, host: impl AsRef<str>) -> Self {
        if let Some((host, port)) = parse(host.as_ref()) {
            self.rules.push(Rule::Exactly(host, port));
        }
        self
    }

    /// Adds this domain and all its subdomains, on any port. A value that is not a domain name is
    /// ignored.
    #[must_use]
    pub fn with_subdomains_of(mut self, domain: impl AsRef<str>) -> Self {
        match parse(domain.as_ref()) {
            // An IPv4 address has no subdomains, and `0.1` must not match `127.0.0.1`.
            Some((Host::Name(domain), None)) if !ends_in_a_number(&domain) => {
                self.rules.push(Rule::Within(domain));
            }
            _ => {}
        }
        self
    }

    /// Returns whether `host` gets the token. An IPv6 address may stand in brackets.
    #[must_use]
    pub fn allow(&self, host: &str, port: Option<u16>) -> bool {
        self.rules.iter().any(|rule| rule.matches(host, port))
    }
}

impl Rule {
    fn matches(&self, host: &str, port: Option<u16>) -> bool {
        match self {
            Self::Within(domain) => is_within(host, domain),
            Self::Exactly(_, Some(only)) if port.is_some_and(|port| port != *only) => false,
            Self::Exactly(_, Some(_)) if port.is_none() => false,
            Self::Exactly(Host::Address(address), _) => parse_address(host) == Some(*address),
            Self::Exactly(Host::Name(name), _) => undotted(host).eq_ignore_ascii_case(name),
        }
    }
}

/// Returns whether `host` is `domain` or ends in it at a label boundary, and is a well-formed name.
fn is_within(host: &str, domain: &str) -> bool {
    let host = undotted(host);
    let Some(cut) = host.len().checked_sub(domain.len()) else {
        return false;
    };
    if !host.as_bytes()[cut..].eq_ignore_ascii_case(domain.as_bytes()) {
        return false;
    }
    match host[..cut].strip_suffix('.') {
        Some(labels) => is_name(labels),
        None => cut == 0,
    }
}

/// Returns whether this is one or more labels of letters, digits, hyphens and underscores.
fn is_name(name: &str) -> bool {
    name.split('.').all(|label| {
        !label.is_empty()
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    })
}

fn ends_in_a_number(domain: &str) -> bool {
    domain.rsplit('.').next().is_some_and(|label| label.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Returns whether a request to `host` stays on this machine, so that it may be plain `http`.
pub(super) fn is_loopback(host: &str) -> bool {
    match parse_address(host) {
        Some(address) => address.is_loopback(),
        None => undotted(host).eq_ignore_ascii_case("localhost"),
    }
}

/// The host without the one trailing dot that makes a name absolute.
pub(super) fn undotted(host: &str) -> &str {
    host.strip_suffix('.').unwrap_or(host)
}

pub(super) fn parse_address(host: &str) -> Option<IpAddr> {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    bare.parse().ok()
}

/// The host and the port of a rule, from a host, `host:port` or a URL.
fn parse(text: &str) -> Option<(Host, Option<u16>)> {
    let text = text.trim();
    let text = text.split_once("://").map_or(text, |(_, rest)| rest);
    let text = text.split(['/', '?', '#']).next().unwrap_or_default();
    if let Some(address) = parse_address(text) {
        return Some((Host::Address(address), None));
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (host, Some(port.parse().ok()?)),
        None => (text, None),
    };
    let host = match parse_address(host) {
        Some(address) => Host::Address(address),
        None if is_name(undotted(host)) => Host::Name(undotted(host).to_ascii_lowercase()),
        None => return None,
    };
    Some((host, port))
}
