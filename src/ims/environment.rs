//! [`Environment`]: the IMS that issues the tokens, and its URL.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use http::{
    Uri,
    uri::{Authority, Scheme},
};

use crate::error::ConfigError;

const TOKEN_PATH: &str = "/ims/token/v3";
const PRODUCTION: &str = "https://ims-na1.adobelogin.com";
const STAGE: &str = "https://ims-na1-stg1.adobelogin.com";

/// The IMS that issues the tokens.
///
/// # Example
///
/// The token proxy of PDF Services, which has a path of its own and accepts no scopes
/// ([`Credentials::without_scopes`](crate::Credentials::without_scopes)):
///
/// ```
/// use tower_adobe_auth::Environment;
///
/// let proxy = Environment::custom("https://pdf-services.adobe.io")?.with_token_path("/token")?;
/// assert_eq!(proxy.token_url(), "https://pdf-services.adobe.io/token");
/// # Ok::<(), tower_adobe_auth::ConfigError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Environment {
    /// Adobe's production IMS, `https://ims-na1.adobelogin.com`. The default.
    #[default]
    Production,
    /// Adobe's stage IMS, `https://ims-na1-stg1.adobelogin.com`.
    Stage,
    /// An IMS at another URL, as [`Environment::custom`] has checked it.
    Custom(CustomEnvironment),
}

/// The checked URL of an [`Environment::Custom`]; made by [`Environment::custom`] only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CustomEnvironment {
    /// Scheme, authority and path, with no slash at the end.
    base: String,
    token_url: Uri,
}

impl Environment {
    /// An IMS at `base_url`, such as `https://ims.example.com` or `http://127.0.0.1:4801`.
    ///
    /// A path in the URL is kept, and the token path (default: `/ims/token/v3`) follows it.
    ///
    /// # Errors
    ///
    /// The client secret is sent to this URL, so it must be `https`. Plain `http` is accepted for
    /// loopback hosts only: `127.0.0.0/8`, `[::1]` and `localhost`. A URL with userinfo, a query, a
    /// fragment or no host is rejected.
    pub fn custom(base_url: impl AsRef<str>) -> Result<Self, ConfigError> {
        Self::at(base_url.as_ref(), TOKEN_PATH)
    }

    /// The same host with another path for the token request, such as `/token`.
    ///
    /// # Errors
    ///
    /// When `path` does not start with a slash, or has a query, a fragment or a character that
    /// does not belong in a path.
    pub fn with_token_path(self, path: impl AsRef<str>) -> Result<Self, ConfigError> {
        match self {
            Self::Production => Self::at(PRODUCTION, path.as_ref()),
            Self::Stage => Self::at(STAGE, path.as_ref()),
            Self::Custom(custom) => Self::at(&custom.base, path.as_ref()),
        }
    }

    /// The URL that the token request goes to.
    #[must_use]
    pub fn token_url(&self) -> Uri {
        match self {
            Self::Production => Uri::from_static("https://ims-na1.adobelogin.com/ims/token/v3"),
            Self::Stage => Uri::from_static("https://ims-na1-stg1.adobelogin.com/ims/token/v3"),
            Self::Custom(custom) => custom.token_url.clone(),
        }
    }

    fn at(base_url: &str, token_path: &str) -> Result<Self, ConfigError> {
        let base: Uri = plain_characters(base_url, "the URL of the environment")?
            .parse()
            .map_err(|e| ConfigError::with_source("the URL of the environment is not a URL", e))?;
        let scheme = base.scheme().ok_or_else(no_host)?;
        let authority = base.authority().ok_or_else(no_host)?;
        check_authority(scheme, authority)?;

        let token_path = plain_characters(token_path, "the token path")?;
        if !token_path.starts_with('/') {
            return Err(ConfigError::new("the token path does not start with a slash"));
        }

        let base = format!("{scheme}://{authority}{}", base.path().trim_end_matches('/'));
        let token_url = format!("{base}{token_path}")
            .parse()
            .map_err(|e| ConfigError::with_source("the token path makes no URL", e))?;
        Ok(Self::Custom(CustomEnvironment { base, token_url }))
    }
}

