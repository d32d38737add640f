//! `MockIms` over real sockets: it behaves as IMS and as an API of Adobe's behave.
#![cfg(all(feature = "mock", feature = "reqwest"))]
#![allow(clippy::unwrap_used)]

use std::net::TcpStream;
use std::panic::{self, AssertUnwindSafe};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use reqwest::{Client, RequestBuilder, Response};
use serde_json::Value;
use tower_adobe_auth::mock::{Answer, MockIms};

const FORM: &str = "application/x-www-form-urlencoded";

fn client() -> Client {
    Client::builder().no_proxy().build().unwrap()
}

fn encoded(pairs: &[(&str, &str)]) -> String {
    form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish()
}

fn post(client: &Client, url: String, pairs: &[(&str, &str)]) -> RequestBuilder {
    client.post(url).header("content-type", FORM).body(encoded(pairs))
}

fn credentials<'a>(id: &'a str, secret: &'a str) -> [(&'a str, &'a str); 4] {
    [
        ("grant_type", "client_credentials"),
        ("client_id", id),
        ("client_secret", secret),
        ("scope", "openid,AdobeID,firefly_api,ff_apis"),
    ]
}

fn token_request(client: &Client, ims: &MockIms) -> RequestBuilder {
    let form = credentials(MockIms::CLIENT_ID, MockIms::CLIENT_SECRET);
    post(client, format!("{}/ims/token/v3", ims.url()), &form)
}

async fn json(response: Response) -> Value {
    serde_json::from_slice(&response.bytes().await.unwrap()).unwrap()
}

async fn token(client: &Client, ims: &MockIms) -> String {
    let response = token_request(client, ims).send().await.unwrap();
    assert_eq!(response.status(), 200);
    json(response).await["access_token"].as_str().unwrap().to_owned()
}

fn api_request(client: &Client, ims: &MockIms, token: &str) -> RequestBuilder {
    client
        .get(format!("{}/v3/images", ims.api_url()))
        .bearer_auth(token)
        .header("x-api-key", MockIms::CLIENT_ID)
}

async fn api_status(client: &Client, ims: &MockIms, token: &str) -> u16 {
    api_request(client, ims, token).send().await.unwrap().status().as_u16()
}

fn claims(token: &str) -> Value {
    let payload = token.split('.').nth(1).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).unwrap()).unwrap()
}

fn claim(token: &str, name: &str) -> String {
    claims(token)[name].as_str().unwrap().to_owned()
}

async fn is_oauth_error(response: Response, error: &str, description: &str) {
    assert_eq!(response.status(), 400);
    assert!(!response.headers()["x-debug-id"].is_empty());
    let body = json(response).await;
    assert_eq!(body["error"], error);
    assert_eq!(body["error_description"], description);
}

#[tokio::test]
async fn answers_a_token_request_as_ims_does() {
    let (ims, client) = (MockIms::start().await, client());

    let response = token_request(&client, &ims).send().await.unwrap();

    assert_eq!(response.status(), 200);
    let body = json(response).await;
    assert_eq!(body["token_type"], "bearer");
    assert_eq!(body["expires_in"], 86_399);
    let token = body["access_token"].as_str().unwrap();
    assert!((1_100..=1_600).contains(&token.len()), "{} bytes", token.len());
    assert_eq!(token.split('.').count(), 3);
    assert_eq!(claim(token, "type"), "access_token");
    assert_eq!(claim(token, "client_id"), "client-id");
    assert_eq!(claim(token, "scope"), "openid,AdobeID,firefly_api,ff_apis");
    assert_eq!(claim(token, "expires_in"), "86399000");
    let created_at: u128 = claim(token, "created_at").parse().unwrap();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
    assert!(now.abs_diff(created_at) < 10_000);
    assert_eq!(ims.token_requests(), 1);
    assert_eq!(ims.tokens_issued(), 1);
    assert_eq!(ims.refused_requests(), 0);
}

#[tokio::test]
async fn no_two_tokens_are_the_same() {
    let (ims, client) = (MockIms::start().await, client());

    let (one, another) = (token(&client, &ims).await, token(&client, &ims).await);

    assert_ne!(one, another);
    assert_ne!(claim(&one, "id"), claim(&another, "id"));
}

