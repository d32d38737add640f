//! What is to be done next, given what the file and Adobe hold. Pure.

use std::{fmt, time::Duration};

use super::{console::Listed, sink::Held};

/// The next step of a rotation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Write down which secret is the one in use, and that another is about to be added.
    Announce { current: String },
    /// Remove a secret that was added and lost: the run ended before it was kept.
    Discard { uuid: String },
    /// Add a secret, and keep it in the file beside those in use.
    Add,
    /// Get a token with the secret that was kept, and store it as the first.
    Prove { uuid: String, listed: bool },
    /// Remove the old secret at Adobe.
    Remove { old: String },
    /// Drop a secret from the file that is no longer at Adobe.
    Forget { uuid: String },
    /// Let the old secret be until it has not been used for long enough.
    Wait { old: String, remaining: Duration },
    /// Nothing is left to do.
    Done,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const THEN: &str = "prove it, store it as the first, and remove the old one when its last \
                            use lies back";
        match self {
            Self::Announce { current } => {
                write!(f, "replace secret {current}: add another at Adobe, {THEN}")
            }
            Self::Discard { uuid } => write!(
                f,
                "remove secret {uuid}, which an earlier run added and lost; add another, {THEN}"
            ),
            Self::Add => write!(f, "add the secret that an earlier run announced, {THEN}"),
            Self::Prove { uuid, .. } => {
                write!(f, "go on with secret {uuid}, which an earlier run added: {THEN}")
            }
            Self::Remove { old } => {
                write!(f, "remove the old secret {old}: its last use lies back")
            }
            Self::Forget { uuid } => {
                write!(f, "drop secret {uuid} from the file: it is no longer at Adobe")
            }
            Self::Wait { old, remaining } => {
                write!(f, "wait: the old secret {old} may be removed in {remaining:.1?} at best")
            }
            Self::Done => f.write_str("nothing"),
        }
    }
}

/// Decides on the next step. `begin` says whether a rotation may be begun; one that was begun is
/// gone on with in any case.
///
/// # Errors
///
/// Says what is not as a rotation leaves it. Nothing is removed on suspicion: a secret that is not
/// in the file may be somebody else's.
pub(super) fn plan(
    held: &Held,
    listed: &[Listed],
    now: u64,
    quiet: Duration,
    begin: bool,
) -> Result<Step, String> {
    let notes = &held.notes;
    let find = |uuid: &str| listed.iter().find(|secret| secret.uuid == uuid);

    if notes.uuids.is_empty() {
        return first(held, listed);
    }
    if !held.is_as_written() {
        return Err(
            "the file's secrets were changed since the last rotation: leave one secret in \
                    it and at Adobe, and remove ROTATION from the file"
                .to_owned(),
        );
    }
    let (here, gone): (Vec<_>, Vec<_>) = notes.uuids.iter().partition(|uuid| find(uuid).is_some());
    if here.is_empty() {
        return Err("none of the file's secrets is at Adobe".to_owned());
    }
    if let Some(&uuid) = gone.first() {
        return Ok(Step::Forget { uuid: uuid.clone() });
    }

    let pending = notes.pending.as_ref().map(|pending| pending.uuid.as_str());
    let known = |uuid: &String| notes.uuids.contains(uuid) || pending == Some(uuid);
    if let Some(stranger) = listed.iter().find(|secret| !known(&secret.uuid)) {
        let uuid = stranger.uuid.clone();
        // The proof comes after the keeping: one of ours that was lost was never used.
        let ours = notes.adding && pending.is_none() && stranger.last_used_at.is_none();
        return if ours {
            Ok(Step::Discard { uuid })
        } else {
            Err(format!(
                "secret {uuid} is at Adobe and not in the file: who uses it? Remove it in the \
                 Console if nobody does"
            ))
        };
    }

    match (notes.uuids.as_slice(), pending) {
        ([_], Some(pending)) => {
            Ok(Step::Prove { uuid: pending.to_owned(), listed: find(pending).is_some() })
        }
        ([_], None) if notes.adding => Ok(Step::Add),
        ([current], None) if begin => Ok(Step::Announce { current: current.clone() }),
        ([_], None) => Ok(Step::Done),
        ([_, old], _) => {
            let last_use = find(old).and_then(|secret| secret.last_used_at).unwrap_or(0);
            // A use in the future, by Adobe's clock, is one of just now.
            let idle = now.saturating_sub(notes.stored_at.max(last_use));
            let remaining = quiet.saturating_sub(Duration::from_millis(idle));
            let old = old.clone();
            Ok(if remaining.is_zero() {
                Step::Remove { old }
            } else {
                Step::Wait { old, remaining }
            })
        }
        _ => Err("the file holds more than two secrets".to_owned()),
    }
}

/// No rotation has written to the file yet. Adobe tells no secret, so which is whose is only clear
/// where there is one: it is the one that the list was just asked for with.
fn first(held: &Held, listed: &[Listed]) -> Result<Step, String> {
    match (held.secrets.as_slice(), listed) {
        ([_], [only]) => Ok(Step::Announce { current: only.uuid.clone() }),
        _ => Err(format!(
            "the file holds {} secrets and Adobe {}, and nothing says which is which: leave one, \
             the same, in both",
            held.secrets.len(),
            listed.len()
        )),
    }
}
