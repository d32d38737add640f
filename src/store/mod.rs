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
