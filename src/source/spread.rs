//! One token several times, so that threads do not contend for its count of references.
//!
//! To clone a header value is to count up; where all threads count at one place, each waits for the
//! others. So there are a few copies of a token, and each thread keeps to one of them.

use std::{
    cell::Cell,
    num::NonZero,
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use super::state::Copies;
use crate::token::AccessToken;

/// More than these would cost memory for little: each holds the header values of a token.
const MOST_COPIES: usize = 8;

/// As many copies of `token` as there are threads at work, up to a bound.
pub(super) fn copies(token: &AccessToken) -> Copies {
    // Asked once: on Linux the answer is read from files.
    static THREADS: OnceLock<usize> = OnceLock::new();
    let threads = *THREADS.get_or_init(|| thread::available_parallelism().map_or(1, NonZero::get));
    // Twice as many, so that threads that come and go seldom meet at one.
    let copies = (2 * threads).next_power_of_two().min(MOST_COPIES);
    (0..copies).map(|_| token.copied()).collect()
}

/// The copy of this thread. There is at least one, and their number is a power of two.
#[inline]
pub(super) fn pick(copies: &Copies) -> &AccessToken {
    &copies[number() & (copies.len() - 1)]
}

/// The number of this thread, from the first time that it asks.
#[inline]
fn number() -> usize {
    thread_local! {
        static NUMBER: Cell<usize> = const { Cell::new(usize::MAX) };
    }
    static NEXT: AtomicUsize = AtomicUsize::new(0);

    NUMBER.with(|number| {
        if number.get() == usize::MAX {
            number.set(NEXT.fetch_add(1, Ordering::Relaxed));
        }
        number.get()
    })
}
