//! `accordion profile`: what a model costs on this machine, for the server.

use super::table::{Align, Table};
use crate::Result;
use crate::evaluation::profile::{PROFILE, Profile};
use crate::evaluation::survey::Effort;
use crate::nets::{Model, Runner, Threads};
use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// Measure what the server must know of this machine, into the model directory.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Model directory.
    #[arg(long, env = "ACCORDION_MODEL", default_value = "models/fashion-mnist")]
    model: PathBuf,
    /// Samples of a call, several numbers separated by commas; powers of two without it.
    #[arg(long, value_delimiter = ',', value_parser = super::batch)]
    batches: Vec<usize>,
    /// The largest batch, where --batches does not say which.
    #[arg(long, default_value = "64", conflicts_with = "batches", value_parser = super::batch)]
    max_batch: usize,
    /// Threads that compute; one for each core without it.
    #[arg(long, value_parser = super::threads)]
    threads: Option<usize>,
    /// Bind each thread but the first to a core of its own.
    #[arg(long)]
    pin: bool,
    /// Seconds for each subnet and batch.
    #[arg(long, default_value = "0.5", value_parser = super::seconds)]
    seconds: Duration,
    /// Images of each plan whose quality is measured: seeds from 0, with classes in turn.
    #[arg(long, default_value = "40", value_parser = super::images)]
    images: usize,
    /// The file, if not `profile.toml` in the model directory.
    #[arg(long)]
    out: Option<PathBuf>,
}

impl Args {
    /// Runs the subcommand.
    pub fn run(self) -> Result<()> {
        let model = Model::open(&self.model)?;
        let mut runner = Runner::new(&model, Threads { count: self.threads, pin: self.pin })?;
        let batches = self.batches().into_iter().collect();
        let effort = Effort::Thorough { batches, time: self.seconds, images: self.images };
        let survey = Profile::measure(&mut runner, model.card.noise, self.pin, &effort, &mut |_| {})?;
        let profile = survey.profile;
        print!("{}", Summary(&profile));
        profile.write(&self.out.unwrap_or_else(|| self.model.join(PROFILE)))
    }

    fn batches(&self) -> BTreeSet<usize> {
        if self.batches.is_empty() {
            let powers = (0..).map(|power| 1 << power).take_while(|&batch| batch < self.max_batch);
            powers.chain([self.max_batch]).collect()
        } else {
            self.batches.iter().copied().collect()
        }
    }
}

/// A profile as a table: a line a subnet, a column a batch.
struct Summary<'a>(&'a Profile);

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Profile { device, latency, .. } = self.0;
        writeln!(f, "ms a call by batch, {}, threads {}, {}:", device.cpu, device.threads, device.instruction_set)?;
        let batches: BTreeSet<usize> = latency.iter().map(|row| row.batch).collect();
        let columns = batches.iter().map(|batch| (Align::Right, batch.to_string()));
        let mut table = Table::new([(Align::Left, "subnet".to_owned())].into_iter().chain(columns));
        for rows in latency.chunk_by(|a, b| a.subnet == b.subnet) {
            let cells = rows.iter().map(|row| format!("{:.3}", row.ms));
            table.row([rows[0].subnet.clone()].into_iter().chain(cells));
        }
        write!(f, "{table}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn batches_are_powers_of_two_up_to_the_largest_unless_they_are_given() {
        let batches = |args: &[&str]| {
            let line = Line::try_parse_from([&["profile"], args].concat()).map_err(|error| error.kind())?;
            Ok::<_, clap::error::ErrorKind>(line.args.batches().into_iter().collect::<Vec<_>>())
        };
        assert_eq!(batches(&[]), Ok(vec![1, 2, 4, 8, 16, 32, 64]));
        assert_eq!(batches(&["--max-batch", "12"]), Ok(vec![1, 2, 4, 8, 12]));
        assert_eq!(batches(&["--max-batch", "1"]), Ok(vec![1]));
        assert_eq!(batches(&["--batches", "3,1,3"]), Ok(vec![1, 3]));
        assert!(batches(&["--batches", "0"]).is_err());
        assert!(batches(&["--batches", "1", "--max-batch", "2"]).is_err());
    }

    #[test]
    fn the_table_has_a_line_for_each_subnet() {
        let device = Device { cpu: "AMD EPYC".to_owned(), threads: 2, instruction_set: "avx512".to_owned() };
        let row = |subnet: &str, batch, ms| Latency { subnet: subnet.to_owned(), batch, ms };
        let rows = vec![row("0.500", 1, 0.25), row("0.500", 16, 2.5), row("full", 1, 0.5), row("full", 16, 12.3456)];
        let want = "\
ms a call by batch, AMD EPYC, threads 2, avx512:
subnet      1      16
0.500   0.250   2.500
full    0.500  12.346
";
        assert_eq!(Summary(&Profile::new(device, 1, rows)).to_string(), want);
    }
}
