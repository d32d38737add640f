//! The credentials themselves.

use std::{
    env, fmt,
    hash::{BuildHasher, RandomState},
    iter,
    path::Path,
};

use http::HeaderValue;

use super::{ClientSecret, Scopes, console, json::Json, variables};
use crate::error::ConfigError;

/// The scopes of Firefly integrations, from Adobe's documentation.
const DEFAULT_SCOPES: [&str; 4] = ["openid", "AdobeID", "firefly_api", "ff_apis"];

/// An OAuth Server-to-Server credential of the Adobe Developer Console.
///
/// `Debug` shows no secret.
///
/// # Example
///
/// ```
/// use tower_adobe_auth::Credentials;
///
/// let credentials = Credentials::new("client-id", "client-secret")
///     .with_scopes("openid, AdobeID, read_organizations")
///     .with_org_id("1234@AdobeOrg");
///
/// assert_eq!(credentials.scopes().to_string(), "openid,AdobeID,read_organizations");
/// ```
#[derive(Clone)]
pub struct Credentials {
    client_id: String,
    secret: ClientSecret,
    next_secret: Option<ClientSecret>,
    scopes: Scopes,
    /// `true` if the scopes are empty on purpose.
    without_scopes: bool,
    org_id: Option<String>,
}

impl Credentials {
    /// Credentials with the default scopes `openid`, `AdobeID`, `firefly_api` and `ff_apis`, one
    /// secret and no organization.
    ///
    /// Empty values, and values that cannot be sent, are an error of the builder that uses the
    /// credentials.
    pub fn new(client_id: impl Into<String>, client_secret: impl Into<ClientSecret>) -> Self {
        Self {
            client_id: client_id.into(),
            secret: client_secret.into(),
            next_secret: None,
            scopes: Scopes::from(DEFAULT_SCOPES),
            without_scopes: false,
            org_id: None,
        }
    }

    /// Reads `ADOBE_CLIENT_ID`, `ADOBE_CLIENT_SECRET`, `ADOBE_SCOPES` and `ADOBE_ORG_ID` from the
    /// environment, as [`from_env_with_prefix`](Self::from_env_with_prefix) does.
    ///
    /// # Errors
    ///
    /// As for [`from_env_with_prefix`](Self::from_env_with_prefix).
    pub fn from_env() -> Result<Self, ConfigError> {
        Self::from_env_with_prefix("ADOBE")
    }

    /// Reads the environment variables whose names start with `prefix` and an underscore, such as
    /// `FIREFLY_SERVICES_CLIENT_ID` for the prefix `FIREFLY_SERVICES`.
    ///
    /// | variable | holds | if it is not set |
    /// | --- | --- | --- |
    /// | `_CLIENT_ID` | the client id | an error |
    /// | `_CLIENT_SECRET` | the secret, or a JSON array of the current and the next one | `_SECRET` is read |
    /// | `_SCOPES` | a JSON array, or text separated by commas or spaces | the default scopes |
    /// | `_ORG_ID` | the organization | none |
    ///
    /// White space around a value is dropped, as secrets that are mounted from files end with a
    /// newline. Apart from that, a secret that is not a JSON array of strings is taken literally.
    /// Of a longer array, the first two are taken.
    ///
    /// # Errors
    ///
    /// Names the variable that is missing, empty, not valid Unicode, or holds what cannot be sent.
    pub fn from_env_with_prefix(prefix: impl AsRef<str>) -> Result<Self, ConfigError> {
        variables::read(prefix.as_ref(), |name| env::var_os(name))
    }