#[tokio::test]
async fn the_other_versions_answer_the_same() {
    let (ims, client) = (MockIms::start().await, client());
    let form = credentials("client-id", "client-secret");

    for version in ["v2", "v4"] {
        let url = format!("{}/ims/token/{version}", ims.url());
        assert_eq!(post(&client, url, &form).send().await.unwrap().status(), 200);
    }
    let elsewhere = post(&client, format!("{}/ims/token/v9", ims.url()), &form);

    assert_eq!(elsewhere.send().await.unwrap().status(), 404);
    assert_eq!(ims.token_requests(), 2);
}

#[tokio::test]
async fn the_proxy_of_pdf_services_answers_with_a_string() {
    let (ims, client) = (MockIms::start().await, client());
    let form = [("client_id", "client-id"), ("client_secret", "client-secret")];

    let response = post(&client, format!("{}/token", ims.url()), &form).send().await.unwrap();

    let body = json(response).await;
    assert_eq!(body["expires_in"], "86399");
    assert_eq!(body["token_type"], "Bearer");
}

#[tokio::test]
async fn a_wrong_secret_is_an_invalid_client() {
    let (ims, client) = (MockIms::start().await, client());
    let url = format!("{}/ims/token/v3", ims.url());

    let wrong = post(&client, url.clone(), &credentials("client-id", "wrong"));
    let unknown = post(&client, url, &credentials("unknown", "client-secret"));

    let wrong = wrong.send().await.unwrap();
    is_oauth_error(wrong, "invalid_client", "invalid client_secret parameter").await;
    let unknown = unknown.send().await.unwrap();
    is_oauth_error(unknown, "invalid_client", "invalid client_id parameter").await;
    assert_eq!(ims.refused_requests(), 2);
    assert_eq!(ims.tokens_issued(), 0);
}

#[tokio::test]
async fn malformed_requests_are_told_what_is_wrong() {
    let (ims, client) = (MockIms::start().await, client());
    let url = format!("{}/ims/token/v3", ims.url());
    let good = credentials("client-id", "client-secret");
    let mut grant = good;
    grant[0].1 = "password";

    let no_scope = post(&client, url.clone(), &good[..3]).send().await.unwrap();
    is_oauth_error(no_scope, "invalid_request", "missing scope parameter").await;
    let grant = post(&client, url.clone(), &grant).send().await.unwrap();
    is_oauth_error(grant, "unsupported_grant_type", "unsupported grant_type parameter").await;
    let no_form = client.post(&url).header("content-type", "application/json").body(encoded(&good));
    let no_form = no_form.send().await.unwrap();
    is_oauth_error(no_form, "invalid_request", "missing grant_type parameter").await;
    let get = client.get(&url).send().await.unwrap();
    assert_eq!(get.status(), 405);
    let large = client.post(&url).header("content-type", FORM).body(vec![b'a'; 64 * 1024 + 1]);
    assert_eq!(large.send().await.unwrap().status(), 413);
    assert_eq!(ims.token_requests(), 5);
    assert_eq!(ims.refused_requests(), 5);
}

#[tokio::test]
async fn parameters_in_the_query_are_taken_too() {
    let (ims, client) = (MockIms::start().await, client());
    let query = encoded(&credentials("client-id", "client-secret"));

    let response = client.post(format!("{}/ims/token/v3?{query}", ims.url())).send().await.unwrap();

    assert_eq!(response.status(), 200);
    assert_eq!(ims.last_token_request().unwrap().query(), Some(query.as_str()));
}

#[tokio::test]
async fn only_the_scopes_it_was_given_are_granted() {
    let ims = MockIms::builder().only_scopes(["openid", "AdobeID"]).start().await;
    let client = client();

    let response = token_request(&client, &ims).send().await.unwrap();

    is_oauth_error(response, "invalid_scope", "invalid scope parameter").await;
}

#[tokio::test]
async fn secrets_rotate_and_the_old_ones_tokens_live_on() {
    let ims = MockIms::builder().client("one", "a").client("two", "b").client("two", "c").start();
    let (ims, client) = (ims.await, client());
    let status = async |id, secret| {
        let request =
            post(&client, format!("{}/ims/token/v3", ims.url()), &credentials(id, secret));
        request.send().await.unwrap().status().as_u16()
    };
    assert_eq!(status("one", "a").await, 200);
    assert_eq!(status("two", "b").await, 200);
    assert_eq!(status("two", "c").await, 200);
    assert_eq!(status("one", "b").await, 400);
    assert_eq!(status("client-id", "client-secret").await, 400);

    ims.set_secrets("client-id", ["p8e-a+b&c=d%41 é"]);
    let form = credentials("client-id", "p8e-a+b&c=d%41 é");
    let issued = post(&client, format!("{}/ims/token/v3", ims.url()), &form).send().await.unwrap();
    let issued = json(issued).await["access_token"].as_str().unwrap().to_owned();
    ims.set_secrets("client-id", ["next"]);

    assert_eq!(status("client-id", "p8e-a+b&c=d%41 é").await, 400);
    assert_eq!(status("client-id", "next").await, 200);
    assert_eq!(api_status(&client, &ims, &issued).await, 200);
}

