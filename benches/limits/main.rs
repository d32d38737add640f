//! The cost of a request with a valid token: `docs/performance.md` explains each row.
//!
//! ```sh
//! cargo bench --bench limits --bench herd                # all rows
//! cargo bench --bench limits -- instructions             # one row; exits 1 above 1.4 ×
//! cargo bench --bench limits --bench herd -- charts      # the pictures in docs/performance/
//! ```
//!
//! Heap and waiters are in the bench `herd`, because its allocator counts, which takes time.

#![allow(clippy::unwrap_used, missing_docs)]

mod charts;
mod instructions;
mod refresh;
mod subjects;
mod table;
mod time;
mod wire;

use std::{env, process::ExitCode};

use time::Times;

fn main() -> ExitCode {
    // Cargo always adds `--bench`.
    let arguments: Vec<_> = env::args().skip(1).filter(|word| word != "--bench").collect();
    let words: Vec<_> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        [] => {
            time::run();
            refresh::run();
            wire::run();
            instructions::run();
        }
        ["instructions"] if !instructions::run() => return ExitCode::FAILURE,
        ["instructions"] => {}
        ["charts"] => threads_chart(),
        ["count", subject, calls] => instructions::count(subject, calls),
        _ => {
            eprintln!("expected no argument, `instructions` or `charts`, not {words:?}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// Draws the cost of a call against the number of threads.
fn threads_chart() {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for threads in [1, 2, 4, 8] {
        let times = time::against_constant(threads);
        let Times { ours: a, theirs: b, met } = times;
        println!("{threads} threads: {a:.1} / {b:.1} ns, met in {:.0} % of rounds", 100.0 * met);
        ours.push((threads as f64, times.ours));
        theirs.push((threads as f64, times.theirs));
    }
    let curves =
        [charts::Curve::new("this layer", ours), charts::Curve::new("constant header", theirs)];
    let chart = charts::Chart {
        title: "Cost of a call",
        x: "threads",
        y: "nanoseconds per call",
        curves: &curves,
    };
    charts::draw("performance/threads.svg", &charts::Axis::Twofold(1.0..8.0), None, &[chart]);
}
