//! The value of a record: JSON, in clear or encrypted. Pure, but for the random nonce.

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD as BASE64};
use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305,
    aead::{Aead, Payload},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use zeroize::Zeroizing;

use super::{key::Keys, token_store::StoredRecord};
use crate::error::BoxError;

/// The format of the value. A process ignores values of another format.
const FORMAT: u32 = 2;

/// The longest value in bytes. A token is much shorter.
const MAX_LEN: usize = 64 * 1024;

const NONCE_LEN: usize = 24;

/// A fencing token this far ahead of the clock, in milliseconds, is not one of ours.
const MAX_AHEAD: u64 = 365 * 24 * 60 * 60 * 1_000;

/// Returns whether a fencing token, which is about the time in milliseconds, may have been granted by
/// `now`. No token could ever replace a record with one in the far future.
pub(crate) fn is_plausible(fencing_token: u64, now: u64) -> bool {
    fencing_token < now.saturating_add(MAX_AHEAD)
}

/// The value of a record, in clear or encrypted.
#[derive(Deserialize, Serialize)]
struct Envelope<T> {
    format: u32,
    /// The key of the store under which the record is kept.
    key: String,
    fencing_token: u64,
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
    /// The id of the store key.
    key: String,
    nonce: String,
    text: String,
}

/// Serializes `content` for this key and fencing token, and encrypts it if there is a store key.
///
/// # Errors
///
/// If the content is too long, or the system has no random numbers.
pub(crate) fn seal<T: Serialize>(
    key: &str,
    fencing_token: u64,
    content: T,
    keys: &Keys,
) -> Result<StoredRecord, BoxError> {
    let envelope = |clear, sealed| Envelope {
        format: FORMAT,
        key: key.to_owned(),
        fencing_token,
        clear,
        sealed,
    };
    let envelope = match &keys.write {
        None => envelope(Some(content), None),
        Some(store_key) => {
            let mut nonce = [0; NONCE_LEN];
            getrandom::fill(&mut nonce)?;
            let clear = to_json(&content)?;
            let message = Payload { msg: &clear, aad: &bound_to(key, fencing_token) };
            let text = XChaCha20Poly1305::new(store_key.secret().into())
                .encrypt(&nonce.into(), message)
                .map_err(|_| "the record could not be encrypted")?;
            let (nonce, text) = (BASE64.encode(nonce), BASE64.encode(text));
            envelope(None, Some(Sealed { key: store_key.id().to_owned(), nonce, text }))
        }
    };
    let mut bytes = to_json(&envelope)?;
    Ok(StoredRecord::new(fencing_token, std::mem::take(&mut *bytes)))
}

/// JSON in a buffer that never grows, because growing would leave copies of the token in memory.
fn to_json(value: &impl Serialize) -> Result<Zeroizing<Vec<u8>>, BoxError> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(2 * MAX_LEN));
    serde_json::to_writer(&mut *bytes, value)?;
    if bytes.len() > MAX_LEN {
        return Err("the token is too long for a record".into());
    }
    bytes.shrink_to_fit();
    Ok(bytes)
}

/// Reads the content of a record that is kept under this key.
///
/// # Errors
///
/// The reason, which quotes nothing of the record.
pub(crate) fn open<T: DeserializeOwned>(
    key: &str,
    record: &StoredRecord,
    keys: &Keys,
) -> Result<T, &'static str> {
    const UNREADABLE: &str = "the value is not JSON of this format";

    if record.value().len() > MAX_LEN {
        return Err("the value is too long");
    }
    // The parser's own error could quote the value, so it is dropped.
    let envelope: Envelope<T> = serde_json::from_slice(record.value()).map_err(|_| UNREADABLE)?;
    if envelope.format != FORMAT {
        return Err("the value has another format");
    }
    if envelope.key != key {
        return Err("the value belongs to another key");
    }
    if envelope.fencing_token != record.fencing_token() {
        return Err("the value belongs to another fencing token");
    }
    match (envelope.clear, envelope.sealed, &keys.write) {
        (Some(content), None, None) => Ok(content),
        (Some(_), None, Some(_)) => Err("the value is not encrypted"),
        (None, Some(_), None) => Err("the value is encrypted, and no store key is set"),
        (None, Some(sealed), Some(_)) => {
            let store_key = keys.find(&sealed.key).ok_or("the value has an unknown store key")?;
            let nonce = BASE64.decode(sealed.nonce).ok();
            let nonce: Option<[u8; NONCE_LEN]> = nonce.and_then(|nonce| nonce.try_into().ok());
            let (nonce, text) = nonce.zip(BASE64.decode(sealed.text).ok()).ok_or(UNREADABLE)?;
            let message = Payload { msg: &text, aad: &bound_to(key, envelope.fencing_token) };
            let clear = XChaCha20Poly1305::new(store_key.secret().into())
                .decrypt(&nonce.into(), message)
                .map_err(|_| "the value was changed, or its store key has the same id as ours")?;
            serde_json::from_slice(&Zeroizing::new(clear)).map_err(|_| UNREADABLE)
        }
        _ => Err(UNREADABLE),
    }
}

