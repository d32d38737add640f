//! Redirects on real sockets: nothing that the layer adds leaves the allowed hosts, whoever it is
//! that follows them.

#![cfg(feature = "reqwest")]
#![allow(clippy::unwrap_used)]

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    extract::{Query, Request, State},
    http::{
        HeaderMap, Method, StatusCode,
        header::{HOST, LOCATION},
    },
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http_body_util::Empty;
use hyper_util::{client::legacy::Client as HyperClient, rt::TokioExecutor};
use tower::{Layer, ServiceBuilder, ServiceExt};
use tower_adobe_auth::{AdobeAuthLayer, AllowedHosts, TokenResponse, TokenSource, mock::MockIms};
use tower_http::follow_redirect::FollowRedirectLayer;

const OURS: [&str; 3] = ["authorization", "x-api-key", "x-gw-ims-org-id"];
const VALUES: [Option<&str>; 3] = [Some("Bearer token-1"), Some("my-id"), Some("my@AdobeOrg")];
const NONE: [Option<&str>; 3] = [None; 3];

/// A server on 127.0.0.1 and, by its other name, on `localhost`. It keeps the headers of what it
/// was asked, redirects to what the query says in `to`, and answers 401 to the query `refused`.
#[derive(Clone)]
struct Server {
    port: u16,
    seen: Arc<Mutex<Vec<HeaderMap>>>,
}

impl Server {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = Self { port, seen: Arc::default() };
        let app = Router::new().fallback(answer).with_state(server.clone());
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        server
    }

    /// Where it is allowed.
    fn allowed(&self) -> String {
        format!("http://127.0.0.1:{}/", self.port)
    }

    /// The same server under a name that is not allowed.
    fn foreign(&self) -> String {
        format!("http://localhost:{}/", self.port)
    }

    /// The hosts that it was asked for, in order, each with what it saw of our headers.
    fn seen(&self) -> Vec<(String, [Option<String>; 3])> {
        let text = |headers: &HeaderMap, name| {
            headers.get(name).map(|value| value.to_str().unwrap().to_owned())
        };
        let seen = self.seen.lock().unwrap();
        let one = |headers| {
            let host = text(headers, HOST.as_str()).unwrap();
            (host.split(':').next().unwrap().to_owned(), OURS.map(|name| text(headers, name)))
        };
        seen.iter().map(one).collect()
    }

    fn assert_seen(&self, expected: &[(&str, [Option<&str>; 3])]) {
        let own = |(host, values): &(&str, [Option<&str>; 3])| {
            ((*host).to_owned(), values.map(|value| value.map(str::to_owned)))
        };
        assert_eq!(self.seen(), expected.iter().map(own).collect::<Vec<_>>());
    }
}

async fn answer(
    State(server): State<Server>,
    Query(query): Query<Vec<(String, String)>>,
    request: Request,
) -> Response {
    server.seen.lock().unwrap().push(request.into_parts().0.headers);
    match query.into_iter().next() {
        Some((name, to)) if name == "to" => (StatusCode::FOUND, [(LOCATION, to)]).into_response(),
        Some((name, _)) if name == "refused" => StatusCode::UNAUTHORIZED.into_response(),
        _ => StatusCode::OK.into_response(),
    }
}

/// A URL of `from` that redirects to `to`.
fn redirect(from: &str, to: &str) -> String {
    let to: String = form_urlencoded::byte_serialize(to.as_bytes()).collect();
    format!("{from}?to={to}")
}

/// A layer that allows 127.0.0.1 and not `localhost`.
async fn layer() -> AdobeAuthLayer {
    let tokens = TokenSource::from_fetcher(|| async {
        Ok(TokenResponse::new("token-1", Duration::from_secs(24 * 60 * 60))
            .with_client_id("my-id")
            .with_org_id("my@AdobeOrg"))
    });
    tokens.token().await.unwrap();
    AdobeAuthLayer::new(tokens).with_allowed_hosts(AllowedHosts::default().with_host("127.0.0.1"))
}

/// Gets `url` through what follows redirects around the layer around hyper-util's client.
async fn get_by_tower(url: &str) -> StatusCode {
    let hyper = HyperClient::builder(TokioExecutor::new()).build_http::<Empty<Bytes>>();
    let client =
        ServiceBuilder::new().layer(FollowRedirectLayer::new()).layer(layer().await).service(hyper);
    let request = http::Request::get(url).body(Empty::new()).unwrap();
    client.oneshot(request).await.unwrap().status()
}

