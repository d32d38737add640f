//! End to end: requests through a real client to a real server on loopback, one after the other on
//! one connection that is kept.

use std::{fmt::Debug, future::poll_fn, net::SocketAddr, time::Instant};

use axum::{Router, routing::post};
use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body::Body;
use http_body_util::{BodyExt, Full};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use tokio::net::TcpListener;
use tower::{BoxError, Layer, Service};
use tower_adobe_auth::AdobeAuthLayer;
use tower_http::auth::AddAuthorizationLayer;

use crate::{
    subjects::{quiet_runtime, secret, tokens},
    table::{head, row},
    time::median,
};

const ROUNDS: usize = 300;
const REQUESTS: usize = 50;

/// The microseconds of one request in one round.
async fn round<S, B>(service: &mut S, uri: &Uri) -> f64
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>>,
    S::Error: Into<BoxError>,
    B: Body<Error: Debug>,
{
    let begun = Instant::now();
    for _ in 0..REQUESTS {
        let request = Request::post(uri).body(Full::from("{}")).unwrap();
        poll_fn(|cx| service.poll_ready(cx)).await.map_err(Into::into).unwrap();
        let response = service.call(request).await.map_err(Into::into).unwrap();
        assert!(response.status().is_success());
        response.into_body().collect().await.unwrap();
    }
    begun.elapsed().as_secs_f64() * 1e6 / REQUESTS as f64
}

/// Answers on a thread of its own, as a server elsewhere does.
fn serve() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        quiet_runtime().block_on(async {
            let app = Router::new().route("/v3/images", post(async || "{}"));
            axum::serve(TcpListener::from_std(listener).unwrap(), app).await.unwrap();
        });
    });
    address
}

pub(crate) fn run() {
    let uri: Uri = format!("http://{}/v3/images", serve()).parse().unwrap();
    let runtime = quiet_runtime();
    let tokens = tokens(&runtime);
    // One client, and so one connection, for all.
    let mut none = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let layer = AdobeAuthLayer::new(tokens).without_api_key().allow_host("127.0.0.1");
    let mut ours = layer.layer(none.clone());
    let mut constant = AddAuthorizationLayer::bearer(&secret()).layer(none.clone());

    let mut times = [(); 3].map(|()| Vec::new());
    runtime.block_on(async {
        for number in 0..3 * ROUNDS {
            // Each comes after each other one as often: the one before leaves the caches to it.
            let side = if number / 3 % 2 == 0 { number % 3 } else { 2 - number % 3 };
            times[side].push(match side {
                0 => round(&mut ours, &uri).await,
                1 => round(&mut constant, &uri).await,
                _ => round(&mut none, &uri).await,
            });
        }
    });
    let [ours, constant, none] = times.map(|times| 1e6 / median(times));
    let ratio = ours / constant;
    head("end to end, HTTP/1.1 on loopback, with / without the layer");
    row(
        "the same header on both sides, set by a constant",
        &format!("{ours:.0} / {constant:.0} requests/s = {ratio:.3} ×"),
    );
    let text = format!("{ours:.0} / {none:.0} requests/s = {:.3} ×", ours / none);
    row("without such a header, 1.5 KB less on the wire", &text);
}
