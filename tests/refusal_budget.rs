//! The number of tokens requested because of 401s is bounded, for each origin and for the whole
//! source, however a host is spelled and however many hosts there are. A revocation costs one token.
//! On a paused clock.

#![allow(clippy::unwrap_used)]

mod support;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use tokio::time::{Instant, sleep};
use tower::Layer;
use tower_adobe_auth::{AdobeAuth, AdobeAuthLayer, TokenSource};

use self::support::{
    Api, DAY, FIREFLY, HOUR, Ims, MINUTE, PHOTOSHOP, api, bearer, get, millis, secs, slow_api,
};

/// A warm source.
async fn warm() -> (TokenSource, Ims) {
    let ims = Ims::new(DAY).taking(millis(1));
    let tokens = ims.source();
    tokens.token().await.unwrap();
    (tokens, ims)
}

/// A client whose APIs refuse all tokens.
async fn refused_everywhere() -> (AdobeAuth<impl Api>, Ims) {
    let (tokens, ims) = warm().await;
    let layer = AdobeAuthLayer::new(tokens).allow_subdomains_of("adobe.io").allow_host("127.0.0.1");
    (layer.layer(slow_api(millis(10), |_| 401)), ims)
}

/// Sends a request a second to each of `urls` in turn, `requests` in all.
async fn send_each_second<C: Api>(client: &C, urls: &[String], requests: usize) {
    for url in urls.iter().cycle().take(requests) {
        assert_eq!(get(client, url).await.ok(), 401);
        sleep(secs(1)).await;
    }
}

/// The URLs of `n` hosts of customers.
fn hosts(n: usize) -> Vec<String> {
    (0..n).map(|host| format!("https://customer-{host}.adobe.io/")).collect()
}

#[tokio::test(start_paused = true)]
async fn the_letter_case_of_a_host_buys_no_tokens() {
    let (client, ims) = refused_everywhere().await;
    let upper = |n: u32| {
        let letters = "firefly".char_indices();
        let host: String = letters
            .map(|(i, letter)| if n >> i & 1 == 1 { letter.to_ascii_uppercase() } else { letter })
            .collect();
        format!("https://{host}.adobe.io/")
    };
    let urls: Vec<_> = (0..50).map(upper).collect();

    send_each_second(&client, &urls, 50).await;

    assert!(ims.asked() <= 3, "{} token requests for 50 requests", ims.asked());
}

#[tokio::test(start_paused = true)]
async fn other_spellings_of_an_origin_buy_no_tokens() {
    let (client, ims) = refused_everywhere().await;
    let urls = [
        "https://firefly-api.adobe.io/",
        "https://firefly-api.adobe.io./",
        "https://firefly-api.adobe.io:443/",
        "https://firefly-api.adobe.io.:443/v3/models",
        "https://FIREFLY-API.adobe.io/?a=b",
        "https://Firefly-API.Adobe.IO.:443/",
    ]
    .map(str::to_owned);

    send_each_second(&client, &urls, 50).await;

    assert!(ims.asked() <= 3, "{} token requests for 50 requests", ims.asked());
}

#[tokio::test(start_paused = true)]
async fn one_refusing_origin_costs_few_tokens_an_hour() {
    let (client, ims) = refused_everywhere().await;

    send_each_second(&client, &[FIREFLY.to_owned()], 3_600).await;

    // Two in each of the minutes between latches of 1, 2, 4, 8, 16 and 32 minutes.
    assert!(ims.asked() <= 1 + 2 * 7, "{} token requests in an hour", ims.asked());
}

#[tokio::test(start_paused = true)]
async fn many_refusing_hosts_cost_few_tokens_a_minute() {
    for hosts in [hosts(10), hosts(50), hosts(200)] {
        let (client, ims) = refused_everywhere().await;

        send_each_second(&client, &hosts, 55).await;

        assert!(ims.asked() <= 1 + 4, "{} tokens, {} hosts", ims.asked(), hosts.len());
    }
}

