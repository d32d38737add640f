//! A gateway for images: services inside a company POST a prompt to it, and it alone holds the
//! credentials for Adobe. An example, not public API: take it and make it yours.
//!
//! It needs no set-up: IMS is played by `MockIms`, Firefly by `mock_firefly`, both on loopback.
//!
//! ```sh
//! cargo run --example axum_gateway --features metrics             # a demonstration, over HTTP, that checks itself
//! cargo run --example axum_gateway --features metrics -- --serve  # stays, at http://127.0.0.1:8080 or at $PORT
//! ```
//!
//! | route | answers |
//! | --- | --- |
//! | `POST /images` | the image for `{"prompt": "…"}`, streamed; else `{"error": "…"}` and a status that says whose fault it was |
//! | `GET /` | a page that shows the token's state, and takes a prompt |
//! | `GET /status` | the token's state as JSON |
//! | `GET /readyz` | 200 while a valid token is in hand, else 503 |
//! | `GET /healthz` | 200 while the process answers at all |
//! | `GET /metrics` | metrics for Prometheus |
//!
//! | file | holds |
//! | --- | --- |
//! | `gateway.rs` | the routes, their limits, and the shutdown |
//! | `firefly.rs` | the client of Firefly: submit, poll, fetch |
//! | `mock_firefly.rs`, `demonstration.rs` | what you leave out |
//!
//! At Adobe, the token source is `TokenSource::new(Credentials::from_env()?)`, the layer needs no
//! `allow_host`, and Firefly is at `https://firefly-api.adobe.io`. Who may call the gateway is left to
//! what stands in front of it.

mod demonstration;
mod firefly;
mod gateway;
mod mock_firefly;

use std::{env, time::Duration};

use metrics_exporter_prometheus::PrometheusBuilder;
use tokio::{
    net::TcpListener,
    signal,
    sync::oneshot,
    time::{MissedTickBehavior, interval},
};
use tower_adobe_auth::{
    AdobeAuthLayer, BoxError, Credentials, Environment, TokenSource, mock::MockIms,
};

use self::{
    firefly::{Firefly, Polling},
    gateway::Limits,
    mock_firefly::MockFirefly,
};

/// How long images that are under way may take to finish after SIGTERM. An orchestrator's own patience
/// (30 seconds in Kubernetes) has to be longer.
const GRACE: Duration = Duration::from_secs(25);

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let stay = env::args().any(|argument| argument == "--serve");

    // Before anything that counts is built: what is counted without a recorder is lost.
    let metrics = PrometheusBuilder::new().install_recorder()?;
    let upkeep = metrics.clone();
    tokio::spawn(async move {
        let mut ticks = interval(Duration::from_secs(5));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            upkeep.run_upkeep();
        }
    });

    let ims = MockIms::start().await;
    if stay {
        // Short lives, so that the page has something to show.
        ims.set_token_lifetime(Duration::from_secs(90));
    }
    let adobe = MockFirefly::start(ims.api_url()).await?;

    let credentials = Credentials::new(MockIms::CLIENT_ID, MockIms::CLIENT_SECRET);
    let tokens =
        TokenSource::builder(credentials).environment(Environment::custom(ims.url())?).build()?;
    // Nobody sends requests to a service that is not ready, so the first token cannot wait for one.
    tokens.warm_up();
    let layer = AdobeAuthLayer::new(tokens.clone()).allow_host("127.0.0.1");
    // At Adobe: `Polling::default()`. The mock is quicker.
    let polling = Polling { every: Duration::from_millis(100), times: 100 };
    let firefly = Firefly::new(layer, &adobe.url, polling)?;
    let app = gateway::router(tokens.clone(), firefly, metrics, Limits::default());

    let port = match env::var("PORT") {
        Ok(port) => port.parse().map_err(|_| "PORT is no port")?,
        Err(_) => {
            if stay {
                8080
            } else {
                0
            }
        }
    };
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    let url = format!("http://{}", listener.local_addr()?);
    println!("listening on {url}");
    if stay {
        let served = gateway::serve(listener, app, terminated(), GRACE).await;
        // Last: until here requests may have needed a new token.
        tokens.shutdown().await?;
        return served;
    }

    let (stop, stopped) = oneshot::channel::<()>();
    let stopped = async { drop(stopped.await) };
    let server = tokio::spawn(gateway::serve(listener, app, stopped, GRACE));
    demonstration::run(&url, &ims, &tokens).await?;
    drop(stop);
    server.await?
}

/// Waits until the process is asked to end.
async fn terminated() {
    let interrupt = async { signal::ctrl_c().await.expect("ctrl-c can be listened to") };
    #[cfg(unix)]
    let terminate = async {
        let kind = signal::unix::SignalKind::terminate();
        signal::unix::signal(kind).expect("SIGTERM can be listened to").recv().await;
    };
    #[cfg(not(unix))]
    let terminate = std::future::pending::<()>();

    tokio::select! {
        () = interrupt => {}
        () = terminate => {}
    }
    tracing::info!("asked to end: images under way are finished");
}
