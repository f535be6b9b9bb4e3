//! Composition root; filled in with the shells.
fn main() {}
