//! [`Found`]: the result of opening a file of the store.

use std::fs::File;

pub(super) enum Found {
    File(File),
    Absent,
    /// The file is not one of ours, for this reason.
    Unusable(&'static str),
}
