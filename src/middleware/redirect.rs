//! A redirect policy for reqwest, made from the allow-list.
//!
//! reqwest follows redirects inside the client, beneath the layer, so the layer cannot check the host
//! of each hop. reqwest drops `Authorization` when a redirect leads to another host or port, but
//! keeps the headers that it does not know, such as `x-api-key` and `x-gw-ims-org-id`.

use reqwest::{Url, redirect::Policy};

use super::hosts::{AllowedHosts, is_loopback};

/// How many redirects are followed for one request at most: reqwest's own default.
const MAX_HOPS: usize = 10;

/// The decision about one redirect.
#[derive(Debug, PartialEq, Eq)]
enum Hop {
    Follow,
    /// Return the redirect to the caller.
    Stop,
    TooMany,
}

impl AllowedHosts {
    /// A redirect policy that keeps the headers of the layer on the allowed hosts.
    ///
    /// A redirect is not followed if it leads from an allowed host to another host, or to plain
    /// `http` on a host other than loopback. The caller gets the redirect as the response, and may
    /// send a request for its `Location` through the layer. Other redirects are followed, up to ten.
    ///
    /// # Example
    ///
    /// ```
    /// use tower::Layer;
    /// use tower_adobe_auth::{AdobeAuthLayer, BoxError, Credentials, TokenSource};
    ///
    /// # fn main() -> Result<(), BoxError> {
    /// let tokens = TokenSource::new(Credentials::new("client-id", "client-secret"))?;
    /// let layer = AdobeAuthLayer::new(tokens);
    /// let policy = layer.allowed_hosts().redirect_policy();
    /// let client = layer.layer(reqwest::Client::builder().redirect(policy).build()?);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn redirect_policy(&self) -> Policy {
        let hosts = self.clone();
        Policy::custom(move |attempt| match hosts.hop(attempt.previous(), attempt.url()) {
            Hop::Follow => attempt.follow(),
            Hop::Stop => attempt.stop(),
            Hop::TooMany => attempt.error("too many redirects"),
        })
    }

    fn hop(&self, previous: &[Url], next: &Url) -> Hop {
        // reqwest keeps the headers of the first request through all redirects, so the request has
        // the layer's headers if any of its hosts was allowed.
        let has_our_headers = previous.iter().any(|url| self.allow_url(url));
        if has_our_headers && !self.allow_url(next) {
            Hop::Stop
        } else if previous.len() > MAX_HOPS {
            Hop::TooMany
        } else {
            Hop::Follow
        }
    }

    /// Returns whether a request to `url` gets the token.
    fn allow_url(&self, url: &Url) -> bool {
        let Some(host) = url.host_str() else { return false };
        let secure = match url.scheme() {
            "https" => true,
            "http" => is_loopback(host),
            _ => false,
        };
        secure && self.allow(host, url.port_or_known_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hop(previous: &[&str], next: &str) -> Hop {
        let previous: Vec<Url> = previous.iter().map(|url| url.parse().unwrap()).collect();
        AllowedHosts::default().hop(&previous, &next.parse().unwrap())
    }

    #[test]
    fn a_redirect_does_not_take_our_headers_to_a_foreign_host() {
        let adobe = "https://firefly-api.adobe.io/";

        assert_eq!(hop(&[adobe], "https://image.adobe.io/"), Hop::Follow);
        assert_eq!(hop(&[adobe], "https://bucket.s3.amazonaws.com/"), Hop::Stop);
        assert_eq!(hop(&[adobe], "http://firefly-api.adobe.io/"), Hop::Stop);
        assert_eq!(hop(&[adobe, "https://image.adobe.io/"], "https://evil-adobe.io/"), Hop::Stop);
    }

    #[test]
    fn a_redirect_without_our_headers_is_followed_anywhere() {
        assert_eq!(hop(&["https://a.example/"], "https://b.example/"), Hop::Follow);
        assert_eq!(hop(&["https://a.example/"], "https://image.adobe.io/"), Hop::Follow);
    }

    #[test]
    fn ten_redirects_are_followed_and_no_more() {
        let adobe = ["https://image.adobe.io/"; 11];

        assert_eq!(hop(&adobe[..10], adobe[0]), Hop::Follow);
        assert_eq!(hop(&adobe, adobe[0]), Hop::TooMany);
    }
}
