//! What a value in a store says, in clear or encrypted. Pure but for the random nonce.

use std::time::{Duration, SystemTime};

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD as BASE64};
use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305,
    aead::{Aead, Payload as Message},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use zeroize::Zeroizing;

use super::{Keys, StoredToken};
use crate::{
    clock::{millis, unix_millis},
    error::BoxError,
};

/// No token is nearly as long.
const LONGEST_VALUE: usize = 64 * 1024;

const NONCE: usize = 24;

/// A token as processes tell each other. There is no `Debug`: it holds the token.
#[derive(Deserialize, Serialize)]
pub(crate) struct Payload {
    pub(crate) access_token: Zeroizing<String>,
    /// When it was asked for and when it ends, by the clock of who asked: milliseconds since 1970.
    sent_at: u64,
    expires_at: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) client_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) org_id: Option<String>,
    /// How many tokens were refused shortly before, so that this one was asked for.
    #[serde(default)]
    pub(crate) refusals: u32,
}

impl Payload {
    pub(crate) fn new(
        access_token: &str,
        sent_at: SystemTime,
        lifetime: Duration,
        client_id: Option<String>,
        org_id: Option<String>,
    ) -> Self {
        let sent_at = unix_millis(sent_at);
        Self {
            access_token: Zeroizing::new(access_token.to_owned()),
            sent_at,
            expires_at: sent_at.saturating_add(millis(lifetime)),
            client_id,
            org_id,
            refusals: 0,
        }
    }

    /// How long the token lives in all.
    pub(crate) fn lifetime(&self) -> Duration {
        Duration::from_millis(self.expires_at.saturating_sub(self.sent_at))
    }

    /// How long it lives on from `now`, by a wall clock that may be `ahead` by this much.
    pub(crate) fn remaining(&self, now: SystemTime, ahead: Duration) -> Duration {
        let now = unix_millis(now);
        let end = self.expires_at.saturating_add(millis(ahead));
        Duration::from_millis(end.saturating_sub(now)).min(self.lifetime())
    }
}

/// The value in the store: in clear or encrypted.
#[derive(Deserialize, Serialize)]
struct Value<T> {
    name: String,
    version: u64,
    #[serde(default = "none", skip_serializing_if = "Option::is_none")]
    clear: Option<T>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sealed: Option<Sealed>,
}

fn none<T>() -> Option<T> {
    None
}

#[derive(Deserialize, Serialize)]
struct Sealed {
    /// The id of the key.
    key: String,
    nonce: String,
    text: String,
}

/// What is to be kept under this name: a [`Payload`], say.
pub(crate) fn seal<T: Serialize>(
    name: &str,
    version: u64,
    payload: T,
    keys: &Keys,
) -> Result<StoredToken, BoxError> {
    let owned = name.to_owned();
    let value = match &keys.write {
        None => Value { name: owned, version, clear: Some(payload), sealed: None },
        Some(key) => {
            let mut nonce = [0; NONCE];
            getrandom::fill(&mut nonce)?;
            let clear = wiped(&payload)?;
            let message = Message { msg: &clear, aad: &bound_to(name, version) };
            let text = XChaCha20Poly1305::new(key.secret().into())
                .encrypt(&nonce.into(), message)
                .map_err(|_| "the token could not be encrypted")?;
            let (nonce, text) = (BASE64.encode(nonce), BASE64.encode(text));
            let sealed = Sealed { key: key.id().to_owned(), nonce, text };
            Value { name: owned, version, clear: None, sealed: Some(sealed) }
        }
    };
    let mut bytes = wiped(&value)?;
    Ok(StoredToken::new(version, std::mem::take(&mut *bytes)))
}

/// JSON in a buffer that does not grow, so that it leaves no copies behind.
fn wiped(value: &impl Serialize) -> Result<Zeroizing<Vec<u8>>, BoxError> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(2 * LONGEST_VALUE));
    serde_json::to_writer(&mut *bytes, value)?;
    if bytes.len() > LONGEST_VALUE {
        return Err("the token is too long to be shared".into());
    }
    bytes.shrink_to_fit();
    Ok(bytes)
}

/// Reads what was kept under this name. The error says what is wrong with it, and nothing of it.
pub(crate) fn open<T: DeserializeOwned>(
    name: &str,
    stored: &StoredToken,
    keys: &Keys,
) -> Result<T, &'static str> {
    if stored.value().len() > LONGEST_VALUE {
        return Err("it is too long");
    }
    // The words of the parser could quote what it read.
    let value = serde_json::from_slice(stored.value()).map_err(|_| "it cannot be read")?;
    let Value { name: whose, version, clear, sealed } = value;
    if whose != name {
        return Err("it is for another credential");
    }
    if version != stored.version() {
        return Err("its version is not that of the store");
    }
    match (clear, sealed, &keys.write) {
        (Some(payload), None, None) => Ok(payload),
        (Some(_), None, Some(_)) => Err("it is not encrypted"),
        (None, Some(_), None) => Err("it is encrypted, and there is no key"),
        (None, Some(Sealed { key, nonce, text }), Some(_)) => {
            let key = keys.find(&key).ok_or("it is encrypted with an unknown key")?;
            let nonce = BASE64.decode(nonce).ok();
            let nonce: Option<[u8; NONCE]> = nonce.and_then(|nonce| nonce.try_into().ok());
            let (nonce, text) = nonce.zip(BASE64.decode(text).ok()).ok_or("it cannot be read")?;
            let message = Message { msg: &text, aad: &bound_to(name, version) };
            let clear = XChaCha20Poly1305::new(key.secret().into())
                .decrypt(&nonce.into(), message)
                .map_err(
                    |_| "it was tampered with, or encrypted with another key of the same id",
                )?;
            let clear = Zeroizing::new(clear);
            serde_json::from_slice(&clear).map_err(|_| "it cannot be read")
        }
        _ => Err("it cannot be read"),
    }
}

