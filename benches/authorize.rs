//! The cost of a call on one thread, with Criterion. `docs/performance.md` quotes the bench `limits`.
//!
//! ```sh
//! cargo bench --bench authorize
//! ```

#![allow(clippy::unwrap_used, missing_docs)]

#[path = "limits/subjects.rs"]
mod subjects;

use std::{hint::black_box, time::Duration};

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use http::Uri;
use subjects::{
    Api, FIREFLY, STORAGE, Stack, by_hand, constant, drive, ours, ours_with_key, quiet_runtime,
    request, tokens, two_constants,
};

/// One bench of a group: a call with a request made before.
fn call(criterion: &mut Criterion, group: &str, name: &str, mut service: impl Stack, uri: &str) {
    let uri: Uri = uri.parse().unwrap();
    criterion.benchmark_group(group).bench_function(name, |bencher| {
        let answer = |request| drive(service.call(black_box(request)));
        bencher.iter_batched(|| request(&uri), answer, BatchSize::SmallInput);
    });
}

fn authorize(criterion: &mut Criterion) {
    let runtime = quiet_runtime();
    let tokens = tokens(&runtime);

    let group = "valid token";
    call(criterion, group, "this layer", ours(&tokens), FIREFLY);
    call(criterion, group, "constant header", constant(), FIREFLY);
    call(criterion, group, "mutex by hand", by_hand(), FIREFLY);

    let group = "valid token with x-api-key";
    call(criterion, group, "this layer", ours_with_key(&tokens), FIREFLY);
    call(criterion, group, "two constant headers", two_constants(), FIREFLY);

    let group = "a clone for each request";
    cloned(criterion, group, "this layer", &ours(&tokens));
    cloned(criterion, group, "constant header", &constant());

    let group = "a host that passes through";
    call(criterion, group, "this layer", ours(&tokens), STORAGE);
    call(criterion, group, "bare service", Api, STORAGE);
}

fn cloned(criterion: &mut Criterion, group: &str, name: &str, service: &impl Stack) {
    let uri: Uri = FIREFLY.parse().unwrap();
    criterion.benchmark_group(group).bench_function(name, |bencher| {
        let answer = |request| drive(service.clone().call(black_box(request)));
        bencher.iter_batched(|| request(&uri), answer, BatchSize::SmallInput);
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = authorize
}
criterion_main!(benches);
