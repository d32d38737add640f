//! What holds for every input, well-formed ones above all: those that fuzzing seldom makes.

#![allow(clippy::unwrap_used)]

#[path = "../fuzz/src/targets.rs"]
#[allow(unreachable_pub, reason = "they are public where they are fuzzed")]
mod targets;

use std::{
    convert::Infallible,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use proptest::{collection::vec, option, prelude::*, sample::select};
use serde_json::json;
use tower_adobe_auth::{Credentials, ImsClient, TokenError, TokenResponse};

/// Asks an IMS that answers `body` with status 200.
fn ask(body: impl Into<Bytes>) -> Result<TokenResponse, TokenError> {
    let body = body.into();
    let ims = tower::service_fn(move |_: Request<Full<Bytes>>| {
        let body = Full::new(body.clone());
        async move { Ok::<_, Infallible>(Response::new(body)) }
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let ims = ImsClient::builder(Credentials::new("client-id", "p8e-secret")).transport(ims);
    runtime.block_on(ims.build().unwrap().request_token())
}

/// A time between 1970 and the year 9999.
fn moment() -> impl Strategy<Value = SystemTime> {
    (0..=253_402_300_799_u64).prop_map(|seconds| UNIX_EPOCH + Duration::from_secs(seconds))
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// `text` with some of its letters in upper case.
fn mangled(text: &str, upper: u32) -> String {
    let place = |index: usize| upper >> (index % 32) & 1 == 1;
    let letters = text.chars().enumerate();
    letters.map(|(i, c)| if place(i) { c.to_ascii_uppercase() } else { c }).collect()
}

proptest! {
    #[test]
    fn every_usable_answer_is_read(
        token in "[!-~]{1,2000}", life in 1..=2_678_400_u64, as_text in any::<bool>(),
        bearer in select(vec!["bearer", "Bearer", "BEARER", " bearer "]),
        unknown in "[a-z]{12}", more in ".{0,40}", mark in any::<bool>(), space in "[ \t\r\n]{0,9}",
    ) {
        let expires_in = if as_text { json!(life.to_string()) } else { json!(life) };
        let body = json!({
            "access_token": token, "token_type": bearer, "expires_in": expires_in, unknown: more,
        });
        let mark = if mark { "\u{feff}" } else { "" };

        let response = ask(format!("{mark}{space}{body}{space}")).unwrap();

        prop_assert_eq!(response.expose_secret(), token);
        prop_assert_eq!(response.expires_in(), Duration::from_secs(life));
    }

    #[test]
    fn an_answer_that_is_cut_off_is_no_token(token in "[!-~]{1,200}", cut in any::<usize>()) {
        let body = json!({ "access_token": token, "expires_in": 3_600 }).to_string();
        let cut = body[..cut % body.len()].to_owned();

        let error = ask(cut).unwrap_err();

        prop_assert!(error.is_transient());
        let tells = format!("{error:?}").contains(&token);
        prop_assert!(token.len() < 12 || !tells);
    }

    #[test]
    fn no_answer_breaks_the_parser(
        status in 100..1_000_u16, name in "[a-z-]{1,20}", value in "[ -~\u{80}-\u{ff}]{0,40}",
        body in vec(any::<u8>(), 0..300), field in "\\PC{0,60}",
    ) {
        let head = format!("{status}\n{name}: {value}\nretry-after: {value}\n\n").into_bytes();
        let refusal = json!({ "error": field, "error_description": field }).to_string();
        let answer = json!({ "access_token": field, "expires_in": value }).to_string();
        for body in [body, refusal.into_bytes(), answer.into_bytes()] {
            targets::token_response(&[head.clone(), body].concat());
        }
    }

    #[test]
    fn every_shape_of_the_consoles_json_says_the_same(
        id in "[a-z0-9]{1,32}", secrets in vec("[!-~]{1,40}", 1..4), upper in any::<u32>(),
        scopes in option::of(vec("[a-z_.]{1,20}", 1..5)), org in option::of("[A-F0-9]{24}@AdobeOrg"),
    ) {
        let key = |name| mangled(name, upper);
        let flat = json!({
            key("client_id"): id, key("client_secrets"): secrets, key("scopes"): scopes,
            key("org_id"): org,
        });
        let context = json!({
            key("client_id"): id, key("client_secrets"): secrets, key("scopes"): scopes,
            key("ims_org_id"): org, "technical_account_id": "x",
        });
        let project = json!({ "project": {
            "org": { "ims_org_id": org },
            "workspace": { "details": { "credentials": [
                { "integration_type": "apikey" },
                { "oauth_server_to_server": {
                    key("client_id"): id, key("client_secrets"): secrets, key("scopes"): scopes,
                } },
            ] } },
        } });

        for document in [flat, context, project] {
            let credentials = Credentials::from_console_json(document.to_string()).unwrap();

            prop_assert_eq!(credentials.client_id(), &id);
            prop_assert_eq!(credentials.client_secret().expose_secret(), &secrets[0]);
            let next = credentials.next_secret().map(|secret| secret.expose_secret());
            prop_assert_eq!(next, secrets.get(1).map(String::as_str));
            prop_assert_eq!(credentials.org_id(), org.as_deref());
            targets::console_json(document.to_string().as_bytes());
        }
    }

    #[test]
    fn no_error_of_the_consoles_json_tells_a_value(
        value in "p8e-[a-z][0-9][a-z]{8}", cut in any::<usize>(),
        key in select(vec!["CLIENT_ID", "CLIENT_SECRETS", "SCOPES", "ORG_ID", "project"]),
    ) {
        for wrong in [json!({ "x": value }), json!([[value]]), json!([value, 1]), json!("\n")] {
            let mut document = json!({ "CLIENT_ID": value, "CLIENT_SECRETS": [value] });
            document[key] = wrong;
            let text = document.to_string();
            for text in [&text[..], &text[..cut % text.len()]] {
                if let Err(error) = Credentials::from_console_json(text) {
                    let shown = format!("{error} {error:?}");
                    prop_assert!(!shown.contains(&value), "{}", shown);
                }
            }
        }
    }

    #[test]
    fn a_retry_after_is_what_it_says(
        number in any::<u64>(), until in moment(), date in option::of(moment()), now in moment(),
    ) {
        let date = date.map(httpdate::fmt_http_date).unwrap_or_default();
        for value in [number.to_string(), httpdate::fmt_http_date(until)] {
            targets::retry_after(format!("{value}\n{date}\n{}", seconds(now)).as_bytes());
        }
    }

    #[test]
    fn a_token_ends_at_the_earliest_end_that_is_told(
        expires_in in 0..4_000_000_u64, created in moment(), life in 0..200_000_000_u64,
        age in 0..4_000_000_u64, with_date in any::<bool>(), now in moment(),
    ) {
        let date = httpdate::fmt_http_date(
            (created + Duration::from_secs(age)).min(UNIX_EPOCH + Duration::from_secs(253_402_300_799)),
        );
        let date = if with_date { date } else { String::new() };
        let created = seconds(created) * 1_000;
        let text = format!("{expires_in}\n{created}\n{life}\n{date}\n{}", seconds(now));

        targets::expiry(text.as_bytes());
    }

    #[test]
    fn only_allowed_hosts_get_the_token(
        scheme in select(vec!["https://", "http://", "HTTPS://", "wss://", ""]),
        user in select(vec!["", "", "", "u@", "adobe.io@", "u:p@"]),
        labels in vec(select(vec![
            "adobe", "io", "evil", "com", "xn--adobe-3ve", "ADOBE", "Io", "", "a_b", "127.0.0.1",
            "localhost", "api", "frame", "evil-adobe", "adobe%2eio", "[::1]", "0x7f", "\t",
        ]), 1..5),
        us in select(vec!["", ".adobe.io", ".adobe.io.", "adobe.io", ".Adobe.IO", "api.frame.io"]),
        port in select(vec!["", "", ":80", ":443", ":8443", ":"]),
        path in select(vec!["", "/", "/adobe.io?x=@adobe.io", "#adobe.io", "\\@adobe.io"]),
        origin in any::<bool>(),
    ) {
        let host = format!("{user}{}{us}{port}", labels.join("."));
        let input = if origin { format!("/\n{host}") } else { format!("{scheme}{host}{path}") };

        targets::allowed_hosts(input.as_bytes());
    }
}
