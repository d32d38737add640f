//! The additions of the layer to a request with a valid token: allocations, and the size of the future.

use std::{hint::black_box, mem::size_of};

use allocation_counter::measure;
use http::{Request, Uri};
use tower_adobe_auth::ResponseFuture;

use crate::{
    subjects::{
        Answer, Api, FIREFLY, Stack, constant, drive, ours, quiet_runtime, request, tokens,
    },
    table::{head, row},
};

/// The heap allocations of one call, a warm one.
fn allocations(mut service: impl Stack) -> u64 {
    let uri: Uri = FIREFLY.parse().unwrap();
    let mut count = || {
        let request = request(&uri);
        measure(|| assert!(black_box(drive(service.call(request))).is_ok())).count_total
    };
    count();
    count()
}

pub(crate) fn run() {
    let runtime = quiet_runtime();
    head("heap and size, ours / theirs");
    let (ours, theirs) = (allocations(ours(&tokens(&runtime))), allocations(constant()));
    row("allocations of a call, constant header", &format!("{ours} / {theirs}"));
    let (ours, inner) = (size_of::<ResponseFuture<Api, Request<()>>>(), size_of::<Answer>());
    row("size of the future, inner future", &format!("{ours} / {inner} bytes"));
}