/// The associated data of the encryption: a value that is moved to another key of the store, or is
/// given another fencing token, cannot be decrypted.
fn bound_to(key: &str, fencing_token: u64) -> Vec<u8> {
    [key.as_bytes(), &fencing_token.to_be_bytes()].concat()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;
    use crate::store::key::StoreKey;

    const CONTENT: &str = "a-secret-token";

    fn sealed(keys: &Keys) -> StoredRecord {
        seal("key", 7, CONTENT, keys).unwrap()
    }

    fn read(key: &str, record: &StoredRecord, keys: &Keys) -> Result<String, &'static str> {
        open(key, record, keys)
    }

    fn keys(id: &str, byte: u8) -> Keys {
        Keys { write: Some(StoreKey::new(id, [byte; 32])), read: Vec::new() }
    }

    #[test]
    fn content_is_read_back_with_and_without_a_store_key() {
        for keys in [Keys::default(), keys("one", 1)] {
            let record = sealed(&keys);

            assert_eq!(read("key", &record, &keys).unwrap(), CONTENT);
            let text = String::from_utf8_lossy(record.value()).into_owned();
            assert_eq!(text.contains(CONTENT), keys.write.is_none());
        }
    }

    #[test]
    fn content_is_bound_to_its_key_fencing_token_and_store_key() {
        let record = sealed(&keys("one", 1));
        let text = String::from_utf8(record.value().to_vec()).unwrap();
        let renamed = StoredRecord::new(7, text.replace(r#""key":"key""#, r#""key":"other""#));
        let renumbered = text.replace(r#""fencing_token":7"#, r#""fencing_token":8"#);
        let renumbered = StoredRecord::new(8, renumbered);

        assert!(read("key", &record, &keys("one", 1)).is_ok());
        assert!(read("other", &record, &keys("one", 1)).is_err());
        assert!(read("other", &renamed, &keys("one", 1)).is_err());
        assert!(read("key", &StoredRecord::new(8, text), &keys("one", 1)).is_err());
        assert!(read("key", &renumbered, &keys("one", 1)).is_err());
        assert!(read("key", &record, &keys("one", 2)).is_err());
        assert!(read("key", &record, &keys("two", 1)).is_err());
        assert!(read("key", &record, &Keys::default()).is_err());
    }

    #[test]
    fn content_in_clear_is_rejected_where_a_store_key_is_set() {
        let opened = read("key", &sealed(&Keys::default()), &keys("one", 1));

        assert_eq!(opened, Err("the value is not encrypted"));
    }

    #[test]
    fn content_in_clear_of_another_key_is_rejected() {
        let opened = read("other", &sealed(&Keys::default()), &Keys::default());

        assert_eq!(opened, Err("the value belongs to another key"));
    }

    #[test]
    fn content_of_another_format_is_rejected() {
        let text = String::from_utf8(sealed(&Keys::default()).value().to_vec()).unwrap();
        let old = StoredRecord::new(7, text.replace(r#""format":2"#, r#""format":3"#));

        let opened = read("key", &old, &Keys::default());

        assert_eq!(opened, Err("the value has another format"));
    }

    #[test]
    fn the_old_store_key_still_reads_after_a_rotation() {
        let record = sealed(&keys("old", 1));
        let mut rotated = keys("new", 2);
        rotated.read.push(StoreKey::new("old", [1; 32]));

        assert!(read("key", &record, &rotated).is_ok());
    }

    proptest! {
        #[test]
        fn a_changed_byte_never_changes_the_content(at in 0_usize..1_000, bits in 1_u8..) {
            let keys = keys("one", 1);
            let mut value = sealed(&keys).value().to_vec();
            let at = at % value.len();
            value[at] ^= bits;

            // A value that can still be read was changed where it says nothing.
            if let Ok(content) = read("key", &StoredRecord::new(7, value), &keys) {
                prop_assert_eq!(content, CONTENT);
            }
        }

        #[test]
        fn arbitrary_bytes_are_rejected(
            value in proptest::collection::vec(any::<u8>(), 0..200),
            fencing_token: u64,
        ) {
            let record = StoredRecord::new(fencing_token, value);
            prop_assert!(read("key", &record, &Keys::default()).is_err());
            prop_assert!(read("key", &record, &keys("one", 1)).is_err());
        }
    }
}