/// Refuses what URL parsers read differently from each other: the host that is checked here must
/// be the host that a transport connects to.
fn plain_characters<'a>(text: &'a str, name: &str) -> Result<&'a str, ConfigError> {
    let wrong = text.chars().find(|&c| {
        !(c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | '~' | ':' | '/' | '[' | ']'))
    });
    match wrong {
        None => Ok(text),
        Some('@') => Err(ConfigError::new(format!("{name} has userinfo; it must have none"))),
        Some('?') => Err(ConfigError::new(format!("{name} has a query; it must have none"))),
        Some('#') => Err(ConfigError::new(format!("{name} has a fragment; it must have none"))),
        Some(_) => Err(ConfigError::new(format!("{name} has a character that is not allowed"))),
    }
}

fn check_authority(scheme: &Scheme, authority: &Authority) -> Result<(), ConfigError> {
    let host = authority.host();
    if host.is_empty() {
        return Err(no_host());
    }
    // An unreadable port is no port to `http`, and something else to others.
    let port = authority.port_u16().map(|port| format!(":{port}")).unwrap_or_default();
    if format!("{host}{port}") != authority.as_str() {
        return Err(ConfigError::new("the URL of the environment has an invalid port"));
    }

    let address = address(host)?;
    if *scheme == Scheme::HTTPS {
        return Ok(());
    }
    if *scheme != Scheme::HTTP {
        return Err(ConfigError::new("the URL of the environment is neither https nor http"));
    }
    let loopback = match address {
        Some(address) => address.is_loopback(),
        None => host.eq_ignore_ascii_case("localhost"),
    };
    if loopback {
        return Ok(());
    }
    Err(ConfigError::new(
        "the URL of the environment would send the client secret over plain http; use https",
    ))
}

/// The IP address that `host` is, or `None` for a name.
///
/// Names that some parsers take for an address (`127.1`, `0x7f.1`, `[::1`) are refused.
fn address(host: &str) -> Result<Option<IpAddr>, ConfigError> {
    let invalid = || ConfigError::new("the URL of the environment has an invalid IP address");
    if host.starts_with('[') || host.ends_with(']') {
        let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let address = inner.and_then(|inner| inner.parse::<Ipv6Addr>().ok()).ok_or_else(invalid)?;
        return Ok(Some(IpAddr::V6(address)));
    }
    let last = host.trim_end_matches('.').rsplit('.').next().unwrap_or_default();
    if last.starts_with(|c: char| c.is_ascii_digit()) {
        let address = host.parse::<Ipv4Addr>().map_err(|_| invalid())?;
        return Ok(Some(IpAddr::V4(address)));
    }
    Ok(None)
}