#[tokio::test]
async fn a_token_ends_at_the_millisecond_of_its_claims() {
    let ims = MockIms::builder().token_lifetime(Duration::from_millis(1_500)).start().await;
    let client = client();
    let body = json(token_request(&client, &ims).send().await.unwrap()).await;
    let token = body["access_token"].as_str().unwrap();
    assert_eq!(body["expires_in"], 2);
    assert_eq!(claim(token, "expires_in"), "1500");
    assert_eq!(api_status(&client, &ims, token).await, 200);

    let end: u64 = claim(token, "created_at").parse::<u64>().unwrap() + 1_500;
    let end = UNIX_EPOCH + Duration::from_millis(end);
    tokio::time::sleep(end.duration_since(SystemTime::now()).unwrap_or_default()).await;

    assert_eq!(api_status(&client, &ims, token).await, 401);
    ims.set_token_lifetime(Duration::from_secs(60));
    assert_eq!(api_status(&client, &ims, &self::token(&client, &ims).await).await, 200);
}

#[tokio::test]
async fn queued_answers_are_given_once_each_and_before_the_standing_one() {
    let (ims, client) = (MockIms::start().await, client());
    ims.respond_with(Answer::error(401, "invalid_client", "no"));
    ims.respond_next([
        Answer::throttled(7),
        Answer::unavailable().header("retry-after", "3"),
        Answer::raw(200, "text/html", "<html>"),
    ]);
    let send = async || token_request(&client, &ims).send().await.unwrap();

    let throttled = send().await;
    assert_eq!(throttled.status(), 429);
    assert_eq!(throttled.headers()["retry-after"], "7");
    assert!(throttled.headers().contains_key("x-debug-id"));
    let unavailable = send().await;
    assert_eq!(unavailable.status(), 503);
    assert_eq!(unavailable.headers()["retry-after"], "3");
    let raw = send().await;
    assert_eq!(raw.headers()["content-type"], "text/html");
    assert_eq!(raw.text().await.unwrap(), "<html>");
    for _ in 0..2 {
        let standing = send().await;
        assert_eq!(standing.status(), 401);
        assert_eq!(json(standing).await["error"], "invalid_client");
    }
    ims.respond_normally();
    assert_eq!(send().await.status(), 200);
    assert_eq!(ims.token_requests(), 6);
    assert_eq!(ims.refused_requests(), 4);
    assert_eq!(ims.tokens_issued(), 1);
}

#[tokio::test]
async fn the_named_errors_are_those_of_ims() {
    let (ims, client) = (MockIms::start().await, client());
    ims.respond_next([
        Answer::invalid_client(),
        Answer::unauthorized_client(),
        Answer::invalid_scope(),
    ]);

    for error in ["invalid_client", "unauthorized_client", "invalid_scope"] {
        let response = token_request(&client, &ims).send().await.unwrap();
        assert_eq!(response.status(), 400);
        assert_eq!(json(response).await["error"], error);
    }
}

#[tokio::test]
async fn answers_are_held_back_as_told() {
    let (ims, client) = (MockIms::start().await, client());
    ims.set_delay(Duration::from_millis(60));
    ims.respond_next([Answer::delayed(Duration::from_millis(60))]);

    let start = Instant::now();
    token(&client, &ims).await;
    let first = start.elapsed();
    token(&client, &ims).await;
    let second = start.elapsed() - first;

    assert!(first >= Duration::from_millis(120), "{first:?}");
    assert!(second >= Duration::from_millis(60), "{second:?}");
}

