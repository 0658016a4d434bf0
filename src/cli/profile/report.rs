//! A profile as text.

use crate::cli::table::{Align, Table};
use crate::evaluation::profile::Profile;
use crate::evaluation::yardstick::Metric;
use std::collections::BTreeSet;
use std::fmt;

/// A profile as two tables: the times of calls, a line a subnet and a column a batch; the frontier, a line a plan.
pub struct Summary<'a>(pub &'a Profile);

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Profile { device, quality, latency, decode, frontier, .. } = self.0;
        writeln!(
            f,
            "ms a call by batch, {}, threads {}, {}:",
            device.processor, device.threads, device.instruction_set
        )?;
        let batches: BTreeSet<usize> = latency.iter().map(|row| row.batch).collect();
        let columns = batches.iter().map(|batch| (Align::Right, batch.to_string()));
        let mut table = Table::new([(Align::Left, "subnet".to_owned())].into_iter().chain(columns));
        for rows in latency.chunk_by(|a, b| a.subnet == b.subnet) {
            let cells = rows.iter().map(|row| format!("{:.3}", row.ms));
            table.row([rows[0].subnet.clone()].into_iter().chain(cells));
        }
        write!(f, "{table}")?;
        if !decode.is_empty() {
            let mut table = Table::new([(Align::Left, "decoder"), (Align::Right, "ms a picture")]);
            decode.iter().for_each(|row| table.row([row.subnet.clone(), format!("{:.3}", row.ms)]));
            write!(f, "\n{table}")?;
        }

        writeln!(f, "\nfrontier, quality by {} of {} images a plan:", quality.metric, quality.images)?;
        let name = match quality.metric {
            Metric::Fd => "FD",
            Metric::MseToReference => "distance",
        };
        let mut table = Table::new([
            (Align::Left, "plan"),
            (Align::Right, "evaluations"),
            (Align::Right, "ms an image"),
            (Align::Right, name),
            (Align::Right, "quality"),
            (Align::Right, "±"),
        ]);
        for row in frontier {
            let ms = self.0.image_ms(&row.plan).unwrap_or(f64::NAN);
            let evaluations = row.plan.evaluations().to_string();
            let [quality, error] = [row.quality, row.error].map(|value| format!("{value:.4}"));
            let distance = format!("{:.3}", row.distance);
            table.row([row.plan.to_string(), evaluations, format!("{ms:.2}"), distance, quality, error]);
        }
        write!(f, "{table}")
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::evaluation::profile::{Decoding, Device, Latency, Quality, Rated};

    /// Two subnets at two batches, a frontier of three plans.
    pub fn profile() -> Profile {
        decoding(vec![])
    }

    fn decoding(decode: Vec<Decoding>) -> Profile {
        let device = Device { processor: "AMD EPYC".to_owned(), threads: 2, instruction_set: "avx512".to_owned() };
        let quality = Quality {
            metric: Metric::MseToReference,
            definition: Metric::MseToReference.definition().to_owned(),
            guidance: None,
            images: 40,
            one: 0.0,
            zero: 0.41,
        };
        let row = |subnet: &str, batch, ms| Latency { subnet: subnet.to_owned(), batch, ms };
        let rows = vec![row("0.500", 1, 0.25), row("0.500", 16, 2.5), row("full", 1, 0.5), row("full", 16, 12.3456)];
        let rated = |plan: &str, quality| Rated {
            plan: plan.parse().unwrap(),
            distance: 0.41 * (1.0 - quality),
            quality,
            error: 0.001,
        };
        let points =
            [rated("dpmpp2m-4@0.500", 0.71), rated("dpmpp2m-6@0.500*4,full*2", 0.9), rated("heun-18@full", 1.0)];
        Profile::new(device, 1, quality, rows, decode, points)
    }

    #[test]
    fn the_tables_have_a_line_for_each_subnet_and_for_each_plan() {
        let want = "\
ms a call by batch, AMD EPYC, threads 2, avx512:
subnet      1      16
0.500   0.250   2.500
full    0.500  12.346

frontier, quality by mse-to-reference of 40 images a plan:
plan                      evaluations  ms an image  distance  quality       ±
dpmpp2m-4@0.500                     4         1.00     0.119   0.7100  0.0010
dpmpp2m-6@0.500*4,full*2            6         2.00     0.041   0.9000  0.0010
heun-18@full                       35        17.50     0.000   1.0000  0.0010
";
        assert_eq!(Summary(&profile()).to_string(), want);
    }

    #[test]
    fn a_model_of_latents_has_a_line_for_each_decoder() {
        let row = |subnet: &str, ms| Decoding { subnet: subnet.to_owned(), ms };
        let shown = Summary(&decoding(vec![row("0.500", 3.0), row("full", 5.5)])).to_string();
        let want =
            "full    0.500  12.346\n\ndecoder  ms a picture\n0.500           3.000\nfull            5.500\n\nfrontier";
        assert!(shown.contains(want), "{shown}");
        assert!(shown.contains("dpmpp2m-4@0.500                     4         6.50"), "{shown}");
    }
}
