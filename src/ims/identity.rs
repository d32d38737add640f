//! The credentials of one attempt, for a source that shares its tokens.

use super::ImsClient;
use crate::{credentials::Credentials, error::TokenError};

impl ImsClient {
    /// Reads the credentials. It is not a use of them: a change is still reported afterwards.
    ///
    /// # Errors
    ///
    /// If the provider fails.
    pub(crate) async fn credentials(&self) -> Result<Credentials, TokenError> {
        let credentials = self.provider().credentials().await;
        credentials
            .map_err(|error| TokenError::transient_fetch("cannot read the credentials", error))
    }

    /// The identity that clients with interchangeable tokens share: IMS, the client, the organization
    /// and the scopes, which are sorted.
    #[cfg(feature = "store")]
    pub(crate) fn identity(&self, credentials: &Credentials) -> Vec<String> {
        let mut scopes: Vec<_> = credentials.scopes().iter().map(str::to_owned).collect();
        scopes.sort_unstable();
        scopes.dedup();
        let mut identity = vec![
            self.token_url().to_string(),
            credentials.client_id().to_owned(),
            credentials.org_id().unwrap_or_default().to_owned(),
        ];
        identity.append(&mut scopes);
        identity
    }

    /// Records that a token of these credentials is used, which another process has requested. Other
    /// credentials then count as a change, which the first comparison would otherwise miss.
    #[cfg(feature = "store")]
    pub(crate) fn record_use(&self, credentials: &Credentials) {
        self.last_credentials().record_first(self.fingerprint_of(credentials));
    }
}