    /// Reads JSON of the Adobe Developer Console, in any of three shapes:
    ///
    /// - the file of one credential: `CLIENT_ID`, `CLIENT_SECRETS`, `SCOPES`, `ORG_ID`;
    /// - the context of Adobe's command line: `client_id`, `client_secrets`, `scopes`,
    ///   `ims_org_id`;
    /// - the export of a project: the first entry of `project.workspace.details.credentials` that
    ///   holds an `oauth_server_to_server`, and `project.org.ims_org_id`.
    ///
    /// Keys are read without regard to case, unknown ones are ignored. `CLIENT_SECRETS` holds the
    /// current secret and, if there are two, the next one; further ones are not taken. Without
    /// `SCOPES` the default scopes are asked for. A field that is `null` counts as missing.
    ///
    /// # Errors
    ///
    /// Names the line and the column of malformed JSON, or the field that is missing, empty, of
    /// another type, or holds what cannot be sent. Nothing of the JSON's values is in the error.
    pub fn from_console_json(json: impl AsRef<[u8]>) -> Result<Self, ConfigError> {
        console::read(json.as_ref())
    }

    /// Reads a file of the Adobe Developer Console, as
    /// [`from_console_json`](Self::from_console_json) does.
    ///
    /// It blocks until the file is read: call it while the program starts.
    ///
    /// # Errors
    ///
    /// If the file cannot be read or has more than a mebibyte; else as for
    /// [`from_console_json`](Self::from_console_json).
    pub fn from_console_file(path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        console::read_file(path.as_ref())
    }

    /// Credentials with the first two of `secrets`. An empty list is an error that names `source`.
    pub(super) fn with_secrets(
        client_id: &str,
        secrets: Vec<ClientSecret>,
        source: &str,
    ) -> Result<Self, ConfigError> {
        let mut secrets = secrets.into_iter();
        let current = secrets.next().ok_or_else(|| empty(source))?;
        let credentials = Self::new(client_id, current);
        Ok(Self { next_secret: secrets.next(), ..credentials })
    }

    /// Sets the scopes of token requests: a list, a JSON array as text, or text separated by commas or
    /// spaces. Default: `openid`, `AdobeID`, `firefly_api`, `ff_apis`.
    #[must_use]
    pub fn with_scopes(mut self, scopes: impl Into<Scopes>) -> Self {
        self.scopes = scopes.into();
        self.without_scopes = false;
        self
    }

    /// Sends token requests without a `scope` field.
    ///
    /// The token proxy of PDF Services requires this (see [`Environment`](crate::Environment)); IMS
    /// itself rejects such a request. Scopes that are empty in any other way, such as from an empty
    /// environment variable, are an error of the builder that uses the credentials.
    ///
    /// ```
    /// use tower_adobe_auth::Credentials;
    ///
    /// let credentials = Credentials::new("client-id", "client-secret").without_scopes();
    ///
    /// assert!(credentials.scopes().is_empty());
    /// ```
    #[must_use]
    pub fn without_scopes(mut self) -> Self {
        self.scopes = Scopes::from("");
        self.without_scopes = true;
        self
    }

    /// Sets the organization, such as `1234@AdobeOrg`; it is sent as given. Default: none.
    ///
    /// The token request needs it if the client is not owned by one organization, and some APIs
    /// (such as Experience Platform's) want it in a header.
    #[must_use]
    pub fn with_org_id(mut self, org_id: impl Into<String>) -> Self {
        self.org_id = Some(org_id.into());
        self
    }

    /// Clears the organization.
    #[must_use]
    pub fn without_org_id(mut self) -> Self {
        self.org_id = None;
        self
    }

    /// Sets the secret that will replace the current one, while the credential has both. Default:
    /// none.
    #[must_use]
    pub fn with_next_secret(mut self, next_secret: impl Into<ClientSecret>) -> Self {
        self.next_secret = Some(next_secret.into());
        self
    }

    /// Clears the next secret.
    #[must_use]
    pub fn without_next_secret(mut self) -> Self {
        self.next_secret = None;
        self
    }

    /// The client id, which APIs know as the API key.
    #[must_use]
    pub fn client_id(&self) -> &str {
        &self.client_id
    }

    /// The current client secret.
    #[must_use]
    pub fn client_secret(&self) -> &ClientSecret {
        &self.secret
    }

