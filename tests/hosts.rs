//! Which requests get the token, rule by rule: asked of [`AllowedHosts`], and seen in what leaves
//! the layer, for `http::Request` and for `reqwest::Request`, whose URL is normalized before we
//! see it.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use http::{Request, Response};
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use tower::{Layer, ServiceExt, service_fn};
use tower_adobe_auth::{AdobeAuthLayer, AllowedHosts, BoxError, TokenResponse, TokenSource};

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Fate {
    /// It left with the token, the API key and the organization.
    Signed,
    /// It left as it came.
    Untouched,
    /// It did not leave: it would have shown the token to the wire. The URI that was named.
    Insecure(String),
    /// It cannot even be made.
    NoUri,
}

use Fate::{Insecure, NoUri, Signed, Untouched};

async fn layer() -> AdobeAuthLayer {
    let tokens = TokenSource::from_fetcher(|| async {
        Ok(TokenResponse::new("token-1", Duration::from_secs(24 * 60 * 60))
            .with_client_id("my-id")
            .with_org_id("my@AdobeOrg"))
    });
    tokens.token().await.unwrap();
    AdobeAuthLayer::new(tokens)
}

fn insecure(uri: &str) -> Fate {
    Insecure(uri.to_owned())
}

/// What became of a request whose headers, if it left, were `sent`; it came with `before`.
fn fate(sent: Result<http::HeaderMap, BoxError>, before: &http::HeaderMap) -> Fate {
    match sent {
        Err(error) => {
            let insecure = error.downcast_ref::<tower_adobe_auth::InsecureUri>().unwrap();
            assert!(error.to_string().contains(insecure.uri()), "{error}");
            Insecure(insecure.uri().to_owned())
        }
        Ok(headers) if headers == *before => Untouched,
        Ok(headers) => {
            assert_eq!(headers["authorization"], "Bearer token-1");
            assert_eq!(headers["x-api-key"], "my-id");
            assert_eq!(headers["x-gw-ims-org-id"], "my@AdobeOrg");
            Signed
        }
    }
}

/// Sends `request` through `layer` to a service that returns it.
async fn send(layer: &AdobeAuthLayer, request: Request<()>) -> Fate {
    let before = request.headers().clone();
    let echo = service_fn(|request: Request<()>| async {
        Ok::<_, BoxError>(Response::new(request.into_parts().0.headers))
    });
    let sent = layer.layer(echo).oneshot(request).await;
    fate(sent.map(Response::into_body), &before)
}

async fn by_http(layer: &AdobeAuthLayer, uri: &str) -> Fate {
    match Request::get(uri).body(()) {
        Ok(request) => send(layer, request).await,
        Err(_) => NoUri,
    }
}

#[cfg(feature = "reqwest")]
async fn by_reqwest(layer: &AdobeAuthLayer, uri: &str) -> Fate {
    let Ok(url) = uri.parse() else { return NoUri };
    let request = reqwest::Request::new(http::Method::GET, url);
    let echo = service_fn(|request: reqwest::Request| async move {
        Ok::<_, BoxError>(Response::new(request.headers().clone()))
    });
    let sent = layer.layer(echo).oneshot(request).await;
    fate(sent.map(Response::into_body), &http::HeaderMap::new())
}

/// The fate of a GET of `uri`, whichever the type of the request.
async fn assert_fate(layer: &AdobeAuthLayer, uri: &str, expected: Fate) {
    assert_fates(layer, uri, expected.clone(), expected).await;
}

/// The fates of a GET of `uri`, as an `http::Request` and as a `reqwest::Request`.
async fn assert_fates(layer: &AdobeAuthLayer, uri: &str, http: Fate, reqwest: Fate) {
    assert_eq!(by_http(layer, uri).await, http, "{uri:?} as http::Request");
    assert_reqwest(layer, uri, reqwest).await;
}

#[cfg(feature = "reqwest")]
async fn assert_reqwest(layer: &AdobeAuthLayer, uri: &str, expected: Fate) {
    assert_eq!(by_reqwest(layer, uri).await, expected, "{uri:?} as reqwest::Request");
}

#[cfg(not(feature = "reqwest"))]
async fn assert_reqwest(_: &AdobeAuthLayer, _: &str, _: Fate) {}