#[tokio::test]
async fn a_hang_is_counted_and_never_answered() {
    let (ims, client) = (MockIms::start().await, client());
    ims.respond_next([Answer::hang()]);

    let hung = token_request(&client, &ims).timeout(Duration::from_millis(150)).send().await;

    assert!(hung.unwrap_err().is_timeout());
    assert_eq!(ims.token_requests(), 1);
    assert_eq!(ims.refused_requests(), 0);
    token(&client, &ims).await;
}

#[tokio::test]
async fn a_disconnect_is_an_error_for_the_client() {
    let (ims, client) = (MockIms::start().await, client());
    ims.respond_next([Answer::disconnect()]);

    let cut = token_request(&client, &ims).send().await;

    assert!(cut.unwrap_err().is_request());
    assert_eq!(ims.refused_requests(), 1);
}

#[tokio::test]
async fn while_it_is_down_no_request_gets_through_and_the_api_stays_up() {
    let (ims, client) = (MockIms::start().await, client());
    let token = token(&client, &ims).await;
    let hanging = tokio::spawn({
        ims.respond_next([Answer::hang()]);
        token_request(&client, &ims).timeout(Duration::from_secs(10)).send()
    });
    ims.wait_for_token_requests(2).await;

    ims.go_down();

    assert!(!hanging.await.unwrap().unwrap_err().is_timeout());
    for _ in 0..5 {
        assert!(token_request(&client, &ims).send().await.is_err());
    }
    assert_eq!(ims.token_requests(), 2);
    assert!(ims.refused_connections() >= 1);
    assert_eq!(api_status(&client, &ims, &token).await, 200);
    ims.come_back();
    self::token(&client, &ims).await;
    assert_eq!(ims.token_requests(), 3);
}

#[tokio::test]
async fn requests_are_kept_as_they_came() {
    let (ims, client) = (MockIms::start().await, client());
    let start = Instant::now();
    let mut form = credentials("client-id", "client-secret").to_vec();
    form.extend([("resource", "a"), ("resource", "b")]);

    let url = format!("{}/ims/token/v3", ims.url());
    post(&client, url, &form).header("user-agent", "me").send().await.unwrap();
    token(&client, &ims).await;

    let requests = ims.recorded_token_requests();
    assert_eq!(requests.len(), 2);
    assert_eq!(requests[0].method(), "POST");
    assert_eq!(requests[0].path(), "/ims/token/v3");
    assert_eq!(requests[0].query(), None);
    assert_eq!(requests[0].header("user-agent"), Some("me"));
    assert_eq!(requests[0].form("client_secret"), Some("client-secret"));
    assert_eq!(requests[0].form("code"), None);
    assert_eq!(requests[0].form_pairs().len(), 6);
    let times = ims.token_request_times();
    assert_eq!(times, [requests[0].received_at(), requests[1].received_at()]);
    assert!(start <= times[0] && times[0] <= times[1]);
}

#[tokio::test]
async fn validates_and_revokes_tokens() {
    let (ims, client) = (MockIms::start().await, client());
    let token = token(&client, &ims).await;
    let valid = async |client_id| {
        let form = [("type", "access_token"), ("client_id", client_id), ("token", &*token)];
        let url = format!("{}/ims/validate_token/v1", ims.url());
        json(post(&client, url, &form).send().await.unwrap()).await["valid"].as_bool().unwrap()
    };
    assert!(valid("client-id").await);
    assert!(!valid("another").await);

    let url = format!("{}/ims/revoke", ims.url());
    let revoked = post(&client, url, &[("token", &token)]).send().await.unwrap();

    assert_eq!(revoked.status(), 200);
    assert!(revoked.bytes().await.unwrap().is_empty());
    assert!(!valid("client-id").await);
    assert_eq!(api_status(&client, &ims, &token).await, 401);
    assert_eq!(ims.token_requests(), 1);
}

#[tokio::test]
async fn the_test_can_revoke_one_token_or_all() {
    let (ims, client) = (MockIms::start().await, client());
    let (one, another) = (token(&client, &ims).await, token(&client, &ims).await);

    ims.revoke(&one);

    assert_eq!(api_status(&client, &ims, &one).await, 401);
    assert_eq!(api_status(&client, &ims, &another).await, 200);
    ims.revoke_all();
    assert_eq!(api_status(&client, &ims, &another).await, 401);
    assert_eq!(api_status(&client, &ims, &token(&client, &ims).await).await, 200);
}

