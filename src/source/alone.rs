//! Without a token store each source asks for its own tokens: the feature `store` is off.

use std::{
    future::pending,
    sync::{Arc, Weak},
    time::Duration,
};

use super::{flight::Outcome, shared::Shared};
use crate::{
    error::{ConfigError, StoreError, TokenError},
    ims::ImsClient,
    token::AccessToken,
};

/// What a builder knows of the store.
#[derive(Debug, Default)]
pub(super) struct Sharing {}

impl Sharing {
    pub(super) fn build(self, _ims: Option<&ImsClient>) -> Result<Fleet, ConfigError> {
        Ok(Fleet {})
    }
}

/// The other processes: there are none.
#[derive(Default)]
pub(super) struct Fleet {}

impl Fleet {
    pub(super) fn is_shared(&self) -> bool {
        false
    }

    pub(super) fn longest_wait(&self) -> Duration {
        Duration::ZERO
    }

    pub(super) fn credentials_have_changed(&self) {}

    pub(super) fn failure(&self) -> Option<StoreError> {
        None
    }
}

/// What one flight has to do with the store.
pub(super) struct Visit {
    /// The token that the flight brings is another process's.
    pub(super) taken: bool,
}

/// A token of another process, or the turn to ask for one.
pub(super) enum Asked {
    #[expect(dead_code, reason = "there are no other processes")]
    Token(AccessToken),
    Turn(Turn),
    #[expect(dead_code, reason = "there are no other processes")]
    Told(Turn, TokenError),
}

/// The right to ask for a token.
pub(super) struct Turn;

impl Visit {
    pub(super) fn new(_shared: &Shared) -> Self {
        Self { taken: false }
    }

    pub(super) async fn ask(&mut self, _shared: &Arc<Shared>) -> Asked {
        Asked::Turn(Turn)
    }

    pub(super) async fn end(
        &mut self,
        _shared: &Arc<Shared>,
        _turn: Turn,
        outcome: Outcome,
        _delay: Option<Duration>,
    ) -> Outcome {
        outcome
    }

    pub(super) async fn give_back(&mut self, _shared: &Shared) {}

    pub(super) fn leave(&mut self, _shared: &Shared) {}
}

/// Nobody else has a token.
pub(super) async fn watch(_source: &Weak<Shared>) {
    pending().await
}
