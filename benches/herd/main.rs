//! The heap of a request, and a herd of callers that wait for one token.
//!
//! ```sh
//! cargo bench --bench herd
//! cargo bench --bench herd -- charts      # the picture in docs/performance/
//! ```
//!
//! A bench apart from `limits`, because its allocator counts, which takes time.

#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../limits/charts.rs"]
mod charts;
mod heap;
#[path = "../limits/subjects.rs"]
mod subjects;
#[path = "../limits/table.rs"]
mod table;
mod waiters;

use std::env;

use charts::{Axis, Chart, Curve};

fn main() {
    if env::args().any(|word| word == "charts") {
        waiters_chart();
    } else if !env::args().any(|word| word == "instructions") {
        heap::run();
        waiters::run();
    }
}

/// Draws the heap of a waiter, and the time until all continue, against the number of waiters.
fn waiters_chart() {
    let (mut awake, mut all, mut ours) = (Vec::new(), Vec::new(), Vec::new());
    for waiters in [10, 100, 1_000, 10_000, 100_000] {
        let x = waiters as f64;
        let time = waiters::awake(waiters).as_secs_f64() * 1e3;
        let heap = waiters::heap(waiters);
        println!("{waiters} waiters: {time:.2} ms, {:.0} bytes, {:.0} ours", heap.all, heap.ours());
        awake.push((x, time));
        all.push((x, heap.all));
        ours.push((x, heap.ours()));
    }
    let awake = [Curve::new("this layer, two workers", awake)];
    let heap =
        [Curve::new("all: task, request and layer", all), Curve::new("the layer's part", ours)];
    let x = "callers that wait for one token";
    let charts = [
        Chart { title: "Until all are awake", x, y: "milliseconds", curves: &awake },
        Chart { title: "Heap of a waiter", x, y: "bytes", curves: &heap },
    ];
    charts::draw("performance/waiters.svg", &Axis::Tenfold(10.0..100_000.0), None, &charts);
}
