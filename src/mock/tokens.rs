//! The tokens that were issued: how they look, and which of them live. Pure: `now` is given.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;

use super::grant::Grant;

/// How many tokens are remembered; older ones count as never issued.
const REMEMBERED: usize = 10_000;

/// A token's signature is as long as one made with a key of 2,048 bits.
const SIGNATURE: usize = 256;

/// All tokens issued.
pub(super) struct Tokens {
    random: fastrand::Rng,
    issued: HashMap<Arc<str>, Issued>,
    order: VecDeque<Arc<str>>,
    serial: u64,
    capacity: usize,
}

struct Issued {
    client_id: String,
    // Separated by commas.
    scope: String,
    // Milliseconds since 1970.
    expires_at: u64,
    revoked: bool,
}

impl Tokens {
    pub(super) fn new() -> Self {
        Self::remembering(REMEMBERED)
    }

    fn remembering(capacity: usize) -> Self {
        Self {
            capacity,
            random: fastrand::Rng::new(),
            issued: HashMap::new(),
            order: VecDeque::new(),
            serial: 0,
        }
    }

    /// Issues a token that lives for `lifetime` from `now`, in milliseconds since 1970.
    pub(super) fn issue(&mut self, grant: &Grant, lifetime: Duration, now: u64) -> Arc<str> {
        let lifetime = u64::try_from(lifetime.as_millis()).unwrap_or(u64::MAX);
        let token = Arc::<str>::from(self.mint(grant, lifetime, now));
        if self.order.len() >= self.capacity {
            if let Some(oldest) = self.order.pop_front() {
                self.issued.remove(&oldest);
            }
        }
        let issued = Issued {
            client_id: grant.client_id.clone(),
            scope: grant.scope.clone(),
            expires_at: now.saturating_add(lifetime),
            revoked: false,
        };
        self.issued.insert(token.clone(), issued);
        self.order.push_back(token.clone());
        token
    }

    /// The client whose living token this is.
    pub(super) fn owner(&self, token: &str, now: u64) -> Option<&str> {
        let issued = self.issued.get(token)?;
        (!issued.revoked && now < issued.expires_at).then_some(issued.client_id.as_str())
    }

    /// Whether a token was issued for all of these scopes.
    pub(super) fn has_scopes(&self, token: &str, scopes: &[&str]) -> bool {
        let issued = self.issued.get(token).map_or("", |issued| issued.scope.as_str());
        scopes.iter().all(|scope| issued.split(',').any(|one| one == *scope))
    }

    pub(super) fn revoke(&mut self, token: &str) {
        if let Some(issued) = self.issued.get_mut(token) {
            issued.revoked = true;
        }
    }

    pub(super) fn revoke_all(&mut self) {
        for issued in self.issued.values_mut() {
            issued.revoked = true;
        }
    }

    fn mint(&mut self, grant: &Grant, lifetime: u64, now: u64) -> String {
        self.serial += 1;
        let header = json!({
            "alg": "RS256",
            "x5u": "ims_na1-key-at-1.cer",
            "kid": "ims_na1-key-at-1",
            "itt": "at",
        });
        let nonce = self.hex(32);
        let id = format!("{now}_{}_{nonce}", self.serial);
        let account = self.hex(24).to_uppercase();
        let claims = json!({
            "id": id,
            "type": "access_token",
            "client_id": grant.client_id,
            "user_id": format!("{account}@techacct.adobe.com"),
            "aa_id": format!("{account}@techacct.adobe.com"),
            "as": "ims-na1",
            "sid": self.hex(64),
            "moi": self.hex(8),
            "fg": self.hex(96),
            "created_at": now.to_string(),
            "expires_in": lifetime.to_string(),
            "scope": grant.scope,
        });
        let mut signature = [0; SIGNATURE];
        self.random.fill(&mut signature);
        let encode = |part: &[u8]| URL_SAFE_NO_PAD.encode(part);
        format!(
            "{}.{}.{}",
            encode(header.to_string().as_bytes()),
            encode(claims.to_string().as_bytes()),
            encode(&signature)
        )
    }

    fn hex(&mut self, digits: usize) -> String {
        (0..digits).map(|_| self.random.digit(16)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant() -> Grant {
        Grant { client_id: "id".into(), scope: "openid,AdobeID,firefly_api,ff_apis".into() }
    }

    #[test]
    fn a_token_lives_to_the_millisecond() {
        let mut tokens = Tokens::new();

        let token = tokens.issue(&grant(), Duration::from_millis(250), 1_000);

        assert_eq!(tokens.owner(&token, 1_249), Some("id"));
        assert_eq!(tokens.owner(&token, 1_250), None);
    }

    #[test]
    fn tokens_are_as_long_as_those_of_ims() {
        let mut tokens = Tokens::new();

        let token = tokens.issue(&grant(), Duration::from_secs(86_399), 1_767_225_600_000);

        assert!((1_100..=1_600).contains(&token.len()), "{} bytes", token.len());
    }

    #[test]
    fn revoking_one_token_leaves_the_other() {
        let mut tokens = Tokens::new();
        let first = tokens.issue(&grant(), Duration::from_secs(1), 0);
        let second = tokens.issue(&grant(), Duration::from_secs(1), 0);

        tokens.revoke(&first);

        assert_eq!(tokens.owner(&first, 0), None);
        assert_eq!(tokens.owner(&second, 0), Some("id"));
    }

    #[test]
    fn the_oldest_token_is_forgotten_before_memory_grows_without_end() {
        let mut tokens = Tokens::remembering(2);
        let first = tokens.issue(&grant(), Duration::from_secs(1), 0);
        let second = tokens.issue(&grant(), Duration::from_secs(1), 0);
        tokens.issue(&grant(), Duration::from_secs(1), 0);

        assert_eq!(tokens.owner(&first, 0), None);
        assert_eq!(tokens.owner(&second, 0), Some("id"));
        assert_eq!(tokens.issued.len(), 2);
    }
}
