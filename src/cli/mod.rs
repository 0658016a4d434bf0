//! The command line: one file a subcommand.

mod allocate;
mod axes;
mod bench;
mod device;
mod evaluate;
mod extract;
mod finetune;
mod forward;
mod generate;
mod hash_key;
mod healthcheck;
mod import;
mod loadtest;
mod logs;
mod part;
mod profile;
mod rank;
mod serve;
mod show;
mod table;
mod tensors;
mod train;
mod train_features;
mod variables;

use crate::console;
use crate::nets::Threads;
use crate::server::LogFormat;
use crate::{Error, Result};
use clap::Parser;
use std::io::ErrorKind;
use std::process::ExitCode;
use std::time::Duration;

/// Compress a diffusion model once, serve it at every width.
#[derive(Debug, Parser)]
#[command(name = "accordion", version)]
enum Command {
    /// Train a supernet: the full width, then ranking and allocation, then all widths together.
    Train(train::Args),
    /// Train the classifier in whose features the quality of images is measured.
    TrainFeatures(train_features::Args),
    /// Train one subnet further, as a model of its own.
    Finetune(finetune::Args),
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
    /// Measure how fast every subnet runs on this machine.
    Bench(bench::Args),
    /// Measure what the server must know of this machine, into the model directory.
    Profile(profile::Args),
    /// Run one denoiser call on tensors in a file.
    Forward(forward::Args),
    /// Generate images into a file.
    Generate(generate::Args),
    /// Print what a PNG file was drawn with, and how to draw it again.
    Show(show::Args),
    /// Read an API key from stdin and print its hash for `key_hashes`.
    HashKey(hash_key::Args),
    /// Ask the server on this machine whether it is ready: exit code 0 if so, 1 if not.
    Healthcheck(healthcheck::Args),
    /// Serve images over HTTP.
    Serve(serve::Args),
    /// Measure how a server does under load.
    Loadtest(loadtest::Args),
}

impl Command {
    fn run(self) -> Result<()> {
        match self {
            Self::Train(args) => args.run(),
            Self::TrainFeatures(args) => args.run(),
            Self::Finetune(args) => args.run(),
            Self::Import(args) => args.run(),
            Self::Rank(args) => args.run(),
            Self::Allocate(args) => args.run(),
            Self::Extract(args) => args.run(),
            Self::Evaluate(args) => args.run(),
            Self::Bench(args) => args.run(),
            Self::Profile(args) => args.run(),
            Self::Forward(args) => args.run(),
            Self::Generate(args) => args.run(),
            Self::Show(args) => args.run(),
            Self::HashKey(args) => args.run(),
            Self::Healthcheck(args) => args.run(),
            Self::Serve(args) => args.run(),
            Self::Loadtest(args) => args.run(),
        }
    }
}

/// For a flag of samples in a call.
fn batch(text: &str) -> std::result::Result<usize, String> {
    number(text, 1, 1 << 16)
}

/// For a flag of threads.
fn threads(text: &str) -> std::result::Result<usize, String> {
    number(text, 1, Threads::MOST)
}

/// For a flag of images to compare.
fn images(text: &str) -> std::result::Result<usize, String> {
    number(text, 2, 1 << 16)
}

fn number(text: &str, least: usize, most: usize) -> std::result::Result<usize, String> {
    let number = text.trim().parse().ok().filter(|number| (least..=most).contains(number));
    number.ok_or_else(|| format!("must be a number from {least} to {most}"))
}

/// For a flag of seconds to measure.
fn seconds(text: &str) -> std::result::Result<Duration, String> {
    let seconds = text.parse().ok().filter(|seconds: &f64| *seconds > 0.0 && *seconds <= 3600.0);
    seconds.map(Duration::from_secs_f64).ok_or_else(|| "must be above 0 and at most 3600".to_owned())
}

/// Parses the command line, runs the subcommand and returns the exit code: 0, 1 (our fault, the asked server's, or training
/// that diverged) or 2 (the input's).
pub fn main() -> ExitCode {
    console::note_panics();
    let code = match variables::parse::<Command>() {
        Ok(command) => finished(started(command)),
        Err(asked) if !asked.use_stderr() => finished(console::print(asked.render().ansi())),
        Err(refusal) => {
            console::note(refusal.render().ansi());
            ExitCode::from(2)
        }
    };
    console::flush();
    code
}

/// Starts the log and runs the subcommand.
fn started(command: Command) -> Result<()> {
    match command {
        // The server's config says how it logs.
        Command::Serve(_) => {}
        Command::Loadtest(_) => logs::start_without_requests()?,
        _ => logs::start(LogFormat::Text)?,
    }
    command.run()
}

fn finished(outcome: Result<()>) -> ExitCode {
    let Err(error) = outcome else { return ExitCode::SUCCESS };
    match &error {
        // Whoever closed the pipe knows.
        Error::Output(problem) if problem.kind() == ErrorKind::BrokenPipe => {}
        _ => console::note(format_args!("error: {error}")),
    }
    match error {
        Error::Input { .. } | Error::Io { .. } => ExitCode::from(2),
        Error::Output(_)
        | Error::Engine(_)
        | Error::Tensor(_)
        | Error::Denoiser(_)
        | Error::NotFinite { .. }
        | Error::Unready { .. } => ExitCode::FAILURE,
    }
}
