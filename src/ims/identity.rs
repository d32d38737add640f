//! The identity that clients with interchangeable tokens share.

use super::ImsClient;
use crate::error::BoxError;

impl ImsClient {
    /// IMS, the client, the organization and the scopes, which are sorted.
    ///
    /// Reading it is not a use of the credentials: a change is still reported after it.
    pub(crate) async fn identity(&self) -> Result<Vec<String>, BoxError> {
        let credentials = self.provider().credentials().await?;
        let mut scopes: Vec<_> = credentials.scopes().iter().map(str::to_owned).collect();
        scopes.sort_unstable();
        scopes.dedup();
        let mut identity = vec![
            self.token_url().to_string(),
            credentials.client_id().to_owned(),
            credentials.org_id().unwrap_or_default().to_owned(),
        ];
        identity.append(&mut scopes);
        Ok(identity)
    }
}
