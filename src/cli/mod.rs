//! The command line: one file a subcommand.

mod train;

use clap::Parser;

/// Compress a diffusion model once, serve it at every width.
#[derive(Debug, Parser)]
#[command(version)]
enum Command {
    /// Train a supernet.
    Train(train::Args),
}

/// Parses the command line, runs the subcommand and returns the exit code: 0, 1 (our fault) or 2 (the input's).
pub fn main() -> std::process::ExitCode {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let Command::Train(args) = Command::parse();
    match args.run() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            std::process::ExitCode::from(2)
        }
    }
}
