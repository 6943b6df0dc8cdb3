//! The one binary; everything is in [`tollgate::program`].

use std::process::ExitCode;

fn main() -> ExitCode {
    tollgate::program::main()
}
