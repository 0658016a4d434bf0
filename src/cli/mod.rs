//! The command line: one file a subcommand.

mod allocate;
mod evaluate;
mod extract;
mod forward;
mod generate;
mod import;
mod rank;
mod serve;
mod tensors;
mod train;

use crate::{Error, Result};
use clap::Parser;
use std::io::IsTerminal;
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

/// Compress a diffusion model once, serve it at every width.
#[derive(Debug, Parser)]
#[command(name = "accordion", version)]
enum Command {
    /// Train a supernet: the full width, then ranking and allocation, then all widths together.
    Train(train::Args),
    /// Turn a public checkpoint into a model directory.
    Import(import::Args),
    /// Sort the channels of a model by importance.
    Rank(rank::Args),
    /// Choose the subnets of a ranked model, in place.
    Allocate(allocate::Args),
    /// Write a subnet as a model of its own.
    Extract(extract::Args),
    /// Print the denoising loss of every subnet on given images.
    Evaluate(evaluate::Args),
    /// Run one denoiser call on tensors in a file.
    Forward(forward::Args),
    /// Generate images into a file.
    Generate(generate::Args),
    /// Serve images over HTTP.
    Serve(serve::Args),
}

impl Command {
    fn run(self) -> Result<()> {
        match self {
            Self::Train(args) => args.run(),
            Self::Import(args) => args.run(),
            Self::Rank(args) => args.run(),
            Self::Allocate(args) => args.run(),
            Self::Extract(args) => args.run(),
            Self::Evaluate(args) => args.run(),
            Self::Forward(args) => args.run(),
            Self::Generate(args) => args.run(),
            Self::Serve(args) => args.run(),
        }
    }
}

/// Parses the command line, runs the subcommand and returns the exit code: 0, 1 (our fault) or 2 (the input's).
pub fn main() -> ExitCode {
    let command = Command::parse();
    let filter = EnvFilter::builder().with_default_directive(tracing::Level::INFO.into()).with_env_var("ACCORDION_LOG");
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_env_filter(filter.from_env_lossy())
        .init();
    match command.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            match error {
                Error::Input { .. } | Error::Io { .. } => ExitCode::from(2),
                Error::Tensor(_) => ExitCode::FAILURE,
            }
        }
    }
}
