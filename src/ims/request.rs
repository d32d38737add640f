//! The token request on the wire.

use bytes::Bytes;
use http::{
    HeaderValue, Method, Request, Uri,
    header::{ACCEPT, ACCEPT_ENCODING, CONTENT_TYPE, USER_AGENT},
};
use zeroize::Zeroizing;

use crate::credentials::{ClientSecret, Credentials};

/// The request of the `client_credentials` grant. Its body is wiped when its last clone is gone.
pub(crate) fn token_request(
    credentials: &Credentials,
    secret: &ClientSecret,
    token_url: Uri,
) -> Request<Bytes> {
    let mut request = Request::new(Bytes::from_owner(form(credentials, secret)));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = token_url;

    let headers = request.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
    headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
    // Explicit, because many HTTP clients insert their encodings where this header is missing.
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    headers.insert(
        USER_AGENT,
        HeaderValue::from_static(concat!("tower-adobe-auth/", env!("CARGO_PKG_VERSION"))),
    );
    request
}

fn form(credentials: &Credentials, secret: &ClientSecret) -> Zeroizing<Vec<u8>> {
    let scope = credentials.scopes().to_string();
    let mut fields = vec![
        ("grant_type", "client_credentials"),
        ("client_id", credentials.client_id()),
        ("client_secret", secret.expose_secret()),
    ];
    // The token proxy of PDF Services accepts no scope.
    if !scope.is_empty() {
        fields.push(("scope", &scope));
    }
    if let Some(org_id) = credentials.org_id() {
        fields.push(("org_id", org_id));
    }

    // Room for every byte percent-encoded. A buffer that grows would leave copies of the secret behind.
    let room = fields.iter().map(|(name, value)| name.len() + 3 * value.len() + 2).sum();
    let mut form = form_urlencoded::Serializer::new(String::with_capacity(room));
    form.extend_pairs(fields);
    Zeroizing::new(form.finish().into_bytes())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fields(credentials: &Credentials) -> Vec<(String, String)> {
        form_urlencoded::parse(&form(credentials, credentials.client_secret()))
            .into_owned()
            .collect()
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|&(name, value)| (name.into(), value.into())).collect()
    }

    #[test]
    fn the_form_holds_the_grant_and_the_credentials() {
        let credentials = Credentials::new("id", "p8e-a+b&c=d%41 é").with_org_id("1@AdobeOrg");

        assert_eq!(
            fields(&credentials),
            pairs(&[
                ("grant_type", "client_credentials"),
                ("client_id", "id"),
                ("client_secret", "p8e-a+b&c=d%41 é"),
                ("scope", "openid,AdobeID,firefly_api,ff_apis"),
                ("org_id", "1@AdobeOrg"),
            ])
        );
    }

    #[test]
    fn no_scopes_means_no_scope_field() {
        let credentials = Credentials::new("id", "secret").without_scopes();

        assert!(fields(&credentials).iter().all(|(name, _)| name != "scope"));
    }

    proptest! {
        #[test]
        fn any_secret_arrives_intact(secret in ".{1,200}") {
            let credentials = Credentials::new("id", secret.as_str());

            prop_assert_eq!(&fields(&credentials)[2].1, &secret);
        }
    }
}
