//! The table: what was measured, against its limit.

/// What fills the columns of one row; a row without a limit is there to be compared with.
pub(crate) fn row(measure: &str, measured: &str, limit: &str, holds: bool) {
    let verdict = if holds { "holds" } else { "MISSED" };
    println!("{measure:<56} {measured:<34} {limit:<22} {verdict}");
}

/// Something that has no limit.
pub(crate) fn note(measure: &str, measured: &str) {
    println!("{measure:<56} {measured}");
}

pub(crate) fn head(title: &str) {
    println!("\n{title:<56} {:<34} {:<22} verdict", "measured", "limit");
}