#[tokio::test]
async fn the_api_echoes_a_good_request() {
    let (ims, client) = (MockIms::start().await, client());
    let token = token(&client, &ims).await;

    let request = client
        .post(format!("{}/v3/images?size=1", ims.api_url()))
        .bearer_auth(&token)
        .header("x-api-key", "client-id")
        .header("x-gw-ims-org-id", "1@AdobeOrg")
        .body(vec![0; 200_000]);
    let body = json(request.send().await.unwrap()).await;

    assert_eq!(body["ok"], true);
    assert_eq!(body["method"], "POST");
    assert_eq!(body["path"], "/v3/images");
    assert_eq!(body["org"], true);
    assert_eq!(body["body_bytes"], 200_000);
    let body = json(api_request(&client, &ims, &token).send().await.unwrap()).await;
    assert_eq!(body["org"], false);
    assert_eq!(ims.api_requests(), 2);
}

#[tokio::test]
async fn the_api_refuses_in_adobes_words() {
    let (ims, client) = (MockIms::start().await, client());
    let token = token(&client, &ims).await;
    let url = format!("{}/v3/images", ims.api_url());
    let answer = async |request: RequestBuilder| {
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        (status, json(response).await["error_code"].as_str().unwrap().to_owned())
    };

    let no_token = answer(client.get(&url).header("x-api-key", "client-id")).await;
    let bad_token = answer(api_request(&client, &ims, "nonsense")).await;
    let no_key = answer(client.get(&url).bearer_auth(&token)).await;
    let bad_key = answer(client.get(&url).bearer_auth(&token).header("x-api-key", "other")).await;

    assert_eq!(no_token, (403, "403010".to_owned()));
    assert_eq!(bad_token, (401, "401013".to_owned()));
    assert_eq!(no_key, (403, "403000".to_owned()));
    assert_eq!(bad_key, (403, "403003".to_owned()));
    assert_eq!(ims.api_requests(), 4);
    assert_eq!(ims.api_unauthorized(), 1);
}

#[tokio::test]
async fn the_api_key_can_be_left_unchecked() {
    let ims = MockIms::builder().without_api_key_check().start().await;
    let client = client();
    let token = token(&client, &ims).await;

    let response = client.get(ims.api_url()).bearer_auth(&token).send().await.unwrap();

    assert_eq!(response.status(), 200);
}

#[tokio::test]
async fn the_api_answers_as_told() {
    let (ims, client) = (MockIms::start().await, client());
    let token = token(&client, &ims).await;
    ims.api_respond_with(503);
    ims.api_respond_next([401]);

    let refused = api_request(&client, &ims, &token).send().await.unwrap();

    assert_eq!(refused.status(), 401);
    assert_eq!(json(refused).await["message"], "Oauth token is not valid");
    assert_eq!(api_status(&client, &ims, &token).await, 503);
    assert_eq!(api_status(&client, &ims, &token).await, 503);
    ims.api_respond_normally();
    assert_eq!(api_status(&client, &ims, &token).await, 200);
    assert_eq!(ims.api_unauthorized(), 1);
}

#[tokio::test]
async fn storage_takes_no_second_authorization() {
    let (ims, client) = (MockIms::start().await, client());
    let url = format!("{}/storage/image.png?X-Amz-Signature=abc", ims.api_url());

    let without = client.put(&url).body("image").send().await.unwrap();
    let with = client.put(&url).bearer_auth("token").body("image").send().await.unwrap();

    assert_eq!(without.status(), 200);
    assert_eq!(with.status(), 400);
    assert!(with.text().await.unwrap().contains("Only one auth mechanism allowed"));
    assert_eq!(ims.api_requests(), 0);
}

#[tokio::test]
async fn hundreds_of_callers_are_served_at_once() {
    let ims = MockIms::start().await;
    ims.set_delay(Duration::from_millis(50));
    let client = client();

    let callers: Vec<_> =
        (0..300).map(|_| tokio::spawn(token_request(&client, &ims).send())).collect();
    for caller in callers {
        assert_eq!(caller.await.unwrap().unwrap().status(), 200);
    }

    assert_eq!(ims.tokens_issued(), 300);
}

#[test]
fn it_outlives_the_runtime_that_started_it_and_stops_when_dropped() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let ims = runtime().block_on(MockIms::start());

    runtime().block_on(async { token(&client(), &ims).await });

    let addresses = [ims.url(), ims.api_url()].map(|url| url.replace("http://", ""));
    drop(ims);
    for address in addresses {
        assert!(TcpStream::connect(address).is_err());
    }
}

