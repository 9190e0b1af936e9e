//! The one binary: see [`accesskey_operator::run::main`].

use std::process::ExitCode;

fn main() -> ExitCode {
    accesskey_operator::run::main()
}
