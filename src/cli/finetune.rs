//! `accordion finetune`: one subnet trained further.

use super::train::{checkpoint_every, report, stop_on_signal};
use crate::Result;
use crate::nets::Model;
use crate::training::config::Config;
use crate::training::flow::Flow;
use std::path::PathBuf;

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
        let checkpoint_every = checkpoint_every(self.checkpoint_minutes)?;
        let (config, model) = (Config::load(&self.config)?, Model::open(&self.model)?);
        let subnet = model.subnet(&self.subnet)?;
        let flow = Flow {
            config: &config,
            out: &self.out,
            resume: self.resume,
            only: None,
            model: None,
            init: None,
            checkpoint_every,
            stop: stop_on_signal()?,
        };
        flow.finetune(&model, &self.model, subnet).map(|outcome| report(outcome, &self.out))
    }
}
