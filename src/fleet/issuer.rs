//! [`Issuer`]: whose tokens a fleet shares, and one snapshot of the credentials for each attempt.

use std::sync::Arc;

use crate::{
    credentials::Credentials,
    error::TokenError,
    ims::ImsClient,
    store::{Keys, hash},
};

/// The issuer of the tokens.
pub(super) enum Issuer {
    /// IMS, to the credentials of this client.
    Ims(Arc<ImsClient>),
    /// A fetcher of the user, whose tokens are shared under this name.
    Named(String),
}

/// The credentials of one attempt, and what follows from them. The key in the store, the fingerprint
/// and the token request come from the same snapshot, so that a change of the credentials in the middle
/// of an attempt mixes no two tenants.
#[derive(Clone)]
pub(super) struct Snapshot {
    /// The key of the record: IMS, the client, the organization and the scopes, hashed.
    pub(super) key: String,
    /// The fingerprint of the secrets; `None` for a fetcher of the user.
    pub(super) secrets: Option<String>,
    pub(super) credentials: Option<Credentials>,
}

impl Issuer {
    /// Reads the credentials. Reading them is not a use: a change is still reported afterwards.
    pub(super) async fn snapshot(&self, keys: &Keys) -> Result<Snapshot, TokenError> {
        match self {
            Self::Ims(ims) => {
                let credentials = ims.credentials().await?;
                let identity = ims.identity(&credentials);
                let key = hash("credentials", identity.iter().map(|part| part.as_bytes()));
                let mut secrets: Vec<_> = credentials.exposed_secrets().collect();
                secrets.sort_unstable();
                let secrets = Some(keys.fingerprint(&key, secrets));
                Ok(Snapshot { key, secrets, credentials: Some(credentials) })
            }
            Self::Named(name) => {
                let key = hash("name", [name.as_bytes()]);
                Ok(Snapshot { key, secrets: None, credentials: None })
            }
        }
    }

    /// Records that the source uses a token of these credentials, if it has used none before. Other
    /// credentials then count as a change.
    pub(super) fn record_use(&self, snapshot: &Snapshot) {
        if let (Self::Ims(ims), Some(credentials)) = (self, &snapshot.credentials) {
            ims.record_use(credentials);
        }
    }
}
