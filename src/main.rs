//! Parses the command line and dispatches to one file a subcommand.

fn main() -> std::process::ExitCode {
    accordion::cli::main()
}