/// Gets `url` through the layer around a reqwest client with `policy`.
async fn get_by_reqwest(
    layer: &AdobeAuthLayer,
    policy: reqwest::redirect::Policy,
    url: &str,
) -> reqwest::Response {
    let client = reqwest::Client::builder().no_proxy().redirect(policy).build().unwrap();
    let request = reqwest::Request::new(Method::GET, url.parse().unwrap());
    layer.layer(client).oneshot(request).await.unwrap()
}

#[tokio::test]
async fn around_the_layer_a_hop_that_leaves_the_list_carries_nothing_of_ours() {
    let server = Server::start().await;

    let status = get_by_tower(&redirect(&server.allowed(), &server.foreign())).await;

    assert_eq!(status, StatusCode::OK);
    server.assert_seen(&[("127.0.0.1", VALUES), ("localhost", NONE)]);
}

#[tokio::test]
async fn around_the_layer_each_hop_within_the_list_is_signed() {
    let (first, second) = (Server::start().await, Server::start().await);
    let home = redirect(&second.allowed(), &first.allowed());

    let status = get_by_tower(&redirect(&first.allowed(), &home)).await;

    assert_eq!(status, StatusCode::OK);
    first.assert_seen(&[("127.0.0.1", VALUES), ("127.0.0.1", VALUES)]);
    second.assert_seen(&[("127.0.0.1", VALUES)]);
}

#[tokio::test]
async fn around_the_layer_each_hop_meets_the_rule_anew_out_and_in_again() {
    let server = Server::start().await;
    let back = redirect(&server.foreign(), &server.allowed());

    let status = get_by_tower(&redirect(&server.allowed(), &back)).await;

    assert_eq!(status, StatusCode::OK);
    server.assert_seen(&[("127.0.0.1", VALUES), ("localhost", NONE), ("127.0.0.1", VALUES)]);
}

#[tokio::test]
async fn around_the_layer_a_hop_to_plain_http_of_an_allowed_host_is_an_error() {
    let server = Server::start().await;
    let hyper = HyperClient::builder(TokioExecutor::new()).build_http::<Empty<Bytes>>();
    let client =
        ServiceBuilder::new().layer(FollowRedirectLayer::new()).layer(layer().await).service(hyper);
    let url = redirect(&server.allowed(), "http://firefly-api.adobe.io/v3?secret=1");

    let error = client.oneshot(http::Request::get(url).body(Empty::new()).unwrap()).await;

    let error = error.unwrap_err();
    let insecure = error.downcast_ref::<tower_adobe_auth::InsecureUri>().unwrap();
    assert_eq!(insecure.uri(), "http://firefly-api.adobe.io/v3");
    server.assert_seen(&[("127.0.0.1", VALUES)]);
}

#[tokio::test]
async fn with_our_policy_a_redirect_that_leaves_the_list_is_given_to_the_caller() {
    let (adobe, other) = (Server::start().await, Server::start().await);
    let layer = layer().await;
    let policy = layer.allowed_hosts().redirect_policy();

    let url = redirect(&adobe.allowed(), &other.foreign());
    let response = get_by_reqwest(&layer, policy, &url).await;

    assert_eq!(response.status(), StatusCode::FOUND);
    assert_eq!(response.headers()[LOCATION], other.foreign());
    adobe.assert_seen(&[("127.0.0.1", VALUES)]);
    other.assert_seen(&[]);
}

#[tokio::test]
async fn with_our_policy_the_caller_may_go_on_through_the_layer_and_shows_nothing() {
    let (adobe, other) = (Server::start().await, Server::start().await);
    let layer = layer().await;
    let policy = || layer.allowed_hosts().redirect_policy();
    let url = redirect(&adobe.allowed(), &other.foreign());

    let response = get_by_reqwest(&layer, policy(), &url).await;
    let location = response.headers()[LOCATION].to_str().unwrap();
    let response = get_by_reqwest(&layer, policy(), location).await;

    assert_eq!(response.status(), StatusCode::OK);
    other.assert_seen(&[("localhost", NONE)]);
}

#[tokio::test]
async fn with_our_policy_a_redirect_within_the_list_is_followed() {
    let server = Server::start().await;
    let layer = layer().await;
    let policy = layer.allowed_hosts().redirect_policy();

    let url = redirect(&server.allowed(), &server.allowed());
    let response = get_by_reqwest(&layer, policy, &url).await;

    assert_eq!(response.status(), StatusCode::OK);
    server.assert_seen(&[("127.0.0.1", VALUES), ("127.0.0.1", VALUES)]);
}

