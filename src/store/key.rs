//! [`StoreKey`]: what the values in a store are encrypted with.

use std::{fmt, sync::Arc};

use base64::{
    Engine,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use zeroize::Zeroizing;

use crate::error::ConfigError;

/// The length of a key in bytes.
pub(super) const LENGTH: usize = 32;

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A key that the values in a [`TokenStore`](crate::TokenStore) are encrypted with
/// (XChaCha20-Poly1305).
///
/// Without one the token lies in the store as it is. With one, a value that somebody wrote or
/// changed who does not have the key is not there, and a `warn` event tells of it.
///
/// # Rotation
///
/// A value carries the id of its key, and a source reads more keys than one:
///
/// 1. Give the new key to all processes as
///    [`also_read_with`](crate::TokenSourceBuilder::also_read_with).
/// 2. Make it [`encrypt_with`](crate::TokenSourceBuilder::encrypt_with), and read with the old one.
/// 3. A day later, when the old tokens have ended, drop the old one.
///
/// Processes that cannot read each other's values share nothing: each asks for a token of its own, and
/// replaces the one in the store. Without the first step that is so until all have the new key.
///
/// `Debug` shows the id only; the key is wiped when the last clone is dropped.
#[derive(Clone)]
pub struct StoreKey {
    id: Arc<str>,
    secret: Arc<Zeroizing<[u8; LENGTH]>>,
}

impl StoreKey {
    /// A key of 32 random bytes. `id` names it in the store: a date, say.
    #[must_use]
    pub fn new(id: impl Into<Arc<str>>, secret: [u8; LENGTH]) -> Self {
        Self { id: id.into(), secret: Arc::new(Zeroizing::new(secret)) }
    }

    /// A key of 32 random bytes in base64, as `openssl rand -base64 32` prints it.
    ///
    /// # Errors
    ///
    /// If `text` is not that.
    pub fn from_base64(
        id: impl Into<Arc<str>>,
        text: impl AsRef<str>,
    ) -> Result<Self, ConfigError> {
        let wrong = || {
            ConfigError::new(
                "the store key is not 32 bytes in base64: `openssl rand -base64 32` makes one",
            )
        };
        let bytes = Zeroizing::new(BASE64.decode(text.as_ref().trim()).map_err(|_| wrong())?);
        let secret: [u8; LENGTH] = bytes.as_slice().try_into().map_err(|_| wrong())?;
        Ok(Self::new(id, secret))
    }

    /// The name of the key in the store.
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

/// The keys of one source: the one it writes with, and those that it reads as well.
#[derive(Clone, Debug, Default)]
pub(crate) struct Keys {
    pub(crate) write: Option<StoreKey>,
    pub(crate) read: Vec<StoreKey>,
}

impl Keys {
    pub(super) fn find(&self, id: &str) -> Option<&StoreKey> {
        self.write.iter().chain(&self.read).find(|key| key.id() == id)
    }

    /// Whether two different keys have one id, or there is nothing to write with.
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
}