/// What a value is bound to: moved to another key of the store, or given another version, it is not
/// what was encrypted.
fn bound_to(name: &str, version: u64) -> Vec<u8> {
    [name.as_bytes(), &version.to_be_bytes()].concat()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;
    use crate::store::StoreKey;

    fn payload() -> Payload {
        let sent = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let client = Some("a-client".to_owned());
        Payload::new("a-secret-token", sent, Duration::from_secs(86_400), client, None)
    }

    fn keys(id: &str, byte: u8) -> Keys {
        Keys { write: Some(StoreKey::new(id, [byte; 32])), read: Vec::new() }
    }

    #[test]
    fn what_was_sealed_is_read_again_with_and_without_a_key() {
        for keys in [Keys::default(), keys("one", 1)] {
            let stored = seal("name", 7, payload(), &keys).unwrap();
            let read = open::<Payload>("name", &stored, &keys).unwrap();

            assert_eq!(*read.access_token, "a-secret-token");
            assert_eq!(read.client_id.as_deref(), Some("a-client"));
            assert_eq!(read.lifetime(), Duration::from_secs(86_400));
            let text = String::from_utf8_lossy(stored.value()).into_owned();
            assert_eq!(text.contains("a-secret-token"), keys.write.is_none());
        }
    }

    #[test]
    fn a_value_is_bound_to_its_name_its_version_and_its_key() {
        let stored = seal("name", 7, payload(), &keys("one", 1)).unwrap();
        let text = String::from_utf8(stored.value().to_vec()).unwrap();
        let renamed = StoredToken::new(7, text.replace(r#""name":"name""#, r#""name":"other""#));
        let renumbered = StoredToken::new(8, text.replace(r#""version":7"#, r#""version":8"#));

        assert!(open::<Payload>("name", &stored, &keys("one", 1)).is_ok());
        assert!(open::<Payload>("other", &stored, &keys("one", 1)).is_err());
        assert!(open::<Payload>("other", &renamed, &keys("one", 1)).is_err());
        assert!(open::<Payload>("name", &StoredToken::new(8, text), &keys("one", 1)).is_err());
        assert!(open::<Payload>("name", &renumbered, &keys("one", 1)).is_err());
        assert!(open::<Payload>("name", &stored, &keys("one", 2)).is_err());
        assert!(open::<Payload>("name", &stored, &keys("two", 1)).is_err());
        assert!(open::<Payload>("name", &stored, &Keys::default()).is_err());
    }

    #[test]
    fn a_value_in_clear_is_no_token_to_who_has_a_key() {
        let stored = seal("name", 7, payload(), &Keys::default()).unwrap();

        assert_eq!(
            open::<Payload>("name", &stored, &keys("one", 1)).err(),
            Some("it is not encrypted")
        );
    }

    #[test]
    fn a_value_in_clear_that_a_store_gives_out_for_another_credential_is_no_token() {
        let stored = seal("name", 7, payload(), &Keys::default()).unwrap();

        let opened = open::<Payload>("other", &stored, &Keys::default()).err();

        assert_eq!(opened, Some("it is for another credential"));
    }

    #[test]
    fn the_old_key_reads_on_after_a_rotation() {
        let stored = seal("name", 7, payload(), &keys("old", 1)).unwrap();
        let mut rotated = keys("new", 2);
        rotated.read.push(StoreKey::new("old", [1; 32]));

        assert!(open::<Payload>("name", &stored, &rotated).is_ok());
    }

    proptest! {
        #[test]
        fn a_changed_byte_is_no_token(at in 0_usize..1_000, bits in 1_u8..) {
            let keys = keys("one", 1);
            let stored = seal("name", 7, payload(), &keys).unwrap();
            let mut value = stored.value().to_vec();
            let at = at % value.len();
            value[at] ^= bits;

            // What is still read is the same token: the change was in a place that says nothing.
            if let Ok(read) = open::<Payload>("name", &StoredToken::new(7, value), &keys) {
                prop_assert_eq!(&*read.access_token, "a-secret-token");
            }
        }

        #[test]
        fn nonsense_is_no_token(value in proptest::collection::vec(any::<u8>(), 0..200), version: u64) {
            let stored = StoredToken::new(version, value);
            prop_assert!(open::<Payload>("name", &stored, &Keys::default()).is_err());
            prop_assert!(open::<Payload>("name", &stored, &keys("one", 1)).is_err());
        }
    }
}