    /// The client secret that will replace the current one.
    #[must_use]
    pub fn next_secret(&self) -> Option<&ClientSecret> {
        self.next_secret.as_ref()
    }

    /// The scopes of token requests.
    #[must_use]
    pub fn scopes(&self) -> &Scopes {
        &self.scopes
    }

    /// The organization.
    #[must_use]
    pub fn org_id(&self) -> Option<&str> {
        self.org_id.as_deref()
    }

    /// The current secret and, if there is one, the next.
    pub(crate) fn secrets(&self) -> impl Iterator<Item = &ClientSecret> {
        iter::once(&self.secret).chain(&self.next_secret)
    }

    /// The texts of the secrets, to be hashed.
    #[cfg(feature = "store")]
    pub(crate) fn exposed_secrets(&self) -> impl Iterator<Item = &str> {
        self.secrets().map(ClientSecret::expose_secret)
    }

    /// Identifies everything that a token depends on, without regard to the order of secrets and
    /// scopes.
    pub(crate) fn fingerprint(&self, hasher: &RandomState) -> u64 {
        fn sorted<'a>(texts: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
            let mut texts: Vec<_> = texts.collect();
            texts.sort_unstable();
            texts
        }
        let secrets = sorted(self.secrets().map(ClientSecret::expose_secret));
        hasher.hash_one((&self.client_id, secrets, sorted(self.scopes.iter()), &self.org_id))
    }

    /// Checks that every field can be sent; the error names the field that cannot.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        self.check_as(&Names {
            client_id: "client_id",
            client_secret: "client_secret",
            scopes: "scopes",
            org_id: "org_id",
        })
    }

    /// [`check`](Self::check), with errors that call the fields by `names`.
    pub(super) fn check_as(&self, names: &Names<'_>) -> Result<(), ConfigError> {
        check_header(&self.client_id, names.client_id)?;
        if self.secrets().any(|secret| is_blank(secret.expose_secret())) {
            return Err(empty(names.client_secret));
        }
        if self.scopes.is_empty() && !self.without_scopes {
            return Err(empty(names.scopes));
        }
        if let Some(place) = self.scopes.first_illegal() {
            return Err(ConfigError::new(format!(
                "scope {place} of {} holds a character that no scope can hold",
                names.scopes
            )));
        }
        self.org_id.as_ref().map_or(Ok(()), |org_id| check_header(org_id, names.org_id))
    }
}

/// The names of the fields at the origin of the credentials.
pub(super) struct Names<'a> {
    pub(super) client_id: &'a str,
    pub(super) client_secret: &'a str,
    pub(super) scopes: &'a str,
    pub(super) org_id: &'a str,
}

/// The secrets in `text`: those of a JSON array of strings, or else `text` itself.
pub(super) fn parse_secrets(text: &str) -> Vec<ClientSecret> {
    let json = Json::parse(text.as_bytes()).ok();
    let secrets = json.as_ref().and_then(Json::texts).unwrap_or_else(|| vec![text]);
    secrets.into_iter().map(ClientSecret::from).collect()
}

/// The client id and the organization are sent as headers, beside the API requests.
fn check_header(value: &str, name: &str) -> Result<(), ConfigError> {
    if is_blank(value) {
        return Err(empty(name));
    }
    // White space around a header's value is no part of it (RFC 9110 §5.5).
    if value.trim() != value || HeaderValue::from_str(value).is_err() {
        return Err(ConfigError::new(format!("{name} cannot be sent as the value of a header")));
    }
    Ok(())
}

fn is_blank(value: &str) -> bool {
    value.trim().is_empty()
}

fn empty(name: &str) -> ConfigError {
    ConfigError::new(format!("{name} is empty"))
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { client_id, secret, next_secret, scopes, org_id, .. } = self;
        f.debug_struct("Credentials")
            .field("client_id", client_id)
            .field("client_secret", secret)
            .field("next_secret", next_secret)
            .field("scopes", scopes)
            .field("org_id", org_id)
            .finish()
    }
}
