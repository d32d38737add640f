//! The connection to the server, made anew when it is of no use any more.
//!
//! A connection is driven by a task of the runtime that it was made on, and a source outlives
//! runtimes: on another one, another is made. Nor is it tried for long: the source has its own limit
//! and its own pauses.

use std::sync::{Mutex, MutexGuard, PoisonError};

use redis::{
    AsyncConnectionConfig, Client, Cmd, FromRedisValue, RedisError, aio::MultiplexedConnection,
};
use tokio::runtime::{Handle, Id};

pub(super) struct Connection {
    client: Client,
    slot: Mutex<Slot>,
}

#[derive(Default)]
struct Slot {
    open: Option<Open>,
    /// How many there have been.
    count: u64,
}

#[derive(Clone)]
struct Open {
    connection: MultiplexedConnection,
    number: u64,
    runtime: Id,
}

impl Connection {
    pub(super) fn new(client: Client) -> Self {
        Self { client, slot: Mutex::default() }
    }

    pub(super) fn server(&self) -> String {
        self.client.get_connection_info().addr().to_string()
    }

    /// What the server answers. A connection that turns out to be broken is replaced once; that the
    /// server did then what it was asked twice does no harm.
    pub(super) async fn ask<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, RedisError> {
        if let Some(mut open) = self.current() {
            match self.ask_on(&mut open, command).await {
                Err(error) if is_of_the_connection(&error) => {}
                answer => return answer,
            }
        }
        let mut open = self.connect().await?;
        self.ask_on(&mut open, command).await
    }

    async fn ask_on<T: FromRedisValue>(
        &self,
        open: &mut Open,
        command: &Cmd,
    ) -> Result<T, RedisError> {
        // Whoever gives up while waiting (it was dropped) does not come back to this connection: it
        // may be dead without having said so.
        let doubt = Doubt { connection: self, number: open.number };
        let answer = command.query_async(&mut open.connection).await;
        match &answer {
            Err(error) if is_of_the_connection(error) => {}
            _ => std::mem::forget(doubt),
        }
        answer
    }

    async fn connect(&self) -> Result<Open, RedisError> {
        // Who asks has a limit of its own.
        let config =
            AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
        let connection = self.client.get_multiplexed_async_connection_with_config(&config).await?;
        let mut slot = self.lock();
        slot.count += 1;
        let open = Open { connection, number: slot.count, runtime: Handle::current().id() };
        let replaced = slot.open.replace(open.clone());
        drop(slot);
        drop(replaced);
        Ok(open)
    }

    fn current(&self) -> Option<Open> {
        let here = Handle::try_current().ok()?.id();
        self.lock().open.clone().filter(|open| open.runtime == here)
    }

    /// Uses this connection no more.
    fn leave(&self, number: u64) {
        let left = self.lock().open.take_if(|open| open.number == number);
        drop(left);
    }

    fn lock(&self) -> MutexGuard<'_, Slot> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_of_the_connection(error: &RedisError) -> bool {
    error.is_io_error() || error.is_unrecoverable_error()
}

/// Leaves a connection, unless it answers.
struct Doubt<'a> {
    connection: &'a Connection,
    number: u64,
}

impl Drop for Doubt<'_> {
    fn drop(&mut self) {
        self.connection.leave(self.number);
    }
}
