//! Longwave tasks.
fn main() {}
