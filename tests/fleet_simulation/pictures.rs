//! The pictures in `docs/fleet/`, from the reports of a full run.

use crate::{
    charts::{Axis, Chart, Curve, draw},
    report::Report,
    scenarios::NEAR,
};

/// The size of the fleet whose renewals are drawn.
const CUT: usize = 10_000;
const SIZES: Axis = Axis::Tenfold(10.0..1e6);

/// One curve: a scenario by its size.
fn curve(
    reports: &[Report],
    scenario: &str,
    name: &'static str,
    value: impl Fn(&Report) -> u64,
) -> Curve {
    let reports = reports.iter().filter(|report| report.scenario == scenario);
    let points = reports.map(|report| (report.processes as f64, value(report) as f64));
    // A logarithmic axis has no zero.
    Curve::new(name, points.filter(|(_, y)| *y > 0.0).collect())
}

fn capacity() -> Curve {
    let y = f64::from(NEAR.calls_per_second);
    Curve::new("the limit of the store", vec![(10.0, y), (1e6, y)])
}

/// The pictures of the reports so far.
pub(crate) fn by_size(reports: &[Report]) {
    cold(reports);
    renewal(reports);
    cut(reports);
}

/// Cold starts: their token requests, and their calls of the store.
fn cold(reports: &[Report]) {
    const NAMES: [(&str, &str); 3] = [
        ("all start within 1 s", "within 1 s"),
        ("all start within 60 s", "within 60 s"),
        ("all start within 10 min", "within 10 min"),
    ];
    let mut requests: Vec<_> = NAMES
        .iter()
        .map(|(scenario, name)| curve(reports, scenario, name, |it| it.requests.total()))
        .collect();
    let alone = "no store, all start within 60 s";
    requests.push(curve(reports, alone, "without a store", |it| it.requests.total()));
    let mut calls: Vec<_> = NAMES
        .iter()
        .map(|(scenario, name)| curve(reports, scenario, name, |it| it.calls.peak()))
        .collect();
    calls.push(capacity());
    let x = "processes";
    let charts = [
        Chart { title: "Cold start: IMS", x, y: "token requests", curves: &requests },
        Chart {
            title: "Cold start: the store",
            x,
            y: "calls in the busiest second",
            curves: &calls,
        },
    ];
    draw("fleet/cold.svg", &SIZES, Some(&Axis::Tenfold(1.0..1e8)), &charts);
}

/// Renewals: their calls of the store.
fn renewal(reports: &[Report]) {
    let peak = |scenario, name| curve(reports, scenario, name, |it| it.calls.peak());
    let curves = [
        peak("one renewal", "the store notifies: read within 30 s"),
        peak("three days, silent store", "it does not: read when due"),
        capacity(),
    ];
    let (x, y) = ("processes", "calls in the busiest second");
    let charts = [Chart { title: "Renewal: the store", x, y, curves: &curves }];
    draw("fleet/renewal.svg", &SIZES, Some(&Axis::Tenfold(1.0..1e7)), &charts);
}

/// Renewals without the store, in quarters of a minute.
fn cut(reports: &[Report]) {
    let minutes = |scenario: &str, name: &'static str| {
        let is_it = |it: &&Report| it.scenario == scenario && it.processes == CUT;
        let report = reports.iter().find(is_it)?;
        // From the earliest renewal on.
        let seconds = report.requests.seconds();
        let first = seconds.iter().position(|count| *count > 0)?;
        let quarters = seconds[first..].chunks(15).map(|counts| {
            let sum: u32 = counts.iter().sum();
            f64::from(sum) / counts.len() as f64
        });
        let times = (0..).map(|at| f64::from(at) / 4.0);
        Some(Curve::new(name, times.zip(quarters).take_while(|(at, _)| *at < 18.0).collect()))
    };
    let curves: Vec<_> = [
        minutes("store down, renewal", "the store is down"),
        minutes("half cut off, renewal", "half of the processes do not reach it"),
    ]
    .into_iter()
    .flatten()
    .collect();
    if curves.is_empty() {
        return;
    }
    let charts = [Chart {
        title: "Renewal of 10,000 processes without the store",
        x: "minutes after the first renewal",
        y: "token requests a second",
        curves: &curves,
    }];
    draw("fleet/cut.svg", &Axis::Even(0.0..18.0), None, &charts);
}

/// Token requests against the number of processes that start within one second.
pub(crate) fn storm(curves: &[Curve]) {
    let charts = [Chart {
        title: "Cold start within a second",
        x: "processes that start within a second",
        y: "token requests",
        curves,
    }];
    let (x, y) = (Axis::Tenfold(1e3..1e5), Axis::Tenfold(1.0..1e6));
    draw("fleet/storm.svg", &x, Some(&y), &charts);
}
