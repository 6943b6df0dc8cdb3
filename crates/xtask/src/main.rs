//! Every check of this repository.
fn main() {}
