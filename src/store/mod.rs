//! Stores: the trait [`TokenStore`], the stores of this crate, and the encryption of their records.
//!
//! A store keeps one record and grants one lease at a time for each key. It knows neither what a record
//! says nor when it is read: the room `fleet` knows both.

#[cfg(feature = "file-store")]
mod file;
mod key;
mod memory;
mod plain;
#[cfg(feature = "redis-store")]
mod redis;
mod sealed;
mod token_store;

#[cfg(feature = "file-store")]
pub use self::file::FileStore;
#[cfg(feature = "redis-store")]
pub use self::redis::RedisStore;
pub use self::{
    key::StoreKey,
    memory::MemoryStore,
    plain::{PlainCalls, PlainStore},
    token_store::{Acquired, CommitOutcome, LeaseRequest, StoredRecord, TokenStore},
};
pub(crate) use self::{
    key::{Keys, hash},
    sealed::{is_plausible, open, seal},
    token_store::ErasedTokenStore,
};
