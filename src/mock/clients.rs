//! Who may ask for tokens, and with which secrets.

use std::collections::HashMap;

use super::grant::Refusal;

/// The most secrets that IMS keeps for one client.
const MAX_SECRETS: usize = 2;

/// The number that the Console gives to the first credential, less one.
const CREDENTIALS_BEFORE: usize = 436_000;

/// The clients that IMS knows, each with its accepted secrets.
#[derive(Default)]
pub(super) struct Clients(HashMap<String, Client>);

struct Client {
    // What the Console calls it, which is not its client id.
    credential: String,
    secrets: Vec<Secret>,
}

/// A secret that is accepted, and what the Console tells about it. Times are in milliseconds since
/// 1970.
pub(super) struct Secret {
    pub(super) uuid: String,
    pub(super) value: String,
    pub(super) created_at: u64,
    pub(super) last_used_at: Option<u64>,
}

impl Secret {
    fn new(value: String, now: u64) -> Self {
        let uuid = format!("{:032x}", fastrand::u128(..));
        Self { uuid, value, created_at: now, last_used_at: None }
    }
}

impl Clients {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// # Panics
    ///
    /// If the client has two secrets already.
    pub(super) fn add(&mut self, id: String, secret: String, now: u64) {
        let secrets = self.known(id);
        assert!(secrets.len() < MAX_SECRETS, "a client has at most {MAX_SECRETS} secrets");
        secrets.push(Secret::new(secret, now));
    }

    /// A secret that stays keeps what is known about it.
    ///
    /// # Panics
    ///
    /// If there are more than two secrets.
    pub(super) fn set(&mut self, id: String, values: Vec<String>, now: u64) {
        assert!(values.len() <= MAX_SECRETS, "a client has at most {MAX_SECRETS} secrets");
        let secrets = self.known(id);
        let mut before = std::mem::take(secrets);
        for value in values {
            let kept = before.iter().position(|secret| secret.value == value);
            let secret = kept.map(|at| before.swap_remove(at));
            secrets.push(secret.unwrap_or_else(|| Secret::new(value, now)));
        }
    }

    pub(super) fn check(&self, id: &str, secret: &str) -> Result<(), Refusal> {
        let client = self.0.get(id).ok_or(Refusal::UnknownClient)?;
        let known = client.secrets.iter().any(|known| known.value == secret);
        if known { Ok(()) } else { Err(Refusal::WrongSecret) }
    }

    /// Notes that a token was issued for this secret.
    pub(super) fn used(&mut self, id: &str, secret: &str, now: u64) {
        let secrets = self.0.get_mut(id).map(|client| &mut client.secrets);
        for known in secrets.into_iter().flatten().filter(|known| known.value == secret) {
            known.last_used_at = Some(now);
        }
    }

    /// The secrets of a client, the oldest first.
    pub(super) fn secrets(&self, id: &str) -> Option<&[Secret]> {
        self.0.get(id).map(|client| client.secrets.as_slice())
    }

    /// What the Console calls this client.
    pub(super) fn credential(&self, id: &str) -> Option<&str> {
        self.0.get(id).map(|client| client.credential.as_str())
    }

    /// The id of the client that the Console calls this.
    pub(super) fn of_credential(&self, credential: &str) -> Option<&str> {
        let mut clients = self.0.iter();
        clients.find(|(_, client)| client.credential == credential).map(|(id, _)| id.as_str())
    }

    /// Gives the client a further secret, unless it has two.
    pub(super) fn generate(&mut self, id: &str, now: u64) -> Option<&Secret> {
        let secrets = &mut self.0.get_mut(id)?.secrets;
        if secrets.len() == MAX_SECRETS {
            return None;
        }
        let random: String = std::iter::repeat_with(fastrand::alphanumeric).take(32).collect();
        secrets.push(Secret::new(format!("p8e-{random}"), now));
        secrets.last()
    }

    /// Whether there was such a secret.
    pub(super) fn remove(&mut self, id: &str, uuid: &str) -> bool {
        let Some(client) = self.0.get_mut(id) else { return false };
        let before = client.secrets.len();
        client.secrets.retain(|secret| secret.uuid != uuid);
        client.secrets.len() < before
    }

    fn known(&mut self, id: String) -> &mut Vec<Secret> {
        let number = CREDENTIALS_BEFORE + 1 + self.0.len();
        let new = || Client { credential: number.to_string(), secrets: Vec::new() };
        &mut self.0.entry(id).or_insert_with(new).secrets
    }
}
