//! Tokens that other processes have requested, taken while nobody here asks for one.
//!
//! A token that an API refused to one process is replaced in all of them, a new token is known before
//! the old one expires, and a process whose own attempts fail gets the token of a luckier one.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::session::{Call, Unavailable};
use super::{evaluate::Verdict, issuer::Snapshot, member::Member};
use crate::source::{Reason, Watching};

/// The processes of a fleet that have a good token read a new record within this time, not all at once.
const SPREAD: Duration = Duration::from_secs(30);

/// The shortest time from a notification to the next read, so that a store that always notifies does not
/// make the task spin.
const MIN_PAUSE: Duration = Duration::from_secs(1);

/// The time within which a process without a token reads the record.
const URGENT_SPREAD: Duration = Duration::from_millis(250);

/// After this time the watcher listens under the key of the current credentials.
const MAX_LISTENING: Duration = Duration::from_secs(60 * 60);

/// The pause after the credentials could not be read.
const NO_CREDENTIALS_PAUSE: Duration = Duration::from_secs(60);

/// The pause after a read failed; it doubles with each further failure. A store that cannot keep up
/// with a fleet must not be asked more often.
const FIRST_FAILURE_PAUSE: Duration = Duration::from_secs(30);

/// The longest such pause.
const MAX_FAILURE_PAUSE: Duration = Duration::from_secs(60 * 60);

/// Watches the record, and gives each newer token to the source. Never ends.
pub(super) async fn watch(member: &Member, source: &dyn Watching) {
    let mut is_read_due = false;
    let mut failure_pause = FIRST_FAILURE_PAUSE;
    let mut earliest = Instant::now() + MIN_PAUSE;
    loop {
        if is_read_due {
            sleep(pause_before_read(source.have().is_usable)).await;
            sleep_until(earliest).await;
        }
        // Read anew each time, because other credentials have another token.
        let Ok(snapshot) = member.snapshot().await else {
            // Nobody listens meanwhile.
            is_read_due = true;
            sleep(NO_CREDENTIALS_PAUSE).await;
            continue;
        };
        // Subscribe, then read: a concurrent commit is either read here, or ends the wait below.
        let mut changed = pin!(member.session.changed(&snapshot.key));
        let is_ready = poll_fn(|cx| Poll::Ready(changed.as_mut().poll(cx).is_ready())).await;
        let changed = async {
            if !is_ready {
                changed.await;
            }
        };
        earliest = Instant::now() + MIN_PAUSE;
        if is_read_due && read(member, &snapshot, source).await.is_err() {
            let pause = failure_pause.mul_f64(0.5 + fastrand::f64());
            failure_pause = (failure_pause * 2).min(MAX_FAILURE_PAUSE);
            let end = Instant::now() + pause;
            // It listens on, because a notification proves that the store is well again, unless the
            // store notifies without a reason.
            let _ = timeout(pause, changed).await;
            if end.saturating_duration_since(Instant::now()) + MIN_PAUSE > pause {
                sleep_until(end).await;
            }
            continue;
        }
        failure_pause = FIRST_FAILURE_PAUSE;
        is_read_due = timeout(MAX_LISTENING, changed).await.is_ok();
    }
}

/// How long a process waits with its read after a notification.
fn pause_before_read(is_usable: bool) -> Duration {
    if is_usable {
        MIN_PAUSE + (SPREAD - MIN_PAUSE).mul_f64(fastrand::f64())
    } else {
        URGENT_SPREAD.mul_f64(fastrand::f64())
    }
}

/// Reads the record, and gives its token to the source if it is newer.
async fn read(
    member: &Member,
    snapshot: &Snapshot,
    source: &dyn Watching,
) -> Result<(), Unavailable> {
    let acquired = member.session.acquire(&snapshot.key, None).await?;
    let newest = source.have().newest;
    let (verdict, outcome) = member.evaluate(snapshot, &acquired, newest, Reason::Due);
    member.session.count(Call::Read, outcome);
    if let Verdict::Take(supplied) = verdict {
        member.issuer.record_use(snapshot);
        source.take(supplied);
    }
    Ok(())
}
