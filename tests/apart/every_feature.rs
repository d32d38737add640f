//! The crate in a program that enables every feature of reqwest and of serde_json.
//!
//! Cargo builds a dependency once, with the features that any crate of the tree enables, and many
//! of reqwest's features change the default of a setting. These tests hold that the client for IMS
//! does not depend on the other crates of a program. Each of them first shows that the feature
//! makes a difference to a client with the defaults.

use std::{error::Error, io::Write, net::SocketAddr, time::Duration};

use flate2::{
    Compression,
    write::{GzEncoder, ZlibEncoder},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tower_adobe_auth::{Credentials, Environment, ErrorKind, ImsClient, TokenError, TokenResponse};

const ANSWER: &[u8] = br#"{"access_token":"token-1","token_type":"bearer","expires_in":86399}"#;

/// The answer in each encoding that reqwest can undo.
fn encoded() -> [(&'static str, Vec<u8>); 4] {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    gzip.write_all(ANSWER).unwrap();
    let mut deflate = ZlibEncoder::new(Vec::new(), Compression::default());
    deflate.write_all(ANSWER).unwrap();
    // One uncompressed block each (RFC 7932 §9.2, RFC 8878 §3.1.1.2).
    let length = u32::try_from(ANSWER.len()).unwrap();
    let brotli = ((length - 1) << 4 | 1 << 20).to_le_bytes();
    let brotli = [&brotli[..3], ANSWER, b"\x03"].concat();
    let block = (length << 3 | 1).to_le_bytes();
    let zstd = [b"\x28\xb5\x2f\xfd\x20", &length.to_le_bytes()[..1], &block[..3], ANSWER].concat();
    [
        ("gzip", gzip.finish().unwrap()),
        ("deflate", deflate.finish().unwrap()),
        ("br", brotli),
        ("zstd", zstd),
    ]
}

/// Answers each connection with the same bytes, and passes on the request it read.
async fn serve(answer: Vec<u8>) -> (SocketAddr, mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (requests, seen) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let request = read_request(&mut stream).await;
            let _ = stream.write_all(&answer).await;
            let _ = requests.send(request);
        }
    });
    (address, seen)
}

async fn read_request(stream: &mut TcpStream) -> String {
    let mut request = Vec::new();
    loop {
        request.push(stream.read_u8().await.unwrap());
        let text = String::from_utf8_lossy(&request).to_lowercase();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            if body.len() == length.map_or(0, |length| length.parse().unwrap()) {
                return text;
            }
        }
    }
}

fn response(headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 200 OK\r\n{headers}content-length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

async fn request_token(url: &str) -> Result<TokenResponse, TokenError> {
    ImsClient::builder(Credentials::new("client-id", "client-secret"))
        .environment(Environment::custom(url).unwrap())
        .build()
        .unwrap()
        .request_token()
        .await
}

/// A client with the defaults that the features bring, except that it uses no proxy.
fn default_client() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().build().unwrap()
}

#[tokio::test]
async fn token_request_refuses_compression() {
    let (address, mut requests) = serve(response("", ANSWER)).await;
    let url = format!("http://{address}");

    default_client().post(&url).send().await.unwrap();
    let control = requests.recv().await.unwrap();
    request_token(&url).await.unwrap();
    let request = requests.recv().await.unwrap();

    for encoding in ["gzip", "deflate", "br", "zstd"] {
        assert!(control.contains(encoding), "the feature for {encoding} is off: {control}");
    }
    let asked: Vec<&str> =
        request.lines().filter(|line| line.starts_with("accept-encoding")).collect();
    assert_eq!(asked, ["accept-encoding: identity"], "{request}");
}

#[tokio::test]
async fn compressed_answer_is_an_error_that_names_the_encoding() {
    for (encoding, body) in encoded() {
        let (address, _requests) =
            serve(response(&format!("content-encoding: {encoding}\r\n"), &body)).await;
        let url = format!("http://{address}");

        let control = default_client().get(&url).send().await.unwrap().bytes().await.unwrap();
        let error = request_token(&url).await.expect_err(encoding);

        assert_eq!(control, ANSWER, "the feature for {encoding} is off");
        assert_eq!(error.kind(), ErrorKind::Malformed);
        assert!(error.to_string().contains(&format!("encoded as {encoding}")), "{error}");
    }
}

/// The first message of a TLS handshake that `connect` starts.
async fn client_hello<F: Future>(connect: impl FnOnce(String) -> F) -> Hello {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    let read = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = [0; 5];
        stream.read_exact(&mut head).await.unwrap();
        let mut hello = vec![0; usize::from(u16::from_be_bytes([head[3], head[4]]))];
        stream.read_exact(&mut hello).await.unwrap();
        Hello::parse(&hello)
    };
    tokio::join!(read, connect(url)).0
}

