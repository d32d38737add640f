//! Where a token is shared beyond the process: a [`TokenStore`].
//!
//! A store keeps one value under each key, and grants one lease for each key at a time. What the
//! value says, and its encryption, is this crate's affair and the same for all stores: [`sealed`]
//! knows it. When a store is asked is the source's affair.

#[cfg(feature = "file-store")]
mod file;
mod key;
mod memory;
mod name;
#[cfg(feature = "redis-store")]
mod redis;
mod sealed;
mod token_store;

#[cfg(feature = "file-store")]
pub use self::file::FileStore;
#[cfg(feature = "redis-store")]
pub use self::redis::RedisStore;
pub(crate) use self::{
    key::Keys,
    name::name,
    sealed::{Payload, open, seal},
    token_store::ErasedTokenStore,
};
pub use self::{
    key::StoreKey,
    memory::MemoryStore,
    token_store::{Lease, Saved, StoredToken, TokenStore},
};

/// Whether a version, which is about the time in milliseconds, is not far ahead of `now`. One that is,
/// is none of ours, and nothing could replace it.
pub(crate) fn is_sane(version: u64, now: u64) -> bool {
    version < now.saturating_add(365 * 86_400_000)
}