#[tokio::test]
async fn with_our_policy_a_second_redirect_that_leaves_the_list_is_not_followed_either() {
    let (adobe, other) = (Server::start().await, Server::start().await);
    let layer = layer().await;
    let policy = layer.allowed_hosts().redirect_policy();

    let out = redirect(&adobe.allowed(), &other.foreign());
    let response = get_by_reqwest(&layer, policy, &redirect(&adobe.allowed(), &out)).await;

    assert_eq!(response.status(), StatusCode::FOUND);
    adobe.assert_seen(&[("127.0.0.1", VALUES), ("127.0.0.1", VALUES)]);
    other.assert_seen(&[]);
}

#[tokio::test]
async fn with_our_policy_a_request_that_carries_nothing_of_ours_is_redirected_as_ever() {
    let (first, second) = (Server::start().await, Server::start().await);
    let layer = layer().await;
    let policy = layer.allowed_hosts().redirect_policy();

    let url = redirect(&first.foreign(), &second.foreign());
    let response = get_by_reqwest(&layer, policy, &url).await;

    assert_eq!(response.status(), StatusCode::OK);
    first.assert_seen(&[("localhost", NONE)]);
    second.assert_seen(&[("localhost", NONE)]);
}

/// Why there is a policy of ours. Should this fail, reqwest has learned to drop more headers than
/// it did: then see whether the policy is still needed.
#[tokio::test]
async fn without_our_policy_reqwest_shows_the_api_key_and_the_organization_to_another_host() {
    let (adobe, other) = (Server::start().await, Server::start().await);
    let layer = layer().await;

    let url = redirect(&adobe.allowed(), &other.foreign());
    let response = get_by_reqwest(&layer, reqwest::redirect::Policy::default(), &url).await;

    assert_eq!(response.status(), StatusCode::OK);
    other.assert_seen(&[("localhost", [None, Some("my-id"), Some("my@AdobeOrg")])]);
}

#[tokio::test]
async fn without_our_policy_a_401_from_where_a_redirect_led_says_nothing_about_the_token() {
    let (adobe, other) = (Server::start().await, MockIms::start().await);
    other.api_respond_with(401);
    let tokens = TokenSource::from_fetcher(|| async {
        Ok(TokenResponse::new("a-token", Duration::from_secs(86_400)))
    });
    let layer = AdobeAuthLayer::new(tokens.clone()).allow_host("127.0.0.1").replay_unauthorized();

    let foreign = other.api_url().replace("127.0.0.1", "localhost");
    let url = redirect(&adobe.allowed(), &foreign);
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let request = client.get(&url).build().unwrap();
    let response = layer.layer(client).oneshot(request).await.unwrap();
    let token = tokens.token().await.unwrap();

    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(token.generation(), 1);
    assert_eq!(other.api_requests(), 1);
}

/// The generation of the token after a request for `url` was refused.
async fn generation_after_401(url: &str, policy: bool) -> u64 {
    let tokens = TokenSource::from_fetcher(|| async {
        Ok(TokenResponse::new("a-token", Duration::from_secs(86_400)))
    });
    tokens.token().await.unwrap();
    let layer = AdobeAuthLayer::new(tokens.clone()).allow_host("127.0.0.1").allow_host("localhost");
    let ours = if policy {
        layer.allowed_hosts().redirect_policy()
    } else {
        reqwest::redirect::Policy::default()
    };

    let response = get_by_reqwest(&layer, ours, url).await;

    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    tokens.token().await.unwrap().generation()
}

/// reqwest drops `Authorization` on the way to another host or port, so that a 401 from there says
/// nothing about the token.
#[tokio::test]
async fn a_401_from_another_port_or_host_keeps_the_token() {
    let (first, second) = (Server::start().await, Server::start().await);

    for url in [
        redirect(&first.allowed(), &format!("{}?refused", second.allowed())),
        redirect(&first.allowed(), &format!("{}?refused", first.foreign())),
        redirect(&first.foreign(), &format!("{}?refused", first.allowed())),
    ] {
        for policy in [true, false] {
            assert_eq!(generation_after_401(&url, policy).await, 1, "{url}");
        }
    }
}

#[tokio::test]
async fn a_401_after_a_redirect_to_the_same_origin_replaces_the_token() {
    let server = Server::start().await;
    let url = redirect(&server.allowed(), &format!("{}?refused", server.allowed()));

    assert_eq!(generation_after_401(&url, true).await, 2);
}
