//! Memory that held a secret or a token is overwritten before it is freed.
//!
//! The allocator of this program searches each block for the secret when the block is freed, and when
//! it is moved because it grows or shrinks.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    fs,
    time::Duration,
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use tower::service_fn;
use tower_adobe_auth::{
    BoxError, Credentials, FileCredentials, ImsClient, ImsClientBuilder, Scopes, TokenError,
    TokenResponse, TokenSource,
};

/// Part of each secret and each token here.
const NEEDLE: &[u8; 14] = b"Kq7ZxW3vT9mBc5";

struct Searching;

thread_local! {
    /// How many blocks with the needle this thread has freed; `None` while it does not search.
    static FOUND: Cell<Option<usize>> = const { Cell::new(None) };
}

// SAFETY: all calls go to the system's allocator. `realloc` is the default one, which allocates,
// copies and frees.
unsafe impl GlobalAlloc for Searching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // Zeroed, so that no byte of a block is uninitialized when it is searched.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if let Some(found) = FOUND.get() {
            // SAFETY: the block is valid for its whole layout, and was zeroed when it was allocated.
            let bytes = unsafe { std::slice::from_raw_parts(block, layout.size()) };
            if bytes.windows(NEEDLE.len()).any(|window| window == NEEDLE) {
                FOUND.set(Some(found + 1));
            }
        }
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Searching = Searching;

/// How many blocks with the needle `run` frees on this thread, its result included.
fn freed_with_needle<T>(run: impl FnOnce() -> T) -> usize {
    FOUND.set(Some(0));
    drop(run());
    FOUND.take().unwrap()
}

fn secret() -> &'static str {
    "p8e-Kq7ZxW3vT9mBc5-secret"
}

/// Text that is never freed.
fn leaked(text: String) -> &'static str {
    text.leak()
}

/// An IMS that gives one response. Neither it nor its client copies the response.
fn ims(credentials: Credentials, status: u16, body: &'static str) -> ImsClientBuilder {
    let service = service_fn(move |_: Request<Full<Bytes>>| async move {
        let body = Full::new(Bytes::from_static(body.as_bytes()));
        Ok::<_, BoxError>(Response::builder().status(status).body(body).unwrap())
    });
    ImsClient::builder(credentials).transport(service)
}

fn request_token(status: u16, body: &'static str) -> Result<TokenResponse, TokenError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let ims = ims(Credentials::new("client-id", secret()), status, body).build().unwrap();
    runtime.block_on(ims.request_token())
}

/// The secret in JSON, with an escape in the middle.
const ESCAPED: &str = r"p8e-Kq7Z\u0078W3vT9mBc5\u002dsecret";

#[test]
fn allocator_finds_a_secret_that_is_not_wiped() {
    assert_eq!(freed_with_needle(|| secret().to_owned()), 1);
    let grown = || {
        let mut text = String::with_capacity(32);
        text.push_str(secret());
        text.reserve(1_000);
        text.clear();
    };
    assert_ne!(freed_with_needle(grown), 0);
}

#[test]
fn client_secret_is_wiped() {
    let with_room = || {
        let mut text = String::with_capacity(1_000);
        text.push_str(secret());
        Credentials::new("client-id", text).with_next_secret(secret()).clone()
    };

    assert_eq!(freed_with_needle(with_room), 0);
}

#[test]
fn token_with_spare_capacity_is_wiped() {
    let with_room = || {
        let mut text = String::with_capacity(1_000);
        text.push_str(secret());
        TokenResponse::new(text, Duration::from_secs(1))
    };

    assert_eq!(freed_with_needle(with_room), 0);
}

