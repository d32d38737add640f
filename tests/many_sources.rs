//! A gateway with a token source per tenant: what a source costs before its first token.

#![cfg(feature = "reqwest")]
#![allow(clippy::unwrap_used)]

use std::{
    thread,
    time::{Duration, Instant},
};

use tower_adobe_auth::{Credentials, Environment, TokenSource, mock::MockIms};

const SOURCES: u64 = 1_000;
/// The most memory of one source, in bytes.
const MAX_BYTES: u64 = 16 * 1024;
/// The most allocations of one source. A client of its own takes thousands, for root certificates.
const MAX_ALLOCATIONS: u64 = 100;

fn source(tenant: u64) -> TokenSource {
    TokenSource::builder(Credentials::new(format!("client-{tenant}"), "client-secret"))
        .build()
        .unwrap()
}

fn source_with_timeout(tenant: u64) -> TokenSource {
    TokenSource::builder(Credentials::new(format!("client-{tenant}"), "client-secret"))
        .map_ims(|ims| ims.connect_timeout(Duration::from_secs(2)))
        .build()
        .unwrap()
}

fn assert_each_source_is_small(build: fn(u64) -> TokenSource) {
    let first = build(0);

    let start = Instant::now();
    let mut sources = Vec::with_capacity(SOURCES as usize);
    let used = allocation_counter::measure(|| sources.extend((1..=SOURCES).map(build)));
    let elapsed = start.elapsed();

    let bytes = used.bytes_current as u64 / SOURCES;
    let allocations = used.count_total / SOURCES;
    println!(
        "a source: {bytes} bytes in {} allocations, built with {allocations} in {:?}",
        used.count_current / SOURCES as i64,
        elapsed / SOURCES as u32,
    );
    assert!(bytes <= MAX_BYTES, "{bytes} bytes");
    assert!(allocations <= MAX_ALLOCATIONS, "{allocations} allocations");
    drop((first, sources));
}

#[test]
fn each_source_after_the_first_takes_at_most_16_kib() {
    assert_each_source_is_small(source);
}

#[test]
fn sources_with_the_same_connect_timeout_share_a_client() {
    assert_each_source_is_small(source_with_timeout);
}

#[test]
fn shared_client_serves_runtimes_that_end_in_turn() {
    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }
    let server = runtime();
    let ims = server.block_on(MockIms::start());
    let url = ims.url().to_owned();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = thread::spawn(move || server.block_on(stopped));

    let tenant = || {
        TokenSource::builder(Credentials::new(MockIms::CLIENT_ID, MockIms::CLIENT_SECRET))
            .environment(Environment::custom(&url).unwrap())
            .build()
            .unwrap()
    };
    let sources: Vec<TokenSource> = (0..8).map(|_| tenant()).collect();
    for tokens in &sources {
        runtime().block_on(tokens.token()).unwrap();
    }
    // Concurrently, on runtimes that end as soon as they have their token.
    let concurrent: Vec<TokenSource> = (0..8).map(|_| tenant()).collect();
    let threads: Vec<_> = concurrent
        .into_iter()
        .map(|tokens| thread::spawn(move || runtime().block_on(tokens.token()).map(drop)))
        .collect();
    for thread in threads {
        thread.join().unwrap().unwrap();
    }

    drop(stop);
    let _ = server.join().unwrap();
}