#[tokio::test(start_paused = true)]
async fn a_paused_clock_does_not_stop_it() {
    let (ims, client) = (MockIms::start().await, client());
    ims.set_delay(Duration::from_millis(20));

    let token = token(&client, &ims).await;

    assert_eq!(api_status(&client, &ims, &token).await, 200);
}

#[tokio::test]
async fn debug_shows_neither_secret_nor_token() {
    let builder = MockIms::builder().client("client-id", "hush-hush");
    assert!(!format!("{builder:?}").contains("hush"));
    let (ims, client) = (builder.start().await, client());
    let form = credentials("client-id", "hush-hush");
    let response = post(&client, format!("{}/ims/token/v3", ims.url()), &form).send().await;
    let body = json(response.unwrap()).await;
    let signature = body["access_token"].as_str().unwrap().rsplit('.').next().unwrap();

    let request = format!("{:?}", ims.last_token_request().unwrap());
    let answer = format!("{:?}", Answer::raw(200, "a/b", "hush").header("x-token", "hush"));

    assert!(request.contains("client_secret") && !request.contains("hush"));
    assert!(answer.contains("x-token") && !answer.contains("hush"));
    let ims = format!("{ims:?}");
    assert!(ims.contains("token_requests: 1"));
    assert!(!ims.contains("hush") && !ims.contains(signature));
}

#[tokio::test]
async fn a_gate_holds_answers_until_it_is_released_or_dropped() {
    let (ims, client) = (MockIms::start().await, client());
    let send = || tokio::spawn(token_request(&client, &ims).send());

    let gate = ims.hold();
    let held = [send(), send()];
    ims.wait_for_token_requests(2).await;

    // Both have their tokens: it is the answers that wait.
    assert_eq!(ims.tokens_issued(), 2);
    assert!(held.iter().all(|held| !held.is_finished()));
    gate.release();
    for held in held {
        assert_eq!(held.await.unwrap().unwrap().status(), 200);
    }
    token(&client, &ims).await;

    let gate = ims.hold();
    let held = send();
    ims.wait_for_token_requests(4).await;
    assert!(!held.is_finished());
    drop(gate);
    assert_eq!(held.await.unwrap().unwrap().status(), 200);
}

#[tokio::test]
async fn an_answer_waits_for_all_gates_that_stood_when_it_was_asked_for_and_for_no_later_one() {
    let (ims, client) = (MockIms::start().await, client());
    let send = || tokio::spawn(token_request(&client, &ims).send());
    let one = ims.hold();
    let first = send();
    ims.wait_for_token_requests(1).await;
    let another = ims.hold();
    let second = send();
    ims.wait_for_token_requests(2).await;

    one.release();

    assert_eq!(first.await.unwrap().unwrap().status(), 200);
    assert!(!second.is_finished());
    another.release();
    assert_eq!(second.await.unwrap().unwrap().status(), 200);
}

#[tokio::test]
async fn an_outage_cuts_off_what_a_gate_holds() {
    let (ims, client) = (MockIms::start().await, client());
    let _gate = ims.hold();
    let held = tokio::spawn(token_request(&client, &ims).send());
    ims.wait_for_token_requests(1).await;

    ims.go_down();

    assert!(held.await.unwrap().unwrap_err().is_request());
}

#[tokio::test]
async fn what_has_come_already_is_not_waited_for() {
    let (ims, client) = (MockIms::start().await, client());

    ims.wait_for_token_requests(0).await;
    token(&client, &ims).await;
    token(&client, &ims).await;

    ims.wait_for_token_requests(1).await;
    ims.wait_for_token_requests(2).await;
}

#[tokio::test(start_paused = true)]
async fn a_paused_clock_does_not_end_the_wait_for_requests() {
    let (ims, client) = (MockIms::start().await, client());
    let slow = std::thread::spawn({
        let request = token_request(&client, &ims);
        move || {
            std::thread::sleep(Duration::from_millis(50));
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(request.send()).unwrap().status()
        }
    });

    ims.wait_for_token_requests(1).await;

    assert_eq!(slow.join().unwrap(), 200);
}

#[tokio::test]
#[should_panic(
    expected = "waited 10s for 2 token requests, but 1 came; asked at tests/mock_ims.rs:"
)]
async fn the_wait_for_requests_has_a_bound_and_says_how_many_came() {
    let (ims, client) = (MockIms::start().await, client());
    token(&client, &ims).await;

    ims.wait_for_token_requests(2).await;
}

