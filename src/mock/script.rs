//! Which answer comes next.

use std::collections::VecDeque;
use std::time::Duration;

use super::answer::Answer;

/// The answers the token endpoint was told to give. Those queued come first, then the standing one.
#[derive(Default)]
pub(super) struct Script {
    queued: VecDeque<Answer>,
    standing: Option<Answer>,
    delay: Duration,
}

impl Script {
    pub(super) fn stand(&mut self, answer: Answer) {
        self.standing = Some(answer);
    }

    pub(super) fn queue(&mut self, answers: impl IntoIterator<Item = Answer>) {
        self.queued.extend(answers);
    }

    pub(super) fn clear(&mut self) {
        self.queued.clear();
        self.standing = None;
    }

    /// How many queued answers are still to be given.
    pub(super) fn waiting(&self) -> usize {
        self.queued.len()
    }

    pub(super) fn set_delay(&mut self, delay: Duration) {
        self.delay = delay;
    }

    /// The next answer, its delay the whole of what it is to be held back for.
    pub(super) fn next(&mut self) -> Answer {
        let mut answer = self
            .queued
            .pop_front()
            .or_else(|| self.standing.clone())
            .unwrap_or_else(Answer::normal);
        answer.delay = answer.delay.saturating_add(self.delay);
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mock::answer::Kind;

    #[test]
    fn queued_answers_come_before_the_standing_one_and_each_once() {
        let mut script = Script::default();
        script.stand(Answer::hang());
        script.queue([Answer::disconnect()]);

        assert!(matches!(script.next().kind, Kind::Disconnect));
        assert!(matches!(script.next().kind, Kind::Hang));
        assert!(matches!(script.next().kind, Kind::Hang));
    }

    #[test]
    fn cleared_it_answers_normally_and_keeps_its_delay() {
        let mut script = Script::default();
        script.set_delay(Duration::from_secs(1));
        script.stand(Answer::hang());
        script.queue([Answer::disconnect()]);
        script.clear();

        let answer = script.next();

        assert!(matches!(answer.kind, Kind::Normal));
        assert_eq!(answer.delay, Duration::from_secs(1));
    }
}
