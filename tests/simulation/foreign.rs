//! Foreign code that panics now and then: a tracing subscriber and a metrics recorder.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    panic::resume_unwind,
    sync::Arc,
    thread,
};

use fastrand::Rng;
use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder,
    SharedString, Unit,
};
use tracing::{
    Event, Subscriber,
    span::{Attributes, Id, Record},
};

use crate::world::Simulation;

/// Panics in about one call of `ONE_IN`, while [`World::foreign_panics_until`] lies ahead. The seed,
/// the instant and the method decide, because the order of calls within one instant is not the
/// seed's.
///
/// Not while the thread unwinds: a second panic then aborts whatever the crate does.
///
/// [`World::foreign_panics_until`]: crate::world::World::foreign_panics_until
#[derive(Clone)]
pub(crate) struct Foreign {
    simulation: Arc<Simulation>,
    seed: u64,
    what: &'static str,
}

const ONE_IN: u64 = 12;

impl Foreign {
    pub(crate) fn new(simulation: &Arc<Simulation>, rng: &mut Rng, what: &'static str) -> Self {
        Self { simulation: Arc::clone(simulation), seed: rng.u64(..), what }
    }

    fn run(&self, method: &'static str) {
        if thread::panicking() || !self.simulation.foreign_code_panics() {
            return;
        }
        let mut hasher = DefaultHasher::new();
        (self.seed, self.simulation.now().at, method).hash(&mut hasher);
        if hasher.finish() % ONE_IN == 0 {
            self.simulation.note_trouble(self.what);
            resume_unwind(Box::new(self.what));
        }
    }
}

impl Subscriber for Foreign {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        self.run("new_span");
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {
        self.run("record");
    }

    fn record_follows_from(&self, _: &Id, _: &Id) {
        self.run("record_follows_from");
    }

    fn event(&self, _: &Event<'_>) {
        self.run("event");
    }

    fn enter(&self, _: &Id) {
        self.run("enter");
    }

    fn exit(&self, _: &Id) {
        self.run("exit");
    }

    fn try_close(&self, _: Id) -> bool {
        self.run("try_close");
        true
    }
}

impl CounterFn for Foreign {
    fn increment(&self, _: u64) {
        self.run("increment");
    }

    fn absolute(&self, _: u64) {
        self.run("absolute");
    }
}

impl GaugeFn for Foreign {
    fn increment(&self, _: f64) {
        self.run("increment");
    }

    fn decrement(&self, _: f64) {
        self.run("decrement");
    }

    fn set(&self, _: f64) {
        self.run("set");
    }
}

impl HistogramFn for Foreign {
    fn record(&self, _: f64) {
        self.run("record");
    }
}

impl Recorder for Foreign {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(Arc::new(self.clone()))
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(Arc::new(self.clone()))
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(Arc::new(self.clone()))
    }
}
