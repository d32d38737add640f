//! TLS for real: which IMS gets the client secret, and what becomes of one that is not trusted.
//!
//! In front of a `MockIms` stands a TLS server with a certificate of a made CA.

#![cfg(feature = "reqwest")]
#![allow(clippy::unwrap_used)]

use std::{
    error::Error,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, date_time_ymd,
};
use tokio::{
    net::{TcpListener, TcpStream},
    time::sleep,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        RootCertStore, ServerConfig,
        crypto::aws_lc_rs,
        pki_types::{CertificateDer, PrivateKeyDer},
        server::WebPkiClientVerifier,
    },
};
use tower_adobe_auth::{
    AccessToken, Credentials, Environment, ErrorKind, TokenError, TokenSource, mock::MockIms,
};

const NAME: &str = "ims.example";
const SECRET: &str = MockIms::CLIENT_SECRET;

/// A certificate authority that nobody knows.
struct Ca {
    certificate: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key.
struct Certified {
    certificate: CertificateDer<'static>,
    key: KeyPair,
}

impl Ca {
    fn named(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = params.self_signed(&key).unwrap();
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    fn certify(&self, params: &CertificateParams) -> Certified {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        Certified { certificate, key }
    }

    /// For a server of this name.
    fn server(&self, name: &str) -> Certified {
        self.certify(&server_params(name))
    }

    /// For a client.
    fn client(&self) -> Certified {
        let mut params = CertificateParams::default();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.certify(&params)
    }

    fn root(&self) -> reqwest::Certificate {
        reqwest::Certificate::from_der(self.certificate.der()).unwrap()
    }
}

impl Certified {
    fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(self.key.serialize_der().into())
    }

    fn identity(&self) -> reqwest::Identity {
        let pem =
            pem("PRIVATE KEY", &self.key.serialize_der()) + &pem("CERTIFICATE", &self.certificate);
        reqwest::Identity::from_pem(pem.as_bytes()).unwrap()
    }
}

fn server_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new([name.to_owned()]).unwrap();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = BASE64_STANDARD.encode(der);
    let lines: Vec<&str> =
        text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

/// An IMS behind TLS.
struct TlsIms {
    ims: MockIms,
    address: SocketAddr,
    handshakes: Arc<Mutex<Vec<Handshake>>>,
}

/// How a handshake ended, as the server saw it: with the client's certificate if it showed one, or
/// with an error.
type Handshake = Result<Option<CertificateDer<'static>>, String>;

impl TlsIms {
    async fn start(server: &Certified) -> Self {
        Self::start_with(server, None).await
    }

    /// It talks only to clients with a certificate of `clients`.
    async fn start_mutual(server: &Certified, clients: &Ca) -> Self {
        Self::start_with(server, Some(clients)).await
    }

    async fn start_with(server: &Certified, clients: Option<&Ca>) -> Self {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap();
        let config = match clients {
            None => config.with_no_client_auth(),
            Some(ca) => {
                let mut roots = RootCertStore::empty();
                roots.add(ca.certificate.der().clone()).unwrap();
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                config.with_client_cert_verifier(verifier.build().unwrap())
            }
        };
        let config = config
            .with_single_cert(vec![server.certificate.clone()], server.private_key())
            .unwrap();

        let ims = MockIms::start().await;
        let behind: SocketAddr = ims.url().strip_prefix("http://").unwrap().parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let handshakes = Arc::new(Mutex::new(Vec::new()));
        let acceptor = TlsAcceptor::from(Arc::new(config));
        tokio::spawn(serve(listener, acceptor, behind, Arc::clone(&handshakes)));
        Self { ims, address, handshakes }
    }

    /// The handshakes that were begun. A client's last word may still be under way to the server.
    async fn handshakes(&self) -> Vec<Handshake> {
        for _ in 0..500 {
            if !self.handshakes.lock().unwrap().is_empty() {
                break;
            }
            sleep(Duration::from_millis(10)).await;
        }
        self.handshakes.lock().unwrap().clone()
    }

    /// A client of the user's own, who knows where `ims.example` is, and the machine's roots.
    fn client(&self) -> reqwest::ClientBuilder {
        reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .resolve(NAME, self.address)
    }

    /// Asks this IMS for a token, once.
    async fn ask(&self, client: reqwest::ClientBuilder) -> Result<AccessToken, TokenError> {
        let client = client.build().unwrap();
        let credentials = Credentials::new(MockIms::CLIENT_ID, SECRET);
        let url = format!("https://{NAME}:{}", self.address.port());
        TokenSource::builder(credentials)
            .environment(Environment::custom(url).unwrap())
            .map_ims(|ims| ims.reqwest_client(client))
            .attempts(1)
            .build()
            .unwrap()
            .token()
            .await
    }

