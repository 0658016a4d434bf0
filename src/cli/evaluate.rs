//! `accordion evaluate`: how well each subnet denoises images that training has not seen.

use super::table::{Align, Table};
use crate::Result;
use crate::console::print;
use crate::evaluation::loss::denoising_losses;
use crate::nets::{Model, Runner, Threads};
use crate::training::config::DataConfig;
use std::path::PathBuf;

/// Print the denoising loss of every subnet on given images.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model directory.
    #[arg(long, env = "ACCORDION_MODEL", default_value = "models/fashion-mnist")]
    model: PathBuf,
    /// TOML file whose `[data]` table names the images, and whose `[loss]` table the noise levels.
    #[arg(long, env = "ACCORDION_DATA")]
    data: PathBuf,
    /// Noisy images, the same for every subnet.
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..))]
    samples: u32,
    /// Seed of what is drawn.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

impl Args {
    /// Runs the subcommand.
    pub fn run(self) -> Result<()> {
        let model = Model::open(&self.model)?;
        let config = DataConfig::open(&self.data)?;
        let dataset = config.load_for(&model)?;
        let mut runner = Runner::new(&model, Threads::ALL)?;
        let losses = denoising_losses(&mut runner, &dataset, &config.loss, self.seed, self.samples as usize)?;
        let mut table = Table::new([
            (Align::Left, "subnet"),
            (Align::Right, "parameters"),
            (Align::Right, "MACs"),
            (Align::Right, "loss"),
        ]);
        for (subnet, loss) in model.subnets().iter().zip(losses) {
            table.row([
                subnet.name.to_string(),
                subnet.parameters.to_string(),
                subnet.macs.to_string(),
                format!("{loss:.4}"),
            ]);
        }
        print(table)
    }
}