fn no_host() -> ConfigError {
    ConfigError::new("the URL of the environment lacks a scheme or a host, as in https://host")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn refusal(url: &str) -> String {
        Environment::custom(url).expect_err(url).to_string()
    }

    #[test]
    fn the_named_environments_are_adobes() {
        let urls = [Environment::Production, Environment::Stage].map(|e| e.token_url().to_string());

        assert_eq!(urls[0], format!("{PRODUCTION}{TOKEN_PATH}"));
        assert_eq!(urls[1], format!("{STAGE}{TOKEN_PATH}"));
    }

    #[test]
    fn https_and_plain_http_on_loopback_are_accepted() {
        for (base, token_url) in [
            ("https://ims.example.com", "https://ims.example.com/ims/token/v3"),
            ("https://ims.example.com/", "https://ims.example.com/ims/token/v3"),
            ("HTTPS://ims.example.com:8443/a/", "https://ims.example.com:8443/a/ims/token/v3"),
            ("https://192.0.2.1", "https://192.0.2.1/ims/token/v3"),
            ("https://[2001:db8::1]:444/b", "https://[2001:db8::1]:444/b/ims/token/v3"),
            ("http://127.0.0.1:4801", "http://127.0.0.1:4801/ims/token/v3"),
            ("http://127.8.9.1", "http://127.8.9.1/ims/token/v3"),
            ("http://[::1]:4801", "http://[::1]:4801/ims/token/v3"),
            ("http://localhost:4801/base", "http://localhost:4801/base/ims/token/v3"),
            ("http://LocalHost", "http://LocalHost/ims/token/v3"),
        ] {
            assert_eq!(Environment::custom(base).expect(base).token_url(), token_url);
        }
    }

    #[test]
    fn plain_http_to_another_host_is_refused() {
        for url in [
            "http://ims.example.com",
            "http://127.0.0.1.evil.com",
            "http://localhost.evil.com",
            "http://localhost.",
            "http://evil.com:4801/127.0.0.1",
            "http://0.0.0.0",
            "http://192.0.2.1",
            "http://[::ffff:127.0.0.1]",
            "http://[2001:db8::1]",
        ] {
            assert!(refusal(url).contains("plain http"), "{url}: {}", refusal(url));
        }
    }

    #[test]
    fn addresses_that_parsers_disagree_on_are_refused() {
        for url in ["http://127.1", "http://0x7f.1", "http://2130706433", "https://1.2.3.256"] {
            assert!(refusal(url).contains("invalid IP address"), "{url}: {}", refusal(url));
        }
    }

    #[test]
    fn userinfo_query_fragment_and_odd_characters_are_refused() {
        assert!(refusal("http://127.0.0.1:80@evil.com").contains("userinfo"));
        assert!(refusal("https://user:pass@ims.example.com").contains("userinfo"));
        assert!(refusal("https://ims.example.com?a=b").contains("query"));
        assert!(refusal("https://ims.example.com/#x").contains("fragment"));
        for url in
            ["http://localhost\\evil.com", "https://a b", "https://ex%41mple.com", "https://é"]
        {
            assert!(refusal(url).contains("character"), "{url}: {}", refusal(url));
        }
    }

    #[test]
    fn a_url_without_host_scheme_or_valid_port_is_refused() {
        for url in [
            "",
            "/",
            "ims.example.com",
            "127.0.0.1:4801",
            "https://",
            "https:///token",
            "https://:443",
            "https://a:99999",
            "https://a:",
            "https://a:x",
            "ftp://a",
            "http://[::1",
            "http://[]",
            "http://[::1]evil.com",
            "http://::1",
        ] {
            assert!(Environment::custom(url).is_err(), "{url}");
        }
    }

    #[test]
    fn the_token_path_can_be_changed() {
        let proxy = Environment::custom("https://pdf-services.adobe.io/eu/").unwrap();
        let proxy = proxy.with_token_path("/token").unwrap();
        let stage = Environment::Stage.with_token_path("/ims/token/v4").unwrap();

        assert_eq!(proxy.token_url(), "https://pdf-services.adobe.io/eu/token");
        assert_eq!(stage.token_url(), "https://ims-na1-stg1.adobelogin.com/ims/token/v4");
        for path in ["", "token", ".evil.com/", "/token?a=b", "/token#a", "/to ken", "@evil.com"] {
            assert!(Environment::Production.with_token_path(path).is_err(), "{path}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".*", path in ".*") {
            if let Ok(environment) = Environment::custom(&text) {
                let _ = environment.with_token_path(&path);
            }
            let _ = Environment::Production.with_token_path(&path);
        }

        #[test]
        fn plain_http_reaches_loopback_only(rest in "[a-z0-9.:@/\\[\\]-]{0,24}") {
            if let Ok(environment) = Environment::custom(format!("http://{rest}")) {
                let host = environment.token_url().host().unwrap().to_owned();
                let loopback = host == "localhost" || host == "[::1]" || host.starts_with("127.");
                prop_assert!(loopback || host.trim_matches(['[', ']']).parse::<IpAddr>().unwrap().is_loopback());
            }
        }
    }
}