/// The host is allowed by `allow`, and signed in an `https` URI.
async fn assert_allowed(layer: &AdobeAuthLayer, host: &str) {
    assert!(layer.allowed_hosts().allow(host, Some(443)), "{host:?}");
    assert_fate(layer, &format!("https://{host}/v3/images?x=1"), Signed).await;
}

/// The host is not allowed by `allow`, and an `https` URI of it is left alone.
async fn assert_foreign(layer: &AdobeAuthLayer, host: &str) {
    assert!(!layer.allowed_hosts().allow(host, Some(443)), "{host:?}");
    assert_fate(layer, &format!("https://{host}/v3/images?x=1"), Untouched).await;
}

#[tokio::test(start_paused = true)]
async fn a_domain_and_its_subdomains_are_allowed_on_a_label_boundary() {
    let layer = layer().await;

    for host in [
        "adobe.io",
        "firefly-api.adobe.io",
        "firefly-epo852211.adobe.io",
        "a.b.c.adobe.io",
        "under_score.adobe.io",
    ] {
        assert_allowed(&layer, host).await;
    }
    for host in [
        "evil-adobe.io",
        "eviladobe.io",
        "adobe.io.evil.com",
        "adobe.io-evil.com",
        "adobe.iox",
        "adobe-io",
        "adobe.evil.io",
        "dobe.io",
        "io",
        "evil.com",
    ] {
        assert_foreign(&layer, host).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_exact_host_allows_neither_its_subdomains_nor_its_parent() {
    let layer = layer().await.allow_host("api.frame.io");

    assert_allowed(&layer, "api.frame.io").await;
    for host in ["v2.api.frame.io", "frame.io", "evil-api.frame.io", "api.frame.io.evil.com"] {
        assert_foreign(&layer, host).await;
    }
}

#[tokio::test(start_paused = true)]
async fn userinfo_is_not_the_host() {
    let layer = layer().await;

    for host in ["adobe.io@evil.com", "evil.com@adobe.io", "user:password@adobe.io"] {
        assert!(!layer.allowed_hosts().allow(host, None), "{host}");
    }
    for (uri, expected) in [
        ("https://adobe.io@evil.com/", Untouched),
        ("https://adobe.io:443@evil.com/", Untouched),
        ("https://user:adobe.io@evil.com/", Untouched),
        ("https://evil.com@adobe.io/", Signed),
        ("https://evil.com:443@adobe.io/", Signed),
    ] {
        assert_fate(&layer, uri, expected).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_follows_the_host_is_not_the_host() {
    let layer = layer().await;

    for host in ["evil.com/adobe.io", "evil.com/.adobe.io", "evil.com#.adobe.io", "adobe.io/"] {
        assert!(!layer.allowed_hosts().allow(host, None), "{host}");
    }
    for uri in [
        "https://evil.com/adobe.io",
        "https://evil.com/.adobe.io",
        "https://evil.com/@adobe.io",
        "https://evil.com?.adobe.io",
        "https://evil.com?@adobe.io/",
        "https://evil.com#.adobe.io",
        "https://evil.com#@adobe.io/",
    ] {
        assert_fate(&layer, uri, Untouched).await;
    }
    // For a browser, and for the `url` crate, a backslash is a slash.
    for uri in ["https://evil.com\\.adobe.io/", "https://evil.com\\@adobe.io/"] {
        assert_fates(&layer, uri, NoUri, Untouched).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_tab_a_space_or_an_encoded_sign_makes_no_allowed_host() {
    let layer = layer().await;

    for host in [
        "adobe.io\t",
        "\tadobe.io",
        "adobe.io ",
        "adobe.io\n",
        "adobe.io\0",
        "adobe.io%2e",
        "adobe.io%09",
        "adobe%2eio",
        "firefly-api%2eadobe.io",
        "evil.com\t.adobe.io",
        "evil.com%2f.adobe.io",
        "evil.com%00.adobe.io",
    ] {
        assert!(!layer.allowed_hosts().allow(host, None), "{host:?}");
        assert_eq!(by_http(&layer, &format!("https://{host}/")).await, NoUri, "{host:?}");
    }
    // What the `url` crate makes of them is where the request goes.
    for (uri, goes_to, expected) in [
        ("https://adobe.io\t/", Some("adobe.io"), Signed),
        ("https://adobe.io\t.evil.com/", Some("adobe.io.evil.com"), Untouched),
        ("https://evil.com\t.adobe.io/", Some("evil.com.adobe.io"), Signed),
        ("https://adobe%2eio/", Some("adobe.io"), Signed),
        ("https://adobe.io%2eevil.com/", Some("adobe.io.evil.com"), Untouched),
        ("https://adobe.io%2f.evil.com/", None, NoUri),
        ("https://evil.com%2f.adobe.io/", None, NoUri),
        ("https://evil.com%00.adobe.io/", None, NoUri),
    ] {
        let url = url::Url::parse(uri).ok();
        assert_eq!(url.as_ref().and_then(url::Url::host_str), goes_to, "{uri:?}");
        assert_reqwest(&layer, uri, expected).await;
    }
}

#[tokio::test(start_paused = true)]
async fn letter_case_does_not_matter() {
    let layer = layer().await.allow_host("API.Frame.IO").allow_subdomains_of("AdobeAEMCloud.com");

    for host in [
        "ADOBE.IO",
        "FireFly-API.Adobe.iO",
        "api.frame.io",
        "Api.FRAME.io",
        "AUTHOR-p1.adobeaemcloud.COM",
    ] {
        assert_allowed(&layer, host).await;
    }
    assert_foreign(&layer, "EVIL-ADOBE.IO").await;
    assert_fate(&layer, "HTTPS://ADOBE.IO/", Signed).await;
}

#[tokio::test(start_paused = true)]
async fn one_trailing_dot_does_not_matter_and_empty_labels_are_no_host() {
    let layer = layer().await.allow_host("api.frame.io.").allow_subdomains_of("adobeaemcloud.com.");

    for host in [
        "adobe.io.",
        "firefly-api.adobe.io.",
        "api.frame.io",
        "api.frame.io.",
        "author-p1.adobeaemcloud.com",
    ] {
        assert_allowed(&layer, host).await;
    }
    for host in ["adobe.io..", ".adobe.io", "firefly-api..adobe.io", "evil-adobe.io."] {
        assert_foreign(&layer, host).await;
    }
    assert!(!layer.allowed_hosts().allow("", None));
    assert!(!layer.allowed_hosts().allow(".", None));
}

#[tokio::test(start_paused = true)]
async fn a_domain_is_allowed_on_any_port() {
    let layer = layer().await;

    for port in [None, Some(443), Some(8443)] {
        assert!(layer.allowed_hosts().allow("firefly-api.adobe.io", port), "{port:?}");
    }
    // A port is no part of a host.
    assert!(!layer.allowed_hosts().allow("adobe.io:443", None));
    assert_fate(&layer, "https://firefly-api.adobe.io:8443/", Signed).await;
    assert_fate(&layer, "https://evil.com:443/", Untouched).await;
    assert_fates(&layer, "https://adobe.io:443:evil.com/", NoUri, NoUri).await;
}

#[tokio::test(start_paused = true)]
async fn a_host_that_was_given_with_a_port_is_allowed_on_that_port_alone() {
    let layer = layer().await.allow_host("api.frame.io:8443").allow_host("other.example:443");

    assert!(layer.allowed_hosts().allow("api.frame.io", Some(8443)));
    for port in [None, Some(443), Some(844), Some(18443)] {
        assert!(!layer.allowed_hosts().allow("api.frame.io", port), "{port:?}");
    }
    for (uri, expected) in [
        ("https://api.frame.io:8443/", Signed),
        ("https://api.frame.io/", Untouched),
        ("https://api.frame.io:443/", Untouched),
        ("https://other.example:443/", Signed),
        ("https://other.example/", Signed),
        ("https://other.example:8443/", Untouched),
    ] {
        assert_fate(&layer, uri, expected).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_port_that_is_none_is_not_taken_for_the_usual_one() {
    let layer = layer().await.allow_host("api.frame.io:443");

    for port in ["99999", "65536", "+443", "443x", "x"] {
        let uri = format!("https://api.frame.io:{port}/");
        let fate = by_http(&layer, &uri).await;
        assert!(matches!(fate, Untouched | NoUri), "{uri}: {fate:?}");
        assert_reqwest(&layer, &uri, NoUri).await;

        let host = format!("adobe.io:{port}");
        let request = Request::get("/").header("host", &host).body(()).unwrap();
        assert_eq!(send(&layer, request).await, Untouched, "{host}");
    }
    assert_fate(&layer, "https://api.frame.io:/", Signed).await;
}

#[tokio::test(start_paused = true)]
async fn ipv6_literals_are_compared_as_addresses() {
    for rule in ["[2001:db8::1]", "2001:db8::1", "2001:DB8:0::1", "[2001:0db8:0:0:0:0:0:1]"] {
        let layer = layer().await.allow_host(rule);

        assert!(layer.allowed_hosts().allow("2001:db8::1", None), "{rule}");
        for host in ["[2001:db8::1]", "[2001:db8:0:0::1]", "[2001:DB8::0001]"] {
            assert_allowed(&layer, host).await;
        }
        for host in ["[2001:db8::2]", "[2001:db8::1:1]", "[::1]"] {
            assert_foreign(&layer, host).await;
        }
        assert_fate(&layer, "https://[2001:db8::1]:8443/", Signed).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_ipv6_literal_can_be_allowed_on_one_port() {
    let layer = layer().await.allow_host("[2001:db8::1]:8443");

    assert_fate(&layer, "https://[2001:db8::1]:8443/", Signed).await;
    assert_fate(&layer, "https://[2001:db8::1]/", Untouched).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_glued_to_an_address_makes_another_host() {
    let layer = layer().await.allow_host("203.0.113.7").allow_host("[2001:db8::1]");

    for host in ["203.0.113.7.evil.com", "203.0.113.70", "1203.0.113.7.example"] {
        assert_foreign(&layer, host).await;
    }
    for host in ["[2001:db8::1].evil.com", "[2001:db8::1", "2001:db8::1]", "[2001:db8::1%25eth0]"] {
        assert!(!layer.allowed_hosts().allow(host, None), "{host}");
        let fate = by_http(&layer, &format!("https://{host}/")).await;
        assert!(matches!(fate, Untouched | NoUri), "{host}: {fate:?}");
        assert_reqwest(&layer, &format!("https://{host}/"), NoUri).await;
    }
}

#[tokio::test(start_paused = true)]
async fn ip_addresses_are_compared_as_addresses() {
    let layer = layer().await.allow_host("203.0.113.7");

    assert_allowed(&layer, "203.0.113.7").await;
    assert_foreign(&layer, "203.0.113.8").await;
    // An IPv4 address in IPv6 clothes is another address.
    assert_foreign(&layer, "[::ffff:203.0.113.7]").await;
    // The `url` crate resolves the old spellings, and the request goes to the address.
    for host in ["3405803783", "0xcb.0.0x71.7", "203.0.28935", "0313.0.0161.07"] {
        assert!(!layer.allowed_hosts().allow(host, None), "{host}");
        assert_fates(&layer, &format!("https://{host}/"), Untouched, Signed).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_address_has_no_subdomains() {
    let layer = layer().await.allow_subdomains_of("203.0.113.7").allow_subdomains_of("[::1]");

    assert_eq!(*layer.allowed_hosts(), AllowedHosts::default());
    assert_foreign(&layer, "203.0.113.7").await;
}

#[tokio::test(start_paused = true)]
async fn look_alikes_are_other_hosts() {
    let layer = layer().await;

    for (look_alike, punycode) in [
        // Cyrillic a, Greek omicron, Latin dotless i, Cyrillic o.
        ("\u{430}dobe.io", "xn--dobe-43d.io"),
        ("ad\u{3bf}be.io", "xn--adbe-1nd.io"),
        ("adobe.\u{131}o", "adobe.xn--o-eka"),
        ("firefly-api.ad\u{43e}be.io", "firefly-api.xn--adbe-65d.io"),
    ] {
        assert!(!layer.allowed_hosts().allow(look_alike, None), "{look_alike}");
        assert_fates(&layer, &format!("https://{look_alike}/"), NoUri, Untouched).await;
        assert_eq!(
            url::Url::parse(&format!("https://{look_alike}/")).unwrap().host_str(),
            Some(punycode)
        );
        assert_foreign(&layer, punycode).await;
    }
    // A punycode label beneath adobe.io is Adobe's own.
    assert_allowed(&layer, "xn--bcher-kva.adobe.io").await;
}

#[tokio::test(start_paused = true)]
async fn letters_that_unicode_folds_to_ascii_are_not_folded_by_us() {
    let layer = layer().await.allow_host("api.task.example");

    // Full-width letters, an ideographic full stop, the Kelvin sign, the long s.
    for host in [
        "\u{ff41}\u{ff44}\u{ff4f}\u{ff42}\u{ff45}.io",
        "adobe\u{3002}io",
        "api.tas\u{212a}.example",
        "api.ta\u{17f}k.example",
    ] {
        assert!(!layer.allowed_hosts().allow(host, None), "{host}");
        // The `url` crate folds them, and the request goes to the host in ASCII.
        assert_fates(&layer, &format!("https://{host}/"), NoUri, Signed).await;
    }
}

#[tokio::test(start_paused = true)]
async fn something_that_is_no_host_adds_nothing() {
    let none = AllowedHosts::none();

    for text in
        ["", " ", ".", "*", "*.adobe.io", "a b", "a@b", "a:b", "a:70000", "[::1", "\u{430}.io"]
    {
        assert_eq!(none.clone().with_host(text), none, "{text:?}");
        assert_eq!(none.clone().with_subdomains_of(text), none, "{text:?}");
    }
    assert!(!none.allow("adobe.io", None));
}

#[tokio::test(start_paused = true)]
async fn a_uri_without_authority_goes_where_the_host_header_says() {
    let layer = layer().await.allow_host("api.frame.io:8443").allow_host("[2001:db8::1]");

    for (host, expected) in [
        ("firefly-api.adobe.io", Signed),
        ("FIREFLY-API.adobe.io.", Signed),
        ("firefly-api.adobe.io:443", Signed),
        ("api.frame.io:8443", Signed),
        ("[2001:db8::1]", Signed),
        ("[2001:db8::1]:443", Signed),
        ("api.frame.io", Untouched),
        ("evil-adobe.io", Untouched),
        ("adobe.io.evil.com", Untouched),
        ("adobe.io@evil.com", Untouched),
        ("evil.com@adobe.io", Untouched),
        ("adobe.io/", Untouched),
        ("evil.com/.adobe.io", Untouched),
        ("adobe.io\t.evil.com", Untouched),
        ("adobe.io, evil.com", Untouched),
        ("https://adobe.io", Untouched),
        ("adobe%2eio", Untouched),
        ("", Untouched),
        ("\u{e4}dobe.io", Untouched),
    ] {
        let request = Request::get("/v3/images?x=1");
        let request = request.header("host", host.as_bytes()).body(()).unwrap();
        assert_eq!(send(&layer, request).await, expected, "{host:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn without_authority_and_without_one_host_header_there_is_no_token() {
    let layer = layer().await;

    for uri in ["/", "/v3/images?host=adobe.io", "/adobe.io", "//adobe.io/", "*"] {
        assert_eq!(by_http(&layer, uri).await, Untouched, "{uri}");
    }
    for hosts in [["adobe.io", "evil.com"], ["evil.com", "adobe.io"], ["adobe.io", "adobe.io"]] {
        let request = Request::get("/").header("host", hosts[0]).header("host", hosts[1]);
        assert_eq!(send(&layer, request.body(()).unwrap()).await, Untouched, "{hosts:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_absolute_uri_outweighs_the_host_header() {
    let layer = layer().await;

    for (uri, host, expected) in
        [("https://evil.com/", "adobe.io", Untouched), ("https://adobe.io/", "evil.com", Signed)]
    {
        let request = Request::get(uri).header("host", host).body(()).unwrap();
        assert_eq!(send(&layer, request).await, expected, "{uri}");
    }
}

#[tokio::test(start_paused = true)]
async fn only_http_and_https_carry_the_token() {
    let layer = layer().await;

    for scheme in ["wss", "ws", "ftp", "httpss", "gopher"] {
        assert_fate(&layer, &format!("{scheme}://firefly-api.adobe.io/"), Untouched).await;
    }
}

#[tokio::test(start_paused = true)]
async fn plain_http_to_an_allowed_host_is_an_error_that_names_the_uri_without_its_query() {
    let layer = layer().await.allow_host("10.0.0.1").allow_host("[2001:db8::1]:8080");

    for (uri, named) in [
        ("http://firefly-api.adobe.io/v3?secret=1", "http://firefly-api.adobe.io/v3"),
        ("http://firefly-api.adobe.io/v3?secret=1#secret", "http://firefly-api.adobe.io/v3"),
        ("http://user:secret@firefly-api.adobe.io/v3", "http://firefly-api.adobe.io/v3"),
        ("http://firefly-api.adobe.io:443/v3?secret", "http://firefly-api.adobe.io:443/v3"),
        ("http://10.0.0.1:8080/v3?secret=1", "http://10.0.0.1:8080/v3"),
        ("http://[2001:db8::1]:8080/v3?secret=1", "http://[2001:db8::1]:8080/v3"),
    ] {
        assert_fate(&layer, uri, insecure(named)).await;
    }
    assert_fate(&layer, "http://evil.com/", Untouched).await;
}

#[tokio::test(start_paused = true)]
async fn plain_http_is_told_by_its_port_where_the_uri_has_no_scheme() {
    let layer = layer().await;

    let request = Request::get("/v3?secret=1").header("host", "adobe.io:80").body(()).unwrap();
    assert_eq!(send(&layer, request).await, insecure("/v3"));
    assert_eq!(by_http(&layer, "firefly-api.adobe.io:443").await, Signed);
    assert!(matches!(by_http(&layer, "firefly-api.adobe.io:80").await, Insecure(_)));
}

#[tokio::test(start_paused = true)]
async fn only_loopback_may_be_plain() {
    let layer = layer()
        .await
        .allow_host("127.0.0.1")
        .allow_host("127.8.9.10")
        .allow_host("[::1]")
        .allow_host("0.0.0.0")
        .allow_host("192.168.0.1")
        .allow_subdomains_of("localhost")
        .allow_subdomains_of("localhost.example");

    for host in ["127.0.0.1", "127.8.9.10", "[::1]", "localhost", "LOCALHOST."] {
        assert_fate(&layer, &format!("http://{host}:8080/"), Signed).await;
    }
    // Nobody promises that a name beneath `localhost` stays on this machine.
    for host in ["0.0.0.0", "192.168.0.1", "localhost.example", "api.localhost"] {
        let uri = format!("http://{host}:8080/");
        assert_fate(&layer, &uri, insecure(&uri)).await;
    }
    // Loopback is not allowed by itself.
    for host in ["127.0.0.2", "127.0.0.1.evil.com"] {
        assert_fate(&layer, &format!("http://{host}:8080/"), Untouched).await;
    }
}

/// The rule in other words: lower-case labels that end in `adobe`, `io`, each well-formed.
fn is_adobes(host: &str) -> bool {
    let host = host.to_ascii_lowercase();
    let mut labels: Vec<&str> = host.split('.').collect();
    if labels.last() == Some(&"") {
        labels.pop();
    }
    let well_formed = |label: &&str| {
        let plain = |sign: char| matches!(sign, 'a'..='z' | '0'..='9' | '-' | '_');
        !label.is_empty() && label.chars().all(plain)
    };
    labels.iter().all(well_formed) && labels.ends_with(&["adobe", "io"])
}

/// Pieces that hosts near the boundary are made of.
fn host_piece() -> impl Strategy<Value = String> {
    prop_oneof![
        6 => prop::sample::select(vec![
            "adobe.io", ".adobe.io", "adobe", "io", ".", "ADOBE.IO", "Adobe", "firefly-api",
        ]).prop_map(str::to_owned),
        2 => prop::sample::select(vec![
            "evil", ".com", "-", "_", "xn", "..", "@", ":", ":443", "%2e", "%", "\t", " ", "\0",
            "[", "]", "[::1]", "\\", "\u{430}", "\u{ff41}", "\u{3002}", "1", "0x",
        ]).prop_map(str::to_owned),
        1 => any::<char>().prop_map(String::from),
    ]
}

fn host() -> impl Strategy<Value = String> {
    let edit = (0_usize..24, prop::option::of(host_piece()));
    prop_oneof![
        prop::collection::vec(host_piece(), 0..6).prop_map(|pieces| pieces.concat()),
        // One edit away from an allowed one.
        ("(firefly-api|a\\.b|)", edit).prop_map(|(label, (at, piece))| {
            let mut host = if label.is_empty() { label } else { label + "." } + "adobe.io";
            let at = at.min(host.len());
            match piece {
                Some(piece) => host.insert_str(at, &piece),
                None if at < host.len() => drop(host.remove(at)),
                None => {}
            }
            host
        }),
    ]
}

/// Runs `test` on many values, and tells of how many it said yes.
fn count<S: Strategy>(strategy: &S, test: impl Fn(S::Value) -> bool) -> usize {
    let yes = std::cell::Cell::new(0);
    let config = Config { cases: 2048, failure_persistence: None, ..Config::default() };
    let run = TestRunner::new(config).run(strategy, |value| {
        yes.set(yes.get() + usize::from(test(value)));
        Ok(())
    });
    if let Err(error) = run {
        panic!("{error}");
    }
    yes.get()
}

#[test]
fn allow_says_what_an_independent_statement_of_the_rule_says() {
    let hosts = AllowedHosts::default();

    let allowed = count(&host(), |host| {
        assert_eq!(hosts.allow(&host, None), is_adobes(&host), "{host:?}");
        is_adobes(&host)
    });

    // Both sides of the boundary were met.
    assert!((200..1_800).contains(&allowed), "{allowed}");
}

#[test]
fn a_host_and_what_is_beneath_it_stay_allowed_whatever_their_case() {
    let subdomain = "([a-zA-Z0-9_-]{1,12}\\.){0,3}[aA][dD][oO][bB][eE]\\.[iI][oO]\\.?";

    let allowed = count(&subdomain, |host| AllowedHosts::default().allow(&host, None));

    assert_eq!(allowed, 2_048);
}

#[test]
fn a_token_goes_only_where_an_independent_parser_sees_adobe_io() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let layer = runtime.block_on(layer());
    let scheme =
        prop::sample::select(vec!["https://", "https://", "HTTPS://", "https:", "https:/"]);
    let userinfo = prop_oneof![4 => Just(String::new()), 1 => host().prop_map(|host| host + "@")];
    let port = prop::sample::select(vec![
        "", "", "", ":", ":443", ":8443", ":99999", ":+443", ":x", ":1:2",
    ]);
    let rest =
        prop::sample::select(vec!["", "/", "/v3", "?q=1", "#f", "/@evil.com", "\\@evil.com"]);
    let uri =
        (scheme, userinfo, host(), port, rest).prop_map(|(scheme, userinfo, host, port, rest)| {
            format!("{scheme}{userinfo}{host}{port}{rest}")
        });
    let goes_to_adobe = |uri: &str| {
        let url = url::Url::parse(uri);
        matches!(url.as_ref().map(url::Url::host), Ok(Some(url::Host::Domain(host))) if is_adobes(host))
    };

    let signed = count(&uri, |uri| {
        let fate = runtime.block_on(by_http(&layer, &uri));
        assert!(fate != Signed || goes_to_adobe(&uri), "{uri:?}");
        fate == Signed
    });
    assert!(signed > 100, "{signed}");

    let signed = count(&uri, |uri| {
        let fate = if goes_to_adobe(&uri) { Signed } else { Untouched };
        runtime.block_on(assert_same_or_no_uri(&layer, &uri, fate));
        goes_to_adobe(&uri)
    });
    assert!(signed > 100, "{signed}");
}

#[cfg(feature = "reqwest")]
async fn assert_same_or_no_uri(layer: &AdobeAuthLayer, uri: &str, expected: Fate) {
    let fate = by_reqwest(layer, uri).await;
    assert!(fate == expected || (fate == NoUri && expected == Untouched), "{uri:?}: {fate:?}");
}

#[cfg(not(feature = "reqwest"))]
async fn assert_same_or_no_uri(_: &AdobeAuthLayer, _: &str, _: Fate) {}

#[test]
fn the_end_of_an_address_is_no_domain() {
    let hosts = AllowedHosts::none().with_subdomains_of("0.0.1").with_subdomains_of("1");

    assert_eq!(hosts, AllowedHosts::none());
    assert!(!hosts.allow("127.0.0.1", None));
}

#[tokio::test(start_paused = true)]
async fn the_warning_about_a_host_shows_no_userinfo() {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
    let _default = tracing::subscriber::set_default(subscriber);

    let _ = layer()
        .await
        .allow_host("https://user:hunter2@api.frame.io/")
        .allow_host("user:hunter2@")
        .allow_subdomains_of("https://user:hunter2@frame.io/");

    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert_eq!(log.matches("not a host name").count(), 3, "{log}");
    assert!(log.contains("api.frame.io"), "{log}");
    assert!(!log.contains("hunter2") && !log.contains("user"), "{log}");
}