    /// Asks for a token, and is refused by the client before a word of HTTP was said.
    ///
    /// The server has seen the client give up with `alert`, and the error's chain tells `cause`.
    async fn assert_refused(&self, client: reqwest::ClientBuilder, cause: &str, alert: &str) {
        let error = self.ask(client).await.unwrap_err();

        assert_eq!(error.kind(), ErrorKind::Connection);
        assert!(error.is_transient());
        assert!(error.to_string().starts_with("IMS could not be reached"), "{error}");
        let chain = chain(&error);
        assert!(chain.contains("invalid peer certificate") && chain.contains(cause), "{chain}");
        assert!(!chain.contains(SECRET) && !format!("{error:?}").contains(SECRET), "{chain}");
        let handshakes = self.handshakes().await;
        assert!(
            matches!(&handshakes[..], [Err(seen)] if seen.contains(alert)),
            "{alert}: {handshakes:?}"
        );
        assert_eq!(self.ims.token_requests(), 0);
    }
}

/// Takes the TLS off each connection, and passes what was in it to `behind`.
async fn serve(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    behind: SocketAddr,
    handshakes: Arc<Mutex<Vec<Handshake>>>,
) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        match acceptor.accept(stream).await {
            Err(error) => handshakes.lock().unwrap().push(Err(error.to_string())),
            Ok(mut stream) => {
                let shown = stream.get_ref().1.peer_certificates();
                let shown = shown.map(|chain| chain[0].clone().into_owned());
                handshakes.lock().unwrap().push(Ok(shown));
                tokio::spawn(async move {
                    let mut plain = TcpStream::connect(behind).await.unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut stream, &mut plain).await;
                });
            }
        }
    }
}

/// The error and its causes, in one line.
fn chain(error: &(dyn Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| (*error).source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[tokio::test]
async fn an_ims_is_trusted_when_its_root_is_given() {
    let ca = Ca::named("our CA");
    let ims = TlsIms::start(&ca.server(NAME)).await;

    for client in
        [ims.client().tls_certs_only([ca.root()]), ims.client().tls_certs_merge([ca.root()])]
    {
        ims.ask(client).await.unwrap();
    }

    assert_eq!(ims.ims.token_requests(), 2);
    assert_eq!(ims.handshakes().await, [Ok(None), Ok(None)]);
}

#[tokio::test]
async fn an_ims_is_refused_when_its_root_is_not_given() {
    let ims = TlsIms::start(&Ca::named("our CA").server(NAME)).await;

    ims.assert_refused(ims.client(), "UnknownIssuer", "UnknownCA").await;
}

#[tokio::test]
async fn an_ims_is_refused_when_another_root_is_given() {
    let ims = TlsIms::start(&Ca::named("our CA").server(NAME)).await;

    let client = ims.client().tls_certs_only([Ca::named("another CA").root()]);

    ims.assert_refused(client, "UnknownIssuer", "UnknownCA").await;
}

#[tokio::test]
async fn an_ims_is_refused_when_its_name_is_wrong() {
    let ca = Ca::named("our CA");
    let ims = TlsIms::start(&ca.server("ims.example.evil.com")).await;

    let client = ims.client().tls_certs_only([ca.root()]);

    ims.assert_refused(client, "not valid for name", "BadCertificate").await;
}

#[tokio::test]
async fn an_ims_is_refused_when_its_certificate_has_expired() {
    let ca = Ca::named("our CA");
    let mut params = server_params(NAME);
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2021, 1, 1);
    let ims = TlsIms::start(&ca.certify(&params)).await;

    let client = ims.client().tls_certs_only([ca.root()]);

    ims.assert_refused(client, "expired", "CertificateExpired").await;
}

#[tokio::test]
async fn an_ims_is_refused_when_its_certificate_is_not_valid_yet() {
    let ca = Ca::named("our CA");
    let mut params = server_params(NAME);
    params.not_before = date_time_ymd(3000, 1, 1);
    let ims = TlsIms::start(&ca.certify(&params)).await;

    let client = ims.client().tls_certs_only([ca.root()]);

    ims.assert_refused(client, "not valid yet", "CertificateExpired").await;
}

#[tokio::test]
async fn an_ims_without_tls_is_refused() {
    let ca = Ca::named("our CA");
    let mut ims = TlsIms::start(&ca.server(NAME)).await;
    ims.address = ims.ims.url().strip_prefix("http://").unwrap().parse().unwrap();

    let error = ims.ask(ims.client().tls_certs_only([ca.root()])).await.unwrap_err();

    assert_eq!(error.kind(), ErrorKind::Connection);
    assert_eq!(ims.ims.token_requests(), 0);
}

#[tokio::test]
async fn the_users_client_certificate_is_shown_to_an_ims_that_asks_for_it() {
    let (ca, clients) = (Ca::named("our CA"), Ca::named("the clients' CA"));
    let ims = TlsIms::start_mutual(&ca.server(NAME), &clients).await;
    let certified = clients.client();

    let client = ims.client().tls_certs_only([ca.root()]).identity(certified.identity());
    ims.ask(client).await.unwrap();

    assert_eq!(ims.handshakes().await, [Ok(Some(certified.certificate))]);
    assert_eq!(ims.ims.token_requests(), 1);
}

#[tokio::test]
async fn without_a_client_certificate_or_with_a_strangers_such_an_ims_hears_nothing() {
    let (ca, clients) = (Ca::named("our CA"), Ca::named("the clients' CA"));
    let stranger = Ca::named("another CA").client();

    for (identity, seen) in
        [(None, "peer sent no certificates"), (Some(stranger.identity()), "UnknownIssuer")]
    {
        let ims = TlsIms::start_mutual(&ca.server(NAME), &clients).await;
        let client = ims.client().tls_certs_only([ca.root()]);
        let client = match identity {
            None => client,
            Some(identity) => client.identity(identity),
        };

        let error = ims.ask(client).await.unwrap_err();

        assert_eq!(error.kind(), ErrorKind::Connection, "{}", chain(&error));
        assert!(!chain(&error).contains(SECRET));
        let handshakes = ims.handshakes().await;
        assert!(matches!(&handshakes[..], [Err(error)] if error.contains(seen)), "{handshakes:?}");
        assert_eq!(ims.ims.token_requests(), 0);
    }
}
