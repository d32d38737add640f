//! Who may ask for tokens.

use std::collections::HashMap;

use super::grant::Refusal;

/// The most secrets that IMS keeps for one client.
const MAX_SECRETS: usize = 2;

/// The clients that IMS knows, each with its accepted secrets.
#[derive(Default)]
pub(super) struct Clients(HashMap<String, Vec<String>>);

impl Clients {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// # Panics
    ///
    /// If the client has two secrets already.
    pub(super) fn add(&mut self, id: String, secret: String) {
        let secrets = self.0.entry(id).or_default();
        assert!(secrets.len() < MAX_SECRETS, "a client has at most {MAX_SECRETS} secrets");
        secrets.push(secret);
    }

    /// # Panics
    ///
    /// If there are more than two secrets.
    pub(super) fn set(&mut self, id: String, secrets: Vec<String>) {
        assert!(secrets.len() <= MAX_SECRETS, "a client has at most {MAX_SECRETS} secrets");
        self.0.insert(id, secrets);
    }

    pub(super) fn check(&self, id: &str, secret: &str) -> Result<(), Refusal> {
        let secrets = self.0.get(id).ok_or(Refusal::UnknownClient)?;
        if secrets.iter().any(|known| known == secret) { Ok(()) } else { Err(Refusal::WrongSecret) }
    }
}
