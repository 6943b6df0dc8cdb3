//! The one binary; everything is in [`tollgate::program`].

use std::process::ExitCode;

/// Commands and checks are many small allocations: this took a quarter off the time of both (docs/benches.md).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    tollgate::program::main()
}
