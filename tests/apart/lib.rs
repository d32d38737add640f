//! Tests that cannot belong to the crate's own package: they enable other features, or need unsafe
//! code.
