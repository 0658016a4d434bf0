//! `accordion finetune`: one subnet trained further.

use super::train::stop_on_signal;
use crate::console::note;
use crate::nets::Model;
use crate::training::config::Config;
use crate::training::flow::{Flow, Outcome};
use crate::{Error, Result};
use std::path::PathBuf;
use std::time::Duration;

/// Train one subnet further, as a model of its own.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model directory.
    #[arg(long, env = "ACCORDION_MODEL")]
    model: PathBuf,
    /// The subnet: `full` or a ratio, such as 0.5.
    #[arg(long)]
    subnet: String,
    /// Training config, whose `[finetune]` says how long and how fast.
    #[arg(long, env = "ACCORDION_CONFIG")]
    config: PathBuf,
    /// Directory for the model and the state of the run.
    #[arg(long)]
    out: PathBuf,
    /// Continue the run that lies in the directory.
    #[arg(long)]
    resume: bool,
    /// Minutes between two checkpoints.
    #[arg(long, default_value_t = 5.0)]
    checkpoint_minutes: f64,
}

impl Args {
    /// Runs the subcommand.
    pub fn run(self) -> Result<()> {
        if !(self.checkpoint_minutes > 0.0 && self.checkpoint_minutes < 1e6) {
            return Err(Error::input("--checkpoint-minutes", "must be positive"));
        }
        let (config, model) = (Config::load(&self.config)?, Model::open(&self.model)?);
        let subnet = model.subnet(&self.subnet)?;
        let flow = Flow {
            config: &config,
            out: &self.out,
            resume: self.resume,
            only: None,
            init: None,
            checkpoint_every: Duration::from_secs_f64(self.checkpoint_minutes * 60.0),
            stop: stop_on_signal()?,
        };
        match flow.finetune(&model, &self.model, subnet)? {
            Outcome::Finished => note(format_args!("done: {}", self.out.display())),
            Outcome::Stopped => note(format_args!("stopped; `--resume` continues from {}", self.out.display())),
        }
        Ok(())
    }
}
