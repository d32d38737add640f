//! [`Adversity`]: the kinds of trouble. Each seed draws some of them, so that one does not always
//! hide another.

use std::{collections::BTreeSet, env};

use fastrand::Rng;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Adversity {
    /// IMS slows down, hangs, fails, throttles, rejects, answers nonsense; its transport panics.
    Weather,
    /// The machine sleeps, the wall clock jumps, stands still or runs backwards.
    Clocks,
    /// The wall clock panics while a failure is booked.
    PanickingClock,
    /// APIs refuse tokens: some always, some once, some one generation, some late.
    Refusals,
    /// The process stands still.
    Standstills,
    /// Runtimes end, or are not driven for a while.
    Runtimes,
    /// The provider of the credentials panics, fails or hangs.
    Provider,
    /// `changed()` takes up to an hour, panics, or always returns.
    Changes,
    /// A tracing subscriber panics.
    Subscriber,
    /// A metrics recorder panics.
    Recorder,
}

pub(crate) const ALL: [Adversity; 10] = {
    use Adversity::*;
    [
        Weather,
        Clocks,
        PanickingClock,
        Refusals,
        Standstills,
        Runtimes,
        Provider,
        Changes,
        Subscriber,
        Recorder,
    ]
};

/// The adversities of one run: each with a chance of a half, weather and clocks more often.
/// `SIMULATION_ONLY=Standstills,Refusals` keeps only these, to find out which one breaks a promise.
pub(crate) fn draw(rng: &mut Rng) -> BTreeSet<Adversity> {
    let only = env::var("SIMULATION_ONLY").ok();
    let is_kept = |adversity: &Adversity| match &only {
        Some(only) => only.split(',').any(|name| name == format!("{adversity:?}")),
        None => true,
    };
    let mut drawn = BTreeSet::new();
    for adversity in ALL {
        let chance = if adversity <= Adversity::Clocks { 7 } else { 4 };
        if rng.u8(0..8) < chance || only.is_some() {
            drawn.insert(adversity);
        }
    }
    drawn.retain(is_kept);
    drawn
}
