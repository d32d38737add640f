//! [`Listeners`]: the callers that wait for a notification over one connection.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use redis::{PushInfo, PushKind, Value};
use tokio::sync::watch;

/// The length of a key, and so of a message. Any other message is dropped before it is copied, because
/// whoever may publish could fill the memory of all listeners.
const KEY_LENGTH: usize = 64;

pub(super) struct Listeners {
    /// A cluster has a connection to each node, and replaces those that end.
    outlive_disconnection: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    is_subscribed: bool,
    is_lost: bool,
    /// Dropping a sender wakes the listeners for its key.
    waiting: HashMap<Box<[u8]>, watch::Sender<()>>,
}

impl Listeners {
    pub(super) fn new(outlive_disconnection: bool) -> Self {
        Self { outlive_disconnection, state: Mutex::default() }
    }

    /// Listens for this key. `None` if the connection has ended.
    pub(super) fn listen(self: &Arc<Self>, key: &str) -> Option<Listening> {
        let mut state = self.lock();
        if state.is_lost {
            return None;
        }
        let sender = state.waiting.entry(key.as_bytes().into()).or_default();
        let receiver = Some(sender.subscribe());
        drop(state);
        Some(Listening { listeners: self.clone(), key: key.into(), receiver })
    }

    /// Takes what the server sends without a request.
    pub(super) fn receive(&self, push: &PushInfo) {
        match (&push.kind, push.data.get(1)) {
            (PushKind::Message, Some(Value::BulkString(key))) if key.len() == KEY_LENGTH => {
                let woken = self.lock().waiting.remove(key.as_slice());
                drop(woken);
            }
            (PushKind::Disconnection, _) => self.disconnect(!self.outlive_disconnection),
            _ => {}
        }
    }

    /// Wakes all listeners, because the connection is not used any more.
    pub(super) fn lose(&self) {
        self.disconnect(true);
    }

    fn disconnect(&self, is_lost: bool) {
        let mut state = self.lock();
        state.is_subscribed = false;
        state.is_lost |= is_lost;
        let woken = std::mem::take(&mut state.waiting);
        drop(state);
        drop(woken);
    }

    pub(super) fn is_subscribed(&self) -> bool {
        self.lock().is_subscribed
    }

    pub(super) fn set_subscribed(&self) {
        self.lock().is_subscribed = true;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A caller that waits for a notification of one key.
pub(super) struct Listening {
    listeners: Arc<Listeners>,
    key: Box<str>,
    /// `None` while it is dropped.
    receiver: Option<watch::Receiver<()>>,
}

impl Listening {
    /// Resolves with a notification, or when one may have been missed.
    pub(super) async fn notified(mut self) {
        if let Some(receiver) = &mut self.receiver {
            // An error, because nothing is ever sent: the sender was dropped.
            let _ = receiver.changed().await;
        }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.receiver = None;
        let mut state = self.listeners.lock();
        let key = self.key.as_bytes();
        let unused = match state.waiting.get(key) {
            Some(sender) if sender.receiver_count() == 0 => state.waiting.remove(key),
            _ => None,
        };
        drop(state);
        drop(unused);
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use redis::{PushInfo, PushKind, Value};
    use tokio::time::timeout;

    use super::{Listeners, Listening};

    fn message(text: &str) -> PushInfo {
        let data = ["channel", text].map(|word| Value::BulkString(word.into()));
        PushInfo { kind: PushKind::Message, data: data.into() }
    }

    async fn is_woken(listening: &mut Listening) -> bool {
        let changed = listening.receiver.as_mut().unwrap().changed();
        timeout(Duration::from_millis(1), changed).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn message_wakes_the_listeners_for_its_key_only() {
        let listeners = Arc::new(Listeners::new(false));
        let [key, other] = ["a", "b"].map(|letter| letter.repeat(64));
        let mut woken = [(); 2].map(|()| listeners.listen(&key).unwrap());
        let mut asleep = listeners.listen(&other).unwrap();

        listeners.receive(&message(&key));

        assert!(is_woken(&mut woken[0]).await && is_woken(&mut woken[1]).await);
        assert!(!is_woken(&mut asleep).await);
    }

    #[tokio::test(start_paused = true)]
    async fn message_of_another_length_wakes_nobody() {
        let listeners = Arc::new(Listeners::new(false));
        for length in [0, 63, 65, 1 << 20] {
            let text = "a".repeat(length);
            let mut listening = listeners.listen(&text).unwrap();

            listeners.receive(&message(&text));

            assert!(!is_woken(&mut listening).await, "{length}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn disconnection_wakes_all_and_ends_a_single_connection() {
        for is_cluster in [false, true] {
            let listeners = Arc::new(Listeners::new(is_cluster));
            listeners.set_subscribed();
            let mut listening = ["a", "b"].map(|key| listeners.listen(key).unwrap());

            listeners.receive(&PushInfo { kind: PushKind::Disconnection, data: Vec::new() });

            assert!(is_woken(&mut listening[0]).await && is_woken(&mut listening[1]).await);
            assert!(!listeners.is_subscribed());
            assert_eq!(listeners.listen("a").is_some(), is_cluster);
        }
    }

    #[test]
    fn listeners_that_are_dropped_leave_nothing_behind() {
        let listeners = Arc::new(Listeners::new(false));
        let [one, another] = [(); 2].map(|()| listeners.listen("key").unwrap());

        drop(one);
        assert_eq!(listeners.lock().waiting.len(), 1);
        drop(another);
        assert!(listeners.lock().waiting.is_empty());
    }
}