#[tokio::test(start_paused = true)]
async fn many_refusing_hosts_cost_few_tokens_an_hour() {
    for hosts in [hosts(10), hosts(64), hosts(65), hosts(3_600)] {
        let (client, ims) = refused_everywhere().await;

        send_each_second(&client, &hosts, 3_600).await;

        // Four in each of the minutes between latches of 1, 2, 4, 8 and then 10 minutes.
        assert!(ims.asked() <= 1 + 4 * 9, "{} tokens, {} hosts", ims.asked(), hosts.len());
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_host_each_second_costs_few_tokens() {
    let (client, ims) = refused_everywhere().await;

    send_each_second(&client, &hosts(24 * 360), 24 * 360).await;

    // As above: in 144 minutes there are at most 17 such minutes.
    assert!(ims.asked() <= 1 + 4 * 17, "{} token requests", ims.asked());
}

#[tokio::test(start_paused = true)]
async fn many_refusing_ports_cost_few_tokens() {
    let (client, ims) = refused_everywhere().await;
    let ports: Vec<_> = (1..=200).map(|n| format!("https://x.adobe.io:{}/", 8_000 + n)).collect();

    send_each_second(&client, &ports, 200).await;

    // Three or four windows of a minute fit into the 200 seconds.
    assert!(ims.asked() <= 1 + 4 * 4, "{} token requests for 200 requests", ims.asked());
}

#[tokio::test(start_paused = true)]
async fn many_concurrent_refusals_cost_one_token() {
    let (client, ims) = refused_everywhere().await;
    let hosts = hosts(200);

    join_all(hosts.iter().map(|url| get(&client, url))).await;
    sleep(secs(1)).await;

    assert_eq!(ims.asked(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_refused_new_token_is_evidence_against_the_origin() {
    let (tokens, ims) = warm().await;
    // Firefly refused a token that was bad; Photoshop refuses its replacement as well.
    let judge = api(|request| {
        let is_photoshop = request.uri().host() == Some("image.adobe.io");
        if is_photoshop || bearer(request) == "token-1" { 401 } else { 200 }
    });
    let client = AdobeAuthLayer::new(tokens).layer(judge);
    assert_eq!(get(&client, FIREFLY).await.ok(), 401);
    assert_eq!(get(&client, FIREFLY).await.ok(), 200);

    for _ in 0..30 {
        assert_eq!(get(&client, PHOTOSHOP).await.ok(), 401);
        sleep(secs(1)).await;
    }

    assert_eq!(ims.asked(), 2);
}

/// APIs that accept the tokens that were requested after the last revocation.
#[derive(Clone)]
struct Apis {
    revoked_up_to: Arc<AtomicUsize>,
    refuses: Arc<Mutex<Vec<String>>>,
}

impl Apis {
    fn new() -> Self {
        Self { revoked_up_to: Arc::default(), refuses: Arc::default() }
    }

    fn revoke_all(&self, ims: &Ims) {
        self.revoked_up_to.store(ims.asked(), Ordering::SeqCst);
    }

    /// This host refuses whatever comes.
    fn refuse(&self, host: &str) {
        self.refuses.lock().unwrap().push(host.to_owned());
    }

    fn service(&self) -> impl Api + use<> {
        let apis = self.clone();
        slow_api(millis(10), move |request| {
            let number: usize = bearer(request).strip_prefix("token-").unwrap().parse().unwrap();
            let host = request.uri().host().unwrap().to_owned();
            let revoked = number <= apis.revoked_up_to.load(Ordering::SeqCst);
            if revoked || apis.refuses.lock().unwrap().contains(&host) { 401 } else { 200 }
        })
    }
}

#[tokio::test(start_paused = true)]
async fn a_revocation_costs_one_token_whatever_the_hosts() {
    let (tokens, ims) = warm().await;
    let apis = Apis::new();
    let client = AdobeAuthLayer::new(tokens).layer(apis.service());
    let hosts = hosts(20);
    apis.revoke_all(&ims);

    let refused = join_all(hosts.iter().map(|url| get(&client, url))).await;
    let later = join_all(hosts.iter().map(|url| get(&client, url))).await;

    assert!(refused.iter().all(|outcome| outcome.ok() == 401));
    assert!(later.iter().all(|outcome| outcome.ok() == 200));
    assert_eq!(ims.asked(), 2);
}

#[tokio::test(start_paused = true)]
async fn revocations_an_hour_apart_are_each_recovered_from() {
    let (tokens, ims) = warm().await;
    let apis = Apis::new();
    let client = AdobeAuthLayer::new(tokens).layer(apis.service());

    for revocation in 1..=10 {
        sleep(HOUR).await;
        apis.revoke_all(&ims);

        assert_eq!(get(&client, FIREFLY).await.ok(), 401);
        assert_eq!(get(&client, FIREFLY).await.ok(), 200);

        assert_eq!(ims.asked(), 1 + revocation);
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusing_host_hides_no_revocation_for_long() {
    let (tokens, ims) = warm().await;
    let apis = Apis::new();
    apis.refuse("firefly-api.adobe.io");
    let client = AdobeAuthLayer::new(tokens).layer(apis.service());
    let over = Arc::new(AtomicBool::new(false));
    let firefly = tokio::spawn({
        let (client, over) = (client.clone(), Arc::clone(&over));
        async move {
            while !over.load(Ordering::SeqCst) {
                assert_eq!(get(&client, FIREFLY).await.ok(), 401);
                sleep(secs(1)).await;
            }
        }
    });

    let mut longest = Duration::ZERO;
    for _ in 0..10 {
        sleep(HOUR / 2).await;
        apis.revoke_all(&ims);
        let start = Instant::now();
        while get(&client, PHOTOSHOP).await.ok() == 401 {
            sleep(secs(1)).await;
        }
        longest = longest.max(start.elapsed());
    }
    over.store(true, Ordering::SeqCst);
    firefly.await.unwrap();

    assert!(longest <= 2 * MINUTE, "{longest:?} until a revocation was recovered from");
}

#[tokio::test(start_paused = true)]
async fn a_passing_fault_of_many_hosts_costs_few_tokens() {
    let (tokens, ims) = warm().await;
    // Adobe's 401013 can be a passing fault of the validator: for ten minutes all hosts have it.
    let start = Instant::now();
    let client = AdobeAuthLayer::new(tokens)
        .layer(api(move |_| if start.elapsed() < 10 * MINUTE { 401 } else { 200 }));
    let hosts = hosts(30);

    send_each_second(&client, &hosts, 599).await;
    sleep(secs(2)).await;

    assert!(ims.asked() <= 1 + 4 * 4, "{} token requests in ten minutes", ims.asked());
    assert_eq!(get(&client, FIREFLY).await.ok(), 200);
}
