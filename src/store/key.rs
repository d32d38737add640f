//! [`StoreKey`]: the key that encrypts the records of a store.

use std::{
    fmt::{self, Write},
    sync::Arc,
};

use base64::{
    Engine,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::error::ConfigError;

/// The length of a key in bytes.
pub(super) const LENGTH: usize = 32;

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A key that encrypts the records in a [`TokenStore`](crate::TokenStore), with XChaCha20-Poly1305.
///
/// Without a key the access token lies in the store in clear. With one, a source ignores a record that
/// was written or changed without the key, and reports it with a `warn` event.
///
/// # Rotation
///
/// A record carries the id of its key, and a source can read with several keys:
///
/// 1. Add the new key to all processes with
///    [`also_read_with`](crate::TokenSourceBuilder::also_read_with).
/// 2. Set it with [`encrypt_with`](crate::TokenSourceBuilder::encrypt_with), and read with the old one.
/// 3. Remove the old key a day later, when the tokens that it encrypted have expired.
///
/// Processes that cannot read each other's records share no token. Each requests its own, and replaces
/// the record of the others. Without the first step this lasts until all have the new key.
///
/// `Debug` shows only the id. The key is wiped when its last clone is dropped.
#[derive(Clone)]
pub struct StoreKey {
    id: Arc<str>,
    secret: Arc<Zeroizing<[u8; LENGTH]>>,
}

impl StoreKey {
    /// A key of 32 random bytes. `id` names the key in the store; a date will do.
    #[must_use]
    pub fn new(id: impl Into<Arc<str>>, secret: [u8; LENGTH]) -> Self {
        Self { id: id.into(), secret: Arc::new(Zeroizing::new(secret)) }
    }

    /// A key of 32 random bytes in base64, as `openssl rand -base64 32` prints it.
    ///
    /// # Errors
    ///
    /// If `text` is not 32 bytes in base64.
    pub fn from_base64(
        id: impl Into<Arc<str>>,
        text: impl AsRef<str>,
    ) -> Result<Self, ConfigError> {
        let wrong = || {
            ConfigError::new(
                "the store key is not 32 bytes in base64; `openssl rand -base64 32` prints one",
            )
        };
        let bytes = Zeroizing::new(BASE64.decode(text.as_ref().trim()).map_err(|_| wrong())?);
        let secret: [u8; LENGTH] = bytes.as_slice().try_into().map_err(|_| wrong())?;
        Ok(Self::new(id, secret))
    }

    /// The id that names the key in the store.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn secret(&self) -> &[u8; LENGTH] {
        &self.secret
    }
}

impl fmt::Debug for StoreKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreKey").field("id", &self.id).finish_non_exhaustive()
    }
}

/// The keys of one source: the one that encrypts, and those that also decrypt.
#[derive(Clone, Debug, Default)]
pub(crate) struct Keys {
    pub(crate) write: Option<StoreKey>,
    pub(crate) read: Vec<StoreKey>,
}

impl Keys {
    pub(super) fn find(&self, id: &str) -> Option<&StoreKey> {
        self.write.iter().chain(&self.read).find(|key| key.id() == id)
    }

    /// Checks that there is a key that encrypts if there is one that decrypts, and that ids are unique.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        if self.write.is_none() && !self.read.is_empty() {
            return Err(ConfigError::new("`also_read_with` needs `encrypt_with`"));
        }
        let mut ids: Vec<_> = self.write.iter().chain(&self.read).map(StoreKey::id).collect();
        ids.sort_unstable();
        if ids.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(ConfigError::new("two store keys have the same id"));
        }
        Ok(())
    }

    /// A keyed hash of secrets, by which processes with the same secrets recognize each other.
    ///
    /// A reader of the store sees only the hash. It is keyed with the store key if there is one, and
    /// salted with `salt`, so that a table of hashes made in advance finds nothing.
    pub(crate) fn fingerprint<'a>(
        &'a self,
        salt: &'a str,
        secrets: impl IntoIterator<Item = &'a str>,
    ) -> String {
        let key = self.write.as_ref().map_or(&[][..], |key| key.secret());
        let parts = [key, salt.as_bytes()].into_iter();
        hash("fingerprint", parts.chain(secrets.into_iter().map(str::as_bytes)))
    }
}

/// The version of the format of keys and records. Another version uses other keys, so that processes
/// of two versions do not disturb each other.
const VERSION: &str = "tower-adobe-auth/2";

/// A hash of `parts` for one purpose, as 64 hexadecimal digits.
///
/// Each part is hashed with its length, so that no two lists of parts have the same hash.
pub(crate) fn hash<'a>(purpose: &str, parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut hash = Sha256::new();
    let mut add = |part: &[u8]| {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    };
    add(VERSION.as_bytes());
    add(purpose.as_bytes());
    parts.into_iter().for_each(&mut add);
    hash.finalize().iter().fold(String::with_capacity(64), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::{Keys, StoreKey, hash};

    #[test]
    fn hash_differs_if_any_part_differs() {
        let of =
            |purpose: &str, parts: &[&str]| hash(purpose, parts.iter().map(|part| part.as_bytes()));
        let one = of("purpose", &["client", "scope"]);

        assert_eq!(one.len(), 64);
        assert_eq!(one, of("purpose", &["client", "scope"]));
        assert_ne!(one, of("purpose", &["clients", "cope"]));
        assert_ne!(one, of("purpose", &["client", "scope", ""]));
        assert_ne!(one, of("other", &["client", "scope"]));
    }

    #[test]
    fn fingerprint_depends_on_secrets_salt_and_store_key() {
        let clear = Keys::default();
        let keyed = Keys { write: Some(StoreKey::new("id", [1; 32])), read: Vec::new() };
        let one = clear.fingerprint("salt", ["secret"]);

        assert_eq!(one, clear.fingerprint("salt", ["secret"]));
        assert_ne!(one, clear.fingerprint("salt", ["other"]));
        assert_ne!(one, clear.fingerprint("pepper", ["secret"]));
        assert_ne!(one, keyed.fingerprint("salt", ["secret"]));
        assert!(!one.contains("secret"));
    }
}