#[derive(Debug, PartialEq)]
struct Hello {
    cipher_suites: Vec<u8>,
    /// The protocols that the client offers (RFC 7301).
    alpn: Option<Vec<u8>>,
}

impl Hello {
    /// Reads a ClientHello (RFC 8446 §4.1.2).
    fn parse(hello: &[u8]) -> Self {
        fn take<'a>(rest: &mut &'a [u8], width: usize) -> &'a [u8] {
            let length =
                rest[..width].iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
            let (taken, left) = rest[width..].split_at(length);
            *rest = left;
            taken
        }
        // Type and length, version, random value.
        let mut rest = &hello[4 + 2 + 32..];
        take(&mut rest, 1);
        let cipher_suites = take(&mut rest, 2).to_vec();
        take(&mut rest, 1);
        let mut extensions = take(&mut rest, 2);
        let mut alpn = None;
        while !extensions.is_empty() {
            let (kind, mut body) = extensions.split_at(2);
            let extension = take(&mut body, 2);
            if kind == [0, 16] {
                alpn = Some(extension[2..].to_vec());
            }
            extensions = body;
        }
        Self { cipher_suites, alpn }
    }
}

#[tokio::test]
async fn connection_to_ims_is_rustls_with_http_1_1() {
    let get = |client: reqwest::Client| async move |url| client.get::<String>(url).send().await;
    let native = client_hello(get(default_client())).await;
    let rustls = reqwest::Client::builder().no_proxy().tls_backend_rustls().http1_only();
    let rustls = client_hello(get(rustls.build().unwrap())).await;

    let ours = client_hello(async |url: String| request_token(&url).await).await;

    assert_ne!(native.cipher_suites, rustls.cipher_suites, "the feature native-tls is off");
    assert_eq!(native.alpn.as_deref(), Some(&b"\x02h2\x08http/1.1"[..]));
    assert_eq!(ours, rustls);
}

fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[tokio::test]
async fn names_are_resolved_by_the_operating_system() {
    const OF_THE_SYSTEM: &str = "failed to lookup address information";

    let control = default_client().get("http://ims.invalid").send().await.unwrap_err();
    let error = request_token("https://ims.invalid").await.unwrap_err();

    assert!(!chain(&control).contains(OF_THE_SYSTEM), "{}", chain(&control));
    assert!(chain(&error).contains(OF_THE_SYSTEM), "{}", chain(&error));
}

#[tokio::test]
async fn cookie_of_one_answer_is_not_sent_with_the_next_request() {
    let (address, mut requests) =
        serve(response("set-cookie: session=1; Path=/\r\n", ANSWER)).await;
    let ims = ImsClient::builder(Credentials::new("client-id", "client-secret"))
        .environment(Environment::custom(format!("http://{address}")).unwrap())
        .build()
        .unwrap();

    ims.request_token().await.unwrap();
    ims.request_token().await.unwrap();

    for _ in 0..2 {
        let request = requests.recv().await.unwrap();
        assert!(!request.contains("cookie"), "{request}");
    }
}

#[tokio::test]
async fn answers_are_read_alike_with_every_feature_of_serde_json() {
    for (expires_in, seconds) in
        [("3600", 3_600), ("\"3600\"", 3_600), ("3600.0", 3_600), ("3.6e3", 3_600)]
    {
        let body = format!(r#"{{"access_token":"token-1","expires_in":{expires_in}}}"#);
        let (address, _requests) = serve(response("", body.as_bytes())).await;

        let token = request_token(&format!("http://{address}")).await.expect(expires_in);

        assert_eq!(token.expires_in(), Duration::from_secs(seconds), "{expires_in}");
    }
}

#[test]
fn credentials_are_read_alike_with_every_feature_of_serde_json() {
    let credentials = Credentials::from_console_json(
        r#"{"CLIENT_ID":"client-id","CLIENT_SECRETS":["client-secret"],"N":1e400,"M":[1,{"a":-0.5}]}"#,
    );
    assert_eq!(credentials.unwrap().client_id(), "client-id");

    let error = Credentials::from_console_json(r#"{"CLIENT_ID":1,"CLIENT_SECRETS":["p8e"]}"#);
    assert_eq!(error.unwrap_err().to_string(), "CLIENT_ID is not text");

    let deep = format!("{}{}", "[".repeat(500_000), "]".repeat(500_000));
    assert!(Credentials::from_console_json(deep).is_err());
}
