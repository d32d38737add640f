//! Whether a token request deserves a token. Pure.

use http::StatusCode;

use super::clients::Clients;

/// The two faces of the token endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Endpoint {
    /// `/ims/token/v2`, `v3` and `v4`.
    Ims,
    /// `/token`, as PDF Services has it: the client's id and secret, nothing else.
    PdfServices,
}

/// For whom, and for what, a token is to be made.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Grant {
    pub(super) client_id: String,
    pub(super) scope: String,
}

/// Why there is no token.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    NotPost,
    TooLarge,
    Missing(&'static str),
    Repeated(String),
    UnsupportedGrant,
    UnknownClient,
    WrongSecret,
    UnknownScope,
}

impl Refusal {
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::NotPost => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            _ => StatusCode::BAD_REQUEST,
        }
    }

    pub(super) fn error(&self) -> &'static str {
        match self {
            Self::NotPost | Self::TooLarge | Self::Missing(_) | Self::Repeated(_) => {
                "invalid_request"
            }
            Self::UnsupportedGrant => "unsupported_grant_type",
            Self::UnknownClient | Self::WrongSecret => "invalid_client",
            Self::UnknownScope => "invalid_scope",
        }
    }

    pub(super) fn description(&self) -> String {
        match self {
            Self::NotPost => "the token endpoint takes POST".to_owned(),
            Self::TooLarge => "the request is too large".to_owned(),
            Self::Missing(name) => format!("missing {name} parameter"),
            Self::Repeated(name) => format!("repeated {name} parameter"),
            Self::UnsupportedGrant => "unsupported grant_type parameter".to_owned(),
            Self::UnknownClient => "invalid client_id parameter".to_owned(),
            Self::WrongSecret => "invalid client_secret parameter".to_owned(),
            Self::UnknownScope => "invalid scope parameter".to_owned(),
        }
    }
}

/// Judges the parameters of a token request. `scopes` are those that may be asked for, if not all.
pub(super) fn judge(
    endpoint: Endpoint,
    parameters: &[(String, String)],
    clients: &Clients,
    scopes: Option<&[String]>,
) -> Result<Grant, Refusal> {
    if let Some(name) = repeated(parameters) {
        return Err(Refusal::Repeated(name.to_owned()));
    }
    if endpoint == Endpoint::Ims && required(parameters, "grant_type")? != "client_credentials" {
        return Err(Refusal::UnsupportedGrant);
    }
    let client_id = required(parameters, "client_id")?;
    let secret = required(parameters, "client_secret")?;
    clients.check(client_id, secret)?;
    let scope = match endpoint {
        Endpoint::Ims => granted(required(parameters, "scope")?, scopes)?,
        Endpoint::PdfServices => "openid,AdobeID".to_owned(),
    };
    Ok(Grant { client_id: client_id.to_owned(), scope })
}

/// The value of a parameter, which must be there and not empty.
pub(super) fn required<'a>(
    parameters: &'a [(String, String)],
    name: &'static str,
) -> Result<&'a str, Refusal> {
    parameters
        .iter()
        .find(|(key, value)| key == name && !value.is_empty())
        .map(|(_, value)| value.as_str())
        .ok_or(Refusal::Missing(name))
}

/// RFC 6749 allows each parameter once; audiences (`resource`) may be several.
fn repeated(parameters: &[(String, String)]) -> Option<&str> {
    parameters.iter().enumerate().find_map(|(index, (name, _))| {
        let again = name != "resource" && parameters[..index].iter().any(|(seen, _)| seen == name);
        again.then_some(name.as_str())
    })
}

/// The scopes asked for, separated by commas, whatever separated them in the request.
fn granted(asked: &str, known: Option<&[String]>) -> Result<String, Refusal> {
    let asked: Vec<_> = asked.split([',', ' ']).filter(|scope| !scope.is_empty()).collect();
    if asked.is_empty() {
        return Err(Refusal::Missing("scope"));
    }
    match known {
        Some(known) if asked.iter().any(|scope| !known.iter().any(|k| k == scope)) => {
            Err(Refusal::UnknownScope)
        }
        _ => Ok(asked.join(",")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clients() -> Clients {
        let mut clients = Clients::default();
        clients.add("id".into(), "old".into(), 0);
        clients.add("id".into(), "new".into(), 0);
        clients
    }

    fn form(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    fn request() -> Vec<(String, String)> {
        form(&[
            ("grant_type", "client_credentials"),
            ("client_id", "id"),
            ("client_secret", "new"),
            ("scope", "openid, AdobeID"),
        ])
    }

    fn judged(parameters: &[(String, String)]) -> Result<Grant, Refusal> {
        judge(Endpoint::Ims, parameters, &clients(), None)
    }

    #[test]
    fn either_secret_is_good_and_scopes_come_out_with_commas() {
        for secret in ["old", "new"] {
            let mut request = request();
            request[2].1 = secret.to_owned();

            let grant = judged(&request).unwrap();

            assert_eq!(grant.client_id, "id");
            assert_eq!(grant.scope, "openid,AdobeID");
        }
    }

    #[test]
    fn each_parameter_is_mandatory() {
        for name in ["grant_type", "client_id", "client_secret", "scope"] {
            let mut request = request();
            request.retain(|(key, _)| key != name);

            assert_eq!(judged(&request), Err(Refusal::Missing(name)));
        }
    }

    #[test]
    fn a_parameter_comes_once_but_audiences_may_be_several() {
        let mut audiences = request();
        audiences.extend(form(&[("resource", "a"), ("resource", "b")]));
        let mut twice = request();
        twice.extend(form(&[("scope", "openid")]));

        assert!(judged(&audiences).is_ok());
        assert_eq!(judged(&twice), Err(Refusal::Repeated("scope".into())));
    }

    #[test]
    fn a_scope_that_is_not_known_is_refused() {
        let known = ["openid".to_owned()];

        let judged = judge(Endpoint::Ims, &request(), &clients(), Some(&known));

        assert_eq!(judged, Err(Refusal::UnknownScope));
    }

    #[test]
    fn the_proxy_wants_the_id_and_the_secret_alone() {
        let request = form(&[("client_id", "id"), ("client_secret", "new")]);

        assert!(judge(Endpoint::PdfServices, &request, &clients(), None).is_ok());
    }
}
