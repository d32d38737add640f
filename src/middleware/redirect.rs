//! A redirect policy for reqwest, made from the allowed hosts.
//!
//! reqwest follows redirects inside the client, beneath the layer: no hop of it meets the host rule.
//! It drops `Authorization` on the way to another host, but no header that it does not know, such
//! as `x-api-key` and `x-gw-ims-org-id`.

use reqwest::{Url, redirect::Policy};

use super::hosts::{AllowedHosts, is_loopback};

/// As many as reqwest follows of its own accord.
const MOST_HOPS: usize = 10;

#[derive(Debug, PartialEq, Eq)]
enum Hop {
    Follow,
    /// Give the redirect to the caller.
    Stop,
    TooMany,
}

impl AllowedHosts {
    /// A redirect policy under which nothing that the layer adds leaves these hosts.
    ///
    /// A redirect that leads from an allowed host to another that is not, or to plain `http` (but
    /// on loopback), is not followed: the caller gets it as the response, and may send the request
    /// to its `Location` through the layer. All others are followed, up to ten.
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
        // The headers of the first request go along to the last: what counts is whether any of
        // the hosts before was one that gets them.
        let carries_ours = previous.iter().any(|url| self.allow_url(url));
        if carries_ours && !self.allow_url(next) {
            Hop::Stop
        } else if previous.len() > MOST_HOPS {
            Hop::TooMany
        } else {
            Hop::Follow
        }
    }

    /// Whether a request to `url` gets the token.
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
    fn what_carries_our_headers_does_not_leave_the_allowed_hosts() {
        let adobe = "https://firefly-api.adobe.io/";

        assert_eq!(hop(&[adobe], "https://image.adobe.io/"), Hop::Follow);
        assert_eq!(hop(&[adobe], "https://bucket.s3.amazonaws.com/"), Hop::Stop);
        assert_eq!(hop(&[adobe], "http://firefly-api.adobe.io/"), Hop::Stop);
        assert_eq!(hop(&[adobe, "https://image.adobe.io/"], "https://evil-adobe.io/"), Hop::Stop);
    }

    #[test]
    fn what_carries_none_of_ours_goes_where_it_likes() {
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
