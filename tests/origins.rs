//! Refusals count for an origin: the scheme, host and port of a request, however they are spelled.

#![allow(clippy::unwrap_used)]

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::{Request, Response, StatusCode, header::HOST};
use tokio::time::sleep;
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_adobe_auth::{AdobeAuthLayer, TokenResponse, TokenSource};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A source with a cached token, and how many tokens were requested.
async fn warm() -> (TokenSource, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&count);
    let tokens = TokenSource::from_fetcher(move || {
        counter.fetch_add(1, Ordering::SeqCst);
        async move {
            sleep(Duration::from_millis(1)).await;
            Ok(TokenResponse::new("token", DAY))
        }
    });
    tokens.token().await.unwrap();
    (tokens, count)
}

/// An API that refuses every token.
fn refusing()
-> impl Service<Request<()>, Response = Response<()>, Error = Infallible, Future: Send> + Clone + Send
{
    service_fn(|_: Request<()>| async {
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::UNAUTHORIZED;
        Ok(response)
    })
}

/// Sends the requests, one each second, to an API that refuses each. Returns how many tokens that
/// cost beside the first.
async fn cost_of_refusals(
    layer: fn(TokenSource) -> AdobeAuthLayer,
    requests: Vec<Request<()>>,
) -> usize {
    let (tokens, count) = warm().await;
    let client = layer(tokens.clone()).layer(refusing());
    for request in requests {
        let response = client.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
        sleep(Duration::from_secs(1)).await;
    }
    count.load(Ordering::SeqCst) - 1
}

fn get(uri: &str) -> Request<()> {
    Request::get(uri).body(()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn letter_case_of_a_host_does_not_cost_tokens() {
    let host = |n: usize| -> String {
        let letter = |(i, letter): (usize, char)| {
            if n >> i & 1 == 1 { letter.to_ascii_uppercase() } else { letter }
        };
        "firefly".char_indices().map(letter).collect()
    };
    let requests = (0..50).map(|n| get(&format!("https://{}.adobe.io/", host(n)))).collect();

    let cost = cost_of_refusals(AdobeAuthLayer::new, requests).await;

    assert_eq!(cost, 2);
}

#[tokio::test(start_paused = true)]
async fn spelling_of_an_origin_does_not_cost_tokens() {
    let mut requests = Vec::new();
    for _ in 0..5 {
        for spelling in [
            "https://firefly-api.adobe.io",
            "https://firefly-api.adobe.io.",
            "https://firefly-api.adobe.io:443",
            "https://firefly-api.adobe.io.:443",
            "https://FIREFLY-API.ADOBE.IO:0443",
            "https://user:password@firefly-api.adobe.io",
        ] {
            requests.push(get(&format!("{spelling}/v3?x=1")));
        }
        for host in ["firefly-api.adobe.io", "Firefly-API.adobe.io.", "firefly-api.adobe.io:443"] {
            let mut request = get("/v3");
            request.headers_mut().insert(HOST, host.parse().unwrap());
            requests.push(request);
        }
    }

    let cost = cost_of_refusals(AdobeAuthLayer::new, requests).await;

    assert_eq!(cost, 2);
}

#[tokio::test(start_paused = true)]
async fn spelling_of_an_ip_address_does_not_cost_tokens() {
    let requests = (0..10)
        .flat_map(|_| {
            [
                "http://[::1]:8080/",
                "http://[0:0:0:0:0:0:0:1]:8080/",
                "http://[0000::0001]:8080/",
                "http://[::0.0.0.1]:8080/",
            ]
        })
        .map(get)
        .collect();

    let cost =
        cost_of_refusals(|tokens| AdobeAuthLayer::new(tokens).allow_host("::1"), requests).await;

    assert_eq!(cost, 2);
}

#[cfg(feature = "reqwest")]
mod reqwest_types {
    use reqwest::{Method, ResponseBuilderExt, Url};

    use super::*;

    /// Answers with 401 as if the response came from `url`; `None` leaves the URL out, as code does
    /// that makes a `reqwest::Response` from an `http::Response`.
    fn answers_from(
        url: Option<&'static str>,
    ) -> impl Service<
        reqwest::Request,
        Response = reqwest::Response,
        Error = tower_adobe_auth::BoxError,
        Future: Send,
    > + Clone
    + Send {
        service_fn(move |_: reqwest::Request| async move {
            let mut response = Response::builder().status(StatusCode::UNAUTHORIZED);
            if let Some(url) = url {
                response = response.url(url.parse::<Url>().unwrap());
            }
            Ok::<_, tower_adobe_auth::BoxError>(response.body("").unwrap().into())
        })
    }

    /// Whether a 401 from `url` is believed by a request to Firefly's API.
    async fn is_believed(url: Option<&'static str>) -> bool {
        let (tokens, count) = warm().await;
        let client = AdobeAuthLayer::new(tokens.clone()).layer(answers_from(url));
        let uri = "https://firefly-api.adobe.io/v3".parse().unwrap();
        client.oneshot(reqwest::Request::new(Method::GET, uri)).await.unwrap();
        sleep(Duration::from_secs(1)).await;
        count.load(Ordering::SeqCst) == 2
    }

    #[tokio::test(start_paused = true)]
    async fn a_response_without_a_url_is_the_requests_own() {
        assert!(is_believed(None).await);
        assert!(is_believed(Some("http://no.url.provided.local/")).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_response_from_the_same_origin_is_the_requests_own() {
        for url in [
            "https://firefly-api.adobe.io/",
            "https://FIREFLY-API.adobe.io:443/other?x=1",
            "https://firefly-api.adobe.io./v3",
        ] {
            assert!(is_believed(Some(url)).await, "{url}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_response_from_another_origin_says_nothing_about_the_token() {
        for url in [
            "https://firefly-api.adobe.io:8443/v3",
            "http://firefly-api.adobe.io/v3",
            "https://image.adobe.io/v3",
            "https://evil.example/v3",
            "http://no.url.provided.local/v3",
            "http://no.url.provided.local/?x",
            "http://no.url.provided.local:8080/",
            "https://no.url.provided.local/",
        ] {
            assert!(!is_believed(Some(url)).await, "{url}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_mocked_reqwest_client_gets_its_401_replayed() {
        let (tokens, _) = warm().await;
        let (service, mut handle) = tower_test::mock::pair::<reqwest::Request, reqwest::Response>();
        let client = AdobeAuthLayer::new(tokens).replay_unauthorized().layer(service);
        let answer = |status: u16| -> reqwest::Response {
            Response::builder().status(status).body("").unwrap().into()
        };

        let uri = "https://firefly-api.adobe.io/".parse().unwrap();
        let response = tokio::spawn(client.oneshot(reqwest::Request::new(Method::GET, uri)));
        handle.next_request().await.unwrap().1.send_response(answer(401));
        let second = tokio::time::timeout(Duration::from_secs(60), handle.next_request()).await;
        second.expect("the request is replayed").unwrap().1.send_response(answer(200));

        assert_eq!(response.await.unwrap().unwrap().status(), StatusCode::OK);
    }
}
