//! What a request with a valid token costs: no heap allocation of ours, and a small future. Times
//! are measured in `benches/`.

#![allow(clippy::unwrap_used)]

use std::{
    future::{Ready, ready},
    mem::size_of,
    pin::pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use allocation_counter::measure;
use http::{HeaderMap, Request, Response, StatusCode};
use tower::{BoxError, Layer, Service};
use tower_adobe_auth::{
    AdobeAuth, AdobeAuthLayer, MinLifetime, ResponseFuture, TokenResponse, TokenSource,
};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const FIREFLY: &str = "https://firefly-api.adobe.io/v3/images/generate";
const STORAGE: &str = "https://bucket.s3-accelerate.amazonaws.com/out.png?X-Amz-Signature=0a1b";

/// Responds immediately, with the number of request headers in the status, and allocates nothing.
#[derive(Clone)]
struct Api;

impl Service<Request<()>> for Api {
    type Response = Response<()>;
    type Error = BoxError;
    type Future = Ready<Result<Response<()>, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<()>) -> Self::Future {
        let mut response = Response::new(());
        let headers = u16::try_from(request.headers().len()).unwrap();
        *response.status_mut() = StatusCode::from_u16(200 + headers).unwrap();
        ready(Ok(response))
    }
}

async fn warm() -> TokenSource {
    let tokens = TokenSource::from_fetcher(|| async {
        let response = TokenResponse::new("x".repeat(1_500), DAY);
        Ok(response.with_client_id("client-id").with_org_id("org@AdobeOrg"))
    });
    tokens.token().await.unwrap();
    tokens
}

/// A request with room for headers, so that the map of the headers need not grow.
fn request(uri: &str) -> Request<()> {
    let mut request = Request::get(uri).body(()).unwrap();
    *request.headers_mut() = HeaderMap::with_capacity(16);
    request
}

/// Sends the request, and returns how many allocations that cost, and how many headers it had.
fn send(service: &mut AdobeAuth<Api>, request: Request<()>) -> (u64, u16) {
    let mut headers = 0;
    let cost = measure(|| {
        let mut cx = Context::from_waker(Waker::noop());
        assert!(service.poll_ready(&mut cx).is_ready());
        let response = pin!(service.call(request));
        let Poll::Ready(response) = response.poll(&mut cx) else {
            panic!("the response is not ready")
        };
        headers = response.unwrap().status().as_u16() - 200;
    });
    (cost.count_total, headers)
}

#[tokio::test]
async fn a_request_with_a_valid_token_costs_no_allocation() {
    let mut service = AdobeAuthLayer::new(warm().await).layer(Api);

    // The first call asks the rules about the origin, and the later ones find the kept verdict.
    for _ in 0..4 {
        assert_eq!(send(&mut service, request(FIREFLY)), (0, 3));
    }
}

/// Copies are made where threads would contend for the one reference count of a header value.
#[tokio::test]
async fn only_the_second_thread_that_sends_a_token_copies_it() {
    fn cost_of_three(mut service: AdobeAuth<Api>) -> [u64; 3] {
        [(); 3].map(|()| send(&mut service, request(FIREFLY)).0)
    }
    let service = AdobeAuthLayer::new(warm().await).layer(Api);
    let on_another_thread = || {
        let service = service.clone();
        std::thread::spawn(move || cost_of_three(service)).join().unwrap()
    };

    let first = cost_of_three(service.clone());
    let second = on_another_thread();
    let first_again = cost_of_three(service.clone());

    assert_eq!((first, first_again), ([0; 3], [0; 3]));
    assert!(second[0] > 0);
    assert_eq!(second[1..], [0; 2]);
}

#[tokio::test]
async fn a_clone_for_each_request_costs_no_allocation() {
    let service = AdobeAuthLayer::new(warm().await).layer(Api);

    for _ in 0..3 {
        assert_eq!(send(&mut service.clone(), request(FIREFLY)), (0, 3));
    }
}

#[tokio::test]
async fn a_request_that_passes_through_costs_no_allocation() {
    let mut service = AdobeAuthLayer::new(warm().await).layer(Api);

    for uri in [STORAGE, STORAGE, FIREFLY, STORAGE] {
        let headers = if uri == FIREFLY { 3 } else { 0 };
        assert_eq!(send(&mut service, request(uri)), (0, headers));
    }
}

#[tokio::test]
async fn a_min_lifetime_in_the_extensions_costs_no_allocation() {
    let mut service = AdobeAuthLayer::new(warm().await).layer(Api);
    let mut request = request(FIREFLY);
    request.extensions_mut().insert(MinLifetime(Duration::from_secs(60)));

    assert_eq!(send(&mut service, request), (0, 3));
}

#[tokio::test]
async fn allocations_are_counted() {
    // Without room for headers: the map has to grow.
    let mut service = AdobeAuthLayer::new(warm().await).layer(Api);
    let request = Request::get(FIREFLY).body(()).unwrap();

    assert!(send(&mut service, request).0 > 0);
}

/// A service whose future takes `N` words.
#[derive(Clone)]
struct Sized<const N: usize>;

struct Large<const N: usize>([u64; N]);

impl<const N: usize> Future for Large<N> {
    type Output = Result<Response<()>, BoxError>;

    fn poll(self: std::pin::Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(Ok(Response::new(())))
    }
}

impl<const N: usize> Service<Request<()>> for Sized<N> {
    type Response = Response<()>;
    type Error = BoxError;
    type Future = Large<N>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<()>) -> Self::Future {
        Large([0; N])
    }
}

#[test]
fn the_future_is_at_most_32_bytes_larger_than_the_one_inside() {
    fn more<S: Service<Req>, Req>() -> usize {
        size_of::<ResponseFuture<S, Req>>() - size_of::<S::Future>()
    }

    assert!(more::<Sized<0>, Request<()>>() <= 32);
    assert!(more::<Sized<2>, Request<()>>() <= 32);
    assert!(more::<Sized<40>, Request<()>>() <= 32);
    assert!(more::<Api, Request<()>>() <= 32);
    #[cfg(feature = "reqwest")]
    assert!(more::<reqwest::Client, reqwest::Request>() <= 32);
}
