//! One token for many processes: one of them requests it, and the others take it from a token store.
//!
//! [`Member`](member::Member) stands between a source and the supply of its tokens. The store is optional:
//! if it fails, the process requests its own tokens.
//!
//! ```text
//! settings    the builder's methods
//! supply      one attempt, from top to bottom
//! watcher     tokens that other processes announce
//! member      this process: its settings, its store, and how it reads a record
//! evaluate    what a record means for its reader; pure
//! record      the facts that processes share; pure
//! lease       a lease that this process may hold, and the commits that end leases
//! session     the calls of the store, their budgets and the store's health
//! issuer      one snapshot of the credentials for each attempt
//! ```

mod evaluate;
mod issuer;
mod lease;
mod member;
mod record;
mod session;
mod settings;
mod supply;
mod watcher;
