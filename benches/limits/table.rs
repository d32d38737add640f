//! The table: one line for each measure.

pub(crate) fn row(measure: &str, measured: &str) {
    println!("{measure:<56} {measured}");
}

pub(crate) fn head(title: &str) {
    println!("\n{title}");
}