fn message(assertion: impl FnOnce()) -> String {
    let failed = panic::catch_unwind(AssertUnwindSafe(assertion)).unwrap_err();
    *failed.downcast().unwrap()
}

#[tokio::test]
async fn a_wrong_count_of_token_requests_is_told_with_what_came() {
    let (ims, client) = (MockIms::start().await, client());
    ims.respond_next([Answer::normal(), Answer::unavailable()]);
    ims.assert_token_requests(0);
    token(&client, &ims).await;
    token_request(&client, &ims).send().await.unwrap();
    ims.assert_token_requests(2);

    let message = message(|| ims.assert_token_requests(1));

    let lines: Vec<_> = message.lines().collect();
    assert_eq!(lines.len(), 3, "{message}");
    let first = "expected 1 token request, but 2 came (1 token issued, 1 refused)";
    assert_eq!(lines[0], first);
    assert_eq!(lines[1], "  POST /ims/token/v3 by client-id, after 0ns");
    assert!(lines[2].starts_with("  POST /ims/token/v3 by client-id, after "), "{message}");
    assert!(!message.contains("client-secret"));
}

#[tokio::test]
#[should_panic(expected = "expected 2 token requests, but 0 came (0 tokens issued, 0 refused)")]
async fn too_few_token_requests_are_wrong_too() {
    MockIms::start().await.assert_token_requests(2);
}

#[tokio::test]
#[should_panic(expected = "1 of 2 token requests refused")]
async fn a_refused_token_request_is_told() {
    let (ims, client) = (MockIms::start().await, client());
    token(&client, &ims).await;
    ims.assert_no_refused_requests();
    ims.respond_next([Answer::disconnect()]);
    token_request(&client, &ims).send().await.unwrap_err();

    ims.assert_no_refused_requests();
}

#[tokio::test]
async fn requests_that_the_api_refused_are_told_with_what_was_wrong() {
    let (ims, client) = (MockIms::start().await, client());
    let token = token(&client, &ims).await;
    assert_eq!(api_status(&client, &ims, &token).await, 200);
    ims.api_respond_next([503]);
    assert_eq!(api_status(&client, &ims, &token).await, 503);
    ims.assert_no_unauthorized();
    ims.api_respond_next([401]);
    assert_eq!(api_status(&client, &ims, &token).await, 401);
    assert_eq!(api_status(&client, &ims, "nonsense").await, 401);
    let url = format!("{}/v3/images?key=hush", ims.api_url());
    assert_eq!(client.post(url).send().await.unwrap().status(), 403);

    let message = message(|| ims.assert_no_unauthorized());

    assert_eq!(
        message,
        "3 of 5 API requests refused:
  GET /v3/images: 401, 401013 Oauth token is not valid, as it was told to answer
  GET /v3/images: 401, 401013 Oauth token is not valid
  POST /v3/images: 403, 403010 Oauth token is missing; does the layer allow the host of this URL?"
    );
    assert_eq!((ims.api_unauthorized(), ims.api_forbidden()), (2, 1));
}

#[tokio::test]
#[should_panic(expected = "expected 2 API requests, but 1 came")]
async fn a_wrong_count_of_api_requests_is_told() {
    let (ims, client) = (MockIms::start().await, client());
    api_status(&client, &ims, "nonsense").await;
    ims.assert_api_requests(1);

    ims.assert_api_requests(2);
}

#[tokio::test]
#[should_panic(expected = "never given: 1 queued answer of IMS, and 2 of the API")]
async fn answers_that_nobody_asked_for_are_told() {
    let (ims, client) = (MockIms::start().await, client());
    ims.respond_next([Answer::normal(), Answer::unavailable()]);
    ims.api_respond_next([401, 401]);
    token(&client, &ims).await;

    ims.assert_all_answers_given();
}

#[tokio::test]
async fn answers_that_were_given_or_forgotten_are_not_missed() {
    let (ims, client) = (MockIms::start().await, client());
    ims.respond_next([Answer::normal()]);
    token(&client, &ims).await;
    ims.assert_all_answers_given();
    ims.respond_next([Answer::normal()]);
    ims.api_respond_next([401]);

    ims.respond_normally();
    ims.api_respond_normally();

    ims.assert_all_answers_given();
}
