//! The command line: one file a subcommand.

mod generate;
mod serve;
mod train;

use clap::Parser;

/// Compress a diffusion model once, serve it at every width.
#[derive(Debug, Parser)]
#[command(version)]
enum Command {
    Train(train::Args),
    Generate(generate::Args),
    Serve(serve::Args),
}

/// Parses the command line, runs the subcommand and returns the exit code: 0, 1 (our fault) or 2 (the input's).
pub fn main() -> std::process::ExitCode {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let result = match Command::parse() {
        Command::Train(args) => args.run(),
        Command::Generate(args) => args.run(),
        Command::Serve(args) => args.run(),
    };
    match result {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            std::process::ExitCode::from(2)
        }
    }
}