#[test]
fn credentials_files_are_wiped_whatever_their_size() {
    let folder = tempfile::tempdir().unwrap();
    for padding in [0, 1_000, 16_000, 16_300, 40_000, 300_000] {
        for text in [secret(), ESCAPED] {
            let path = folder.path().join("credentials.json");
            let (spaces, quarter) = (" ".repeat(padding), " ".repeat(padding / 4));
            let json = format!(
                r#"{{{quarter}"CLIENT_ID":"id","CLIENT_SECRETS":["{text}"],{spaces}"X":["{text}"]}}"#
            );
            fs::write(&path, json).unwrap();

            let read = || Credentials::from_console_file(&path).unwrap();
            assert_eq!(freed_with_needle(read), 0, "{padding} {text}");
            let open = || FileCredentials::open(&path).unwrap();
            assert_eq!(freed_with_needle(open), 0, "{padding} {text}");
        }
    }
}

#[test]
fn invalid_credentials_files_are_wiped() {
    for rest in ["", ",", "],", "]", r#"],"CLIENT_ID":1}"#, r#"],"SCOPES":["\ud800"]}"#] {
        for text in [secret(), ESCAPED] {
            let json = leaked(format!(r#"{{"CLIENT_SECRETS":["{text}"{rest}"#));

            assert_eq!(freed_with_needle(|| Credentials::from_console_json(json)), 0, "{json}");
        }
    }
}

#[test]
fn secrets_in_a_json_array_are_wiped() {
    let json = leaked(format!(r#"{{"client_id":"id","client_secrets":"[\"{}\"]"}}"#, secret()));

    assert_eq!(freed_with_needle(|| Credentials::from_console_json(json).unwrap()), 0);
}

#[test]
fn response_with_a_token_is_wiped() {
    for token in [secret(), ESCAPED] {
        let body =
            leaked(format!(r#"{{"access_token":"{token}","expires_in":3600,"x":"{token}"}}"#));

        assert_eq!(freed_with_needle(|| request_token(200, body).unwrap()), 0, "{body}");
    }
}

#[test]
fn claims_of_a_token_are_wiped() {
    for (key, value) in [("user", secret()), ("user", ESCAPED), ("client_id", secret())] {
        let payload = format!(r#"{{"{key}":"{value}","created_at":"1","expires_in":"3600000"}}"#);
        let payload = URL_SAFE_NO_PAD.encode(payload);
        // With an invalid character at the end, after most of it has been decoded.
        for payload in [payload.clone(), format!("{payload}*"), format!("{payload}AA")] {
            let token = format!("header.{payload}.signature");
            let body = leaked(format!(r#"{{"access_token":"{token}","expires_in":3600}}"#));

            assert_eq!(freed_with_needle(|| request_token(200, body)), 0, "{key} {value}");
        }
    }
}

#[test]
fn error_response_that_repeats_the_secret_is_wiped() {
    for text in [secret(), ESCAPED] {
        for status in [200, 400] {
            for body in [
                format!(r#"{{"error":"invalid_client","error_description":"bad {text}, {text}"}}"#),
                format!(r#"{{"error":"{text}"}}"#),
                format!(r#"{{"error":"x","access_token":"{text}","error_description":"{text}"}}"#),
                format!(r#"{{"error":["{text}"],"access_token":["{text}"]}}"#),
                format!(r#"{{"error":{{"{text}":"{text}"}}}}"#),
                format!(r#"{{"error":"x","error_description":"{text}"#),
            ] {
                let body = leaked(body);

                assert_eq!(freed_with_needle(|| request_token(status, body)), 0, "{body}");
            }
        }
    }
}

#[test]
fn source_and_its_tokens_are_wiped() {
    let body = leaked(format!(r#"{{"access_token":"{}","expires_in":3600}}"#, secret()));
    let run = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let credentials =
            Credentials::new("client-id", secret()).with_scopes(Scopes::from("openid"));
        let client = ims(credentials, 200, body).build().unwrap();
        let tokens = TokenSource::from_fetcher(client);
        let token = runtime.block_on(tokens.token()).unwrap();
        (token.clone(), format!("{tokens:?}"))
    };

    assert_eq!(freed_with_needle(run), 0);
}
