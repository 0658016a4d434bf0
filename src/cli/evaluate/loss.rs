//! The denoising loss of every subnet.

use crate::Result;
use crate::cli::table::{Align, Table};
use crate::console::print;
use crate::evaluation::loss::denoising_losses;
use crate::nets::{HostRunner, Model, Threads};
use crate::training::config::DataConfig;
use std::path::Path;
use std::sync::atomic::AtomicBool;

/// Prints the denoising loss of every subnet of `model` on so many noisy images of `data`.
///
/// # Errors
/// As [`DataConfig::examples_for`].
pub fn run(model: &Model, data: &Path, seed: u64, samples: usize, json: bool) -> Result<()> {
    let config = DataConfig::open(data)?;
    let examples = config.examples_for(model, &AtomicBool::new(false))?.expect("nobody stops it");
    let mut runner = HostRunner::new(model, Threads::ALL)?;
    let losses = denoising_losses(&mut runner, &*examples, &config.loss, seed, samples)?;
    let rows = model.subnets().iter().zip(losses);
    if json {
        let row = |(subnet, loss): (&crate::supernet::Subnet, f64)| serde_json::json!({ "subnet": subnet.name, "parameters": subnet.parameters, "macs": subnet.macs, "loss": loss });
        return print(serde_json::json!({ "samples": samples, "rows": rows.map(row).collect::<Vec<_>>() }));
    }
    let columns =
        [(Align::Left, "subnet"), (Align::Right, "parameters"), (Align::Right, "MACs"), (Align::Right, "loss")];
    let mut table = Table::new(columns);
    for (subnet, loss) in rows {
        let counts = [subnet.parameters.to_string(), subnet.macs.to_string()];
        table.row([subnet.name.to_string()].into_iter().chain(counts).chain([format!("{loss:.4}")]));
    }
    print(table)
}
