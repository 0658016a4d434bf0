//! What `accordion bench` says, as a table and as JSON.

use super::layers::LayerTable;
use crate::cli::table::{Align, Table};
use crate::evaluation::latency::Setting;
use crate::evaluation::switching::Switching;
use crate::supernet::Subnet;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

/// Everything that was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The model's name.
    pub model: String,
    /// Memory that the weights of all subnets take together.
    pub weight_bytes: usize,
    /// Memory in the buffers of activations, after calls of every batch.
    pub activation_bytes: usize,
    /// The machine's measured rate of f32 multiply-adds, by number of threads.
    pub peak_gflops: BTreeMap<usize, f64>,
    /// The cost of changing the subnet, where there are two.
    pub switching: Option<Switch>,
    /// Every subnet, batch and number of threads.
    pub results: Vec<Row>,
    /// From a latent to a picture, of a model that draws latents.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decoder: Option<DecoderRow>,
    /// The layers of each of them, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layers: Option<Vec<LayerTable>>,
}

/// What a decoder takes.
#[derive(Clone, Debug, Serialize)]
pub struct DecoderRow {
    /// Columns of the picture.
    pub width: usize,
    /// Its rows.
    pub height: usize,
    /// Threads that computed.
    pub threads: usize,
    /// Memory that its weights take, all subnets together.
    pub weight_bytes: usize,
    /// Memory in its buffers of activations.
    pub activation_bytes: usize,
    /// Its subnets, from narrow to wide.
    pub subnets: Vec<DecoderSubnet>,
}

/// A subnet of a decoder.
#[derive(Clone, Debug, Serialize)]
pub struct DecoderSubnet {
    /// Its name.
    pub subnet: String,
    /// Median time of a picture.
    pub ms: f64,
    /// Its layers, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layers: Option<LayerTable>,
}

/// One subnet at one batch with so many threads.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Name of the subnet.
    pub subnet: String,
    /// Samples of a call.
    pub batch: usize,
    /// Threads that computed.
    pub threads: usize,
    /// Median time of a call.
    pub ms: f64,
    /// Samples of one call a second.
    pub images_per_s: f64,
    /// Operations of direct convolution, two a multiply-add.
    pub gflops: f64,
    /// That over the machine's peak; Winograd can exceed 1.
    pub share_of_peak: f64,
}

/// Calls that take turns between two subnets, against calls of each alone.
#[derive(Clone, Debug, Serialize)]
pub struct Switch {
    /// The two.
    pub subnets: [String; 2],
    /// Samples of a call.
    pub batch: usize,
    /// Threads that computed.
    pub threads: usize,
    /// Calls that were timed.
    pub calls: usize,
    /// Mean time of a call by turns.
    pub alternating_ms: f64,
    /// Mean time of a call of one subnet alone, over the two.
    pub constant_ms: f64,
    /// The first over the second.
    pub ratio: f64,
    /// Where the ratio lies with 95 % confidence.
    pub ratio_interval: [f64; 2],
}

impl Row {
    /// A subnet whose calls took `ms`, where the machine's peak is `peak` GFLOP/s.
    pub fn new(subnet: &Subnet, setting: &Setting, ms: f64, peak: f64) -> Self {
        let operations = 2.0 * subnet.macs as f64 * setting.batch as f64;
        let gflops = operations / ms / 1e6;
        Self {
            subnet: subnet.name.to_string(),
            batch: setting.batch,
            threads: setting.threads,
            ms,
            images_per_s: setting.batch as f64 / ms * 1e3,
            gflops,
            share_of_peak: gflops / peak,
        }
    }
}

impl Switch {
    /// What was measured on two subnets.
    pub fn new(subnets: [&str; 2], batch: usize, threads: usize, measured: &Switching) -> Self {
        Self {
            subnets: subnets.map(str::to_owned),
            batch,
            threads,
            calls: measured.calls,
            alternating_ms: measured.alternating_ms,
            constant_ms: measured.constant_ms,
            ratio: measured.ratio.median,
            ratio_interval: [measured.ratio.low, measured.ratio.high],
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mb = |bytes: usize| bytes as f64 / 1e6;
        let (weights, activations) = (mb(self.weight_bytes), mb(self.activation_bytes));
        writeln!(f, "{}: {weights:.2} MB of weights, {activations:.2} MB of activations", self.model)?;
        for (threads, peak) in &self.peak_gflops {
            writeln!(f, "peak of f32 multiply-adds, threads {threads}: {peak:.1} GFLOP/s")?;
        }
        writeln!(f)?;
        let mut table = Table::new([
            (Align::Left, "subnet"),
            (Align::Right, "batch"),
            (Align::Right, "threads"),
            (Align::Right, "ms a call"),
            (Align::Right, "images/s"),
            (Align::Right, "direct-convolution GFLOP/s"),
            (Align::Right, "of peak"),
        ]);
        for row in &self.results {
            table.row([
                row.subnet.clone(),
                row.batch.to_string(),
                row.threads.to_string(),
                format!("{:.3}", row.ms),
                format!("{:.1}", row.images_per_s),
                format!("{:.1}", row.gflops),
                format!("{:.1} %", row.share_of_peak * 100.0),
            ]);
        }
        write!(f, "{table}")?;
        if let Some(switch) = &self.switching {
            let ([a, b], [low, high]) = (&switch.subnets, switch.ratio_interval);
            let Switch { batch, threads, calls, alternating_ms, constant_ms, ratio, .. } = switch;
            writeln!(f, "\nswitching between {a} and {b} at every call, batch {batch}, threads {threads}:")?;
            writeln!(f, "{alternating_ms:.4} ms a call, {constant_ms:.4} ms without switching")?;
            writeln!(f, "ratio {ratio:.4} ({low:.4} to {high:.4} with 95 % confidence, {calls} calls)")?;
        }
        if let Some(decoder) = &self.decoder {
            let DecoderRow { width, height, threads, weight_bytes, activation_bytes, subnets } = decoder;
            let (weights, activations) = (mb(*weight_bytes), mb(*activation_bytes));
            writeln!(
                f,
                "\ndecoder, {width}x{height}, threads {threads}: {weights:.2} MB of weights, {activations:.2} MB of activations"
            )?;
            let mut table = Table::new([(Align::Left, "decoder"), (Align::Right, "ms a picture")]);
            subnets.iter().for_each(|row| table.row([row.subnet.clone(), format!("{:.1}", row.ms)]));
            write!(f, "{table}")?;
        }
        let subnets = self.decoder.iter().flat_map(|decoder| &decoder.subnets);
        let decoder = subnets.filter_map(|subnet| subnet.layers.as_ref());
        for table in self.layers.iter().flatten().chain(decoder) {
            write!(f, "\n{table}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::evaluation::switching::Interval;

    /// Two subnets at two batches on a machine of 100 GFLOP/s.
    pub fn report() -> Report {
        let subnet = |name: &str, macs| Subnet {
            name: name.parse().unwrap(),
            ratio: 1.0,
            parameters: 1,
            macs,
            widths: Default::default(),
        };
        let row = |name: &str, macs, batch, ms| {
            Row::new(&subnet(name, macs), &Setting { subnet: 0, batch, threads: 2 }, ms, 100.0)
        };
        let ratio = Interval { median: 1.001, low: 0.9995, high: 1.0025 };
        let switching = Switching { alternating_ms: 0.75075, constant_ms: 0.75, ratio, calls: 640 };
        Report {
            model: "tiny".to_owned(),
            weight_bytes: 5_250_000,
            activation_bytes: 1_000_000,
            peak_gflops: BTreeMap::from([(2, 100.0)]),
            switching: Some(Switch::new(["0.500", "full"], 1, 2, &switching)),
            results: vec![
                row("0.500", 10_000_000, 1, 0.5),
                row("0.500", 10_000_000, 8, 2.0),
                row("full", 25_000_000, 1, 1.0),
                row("full", 25_000_000, 8, 3.2),
            ],
            decoder: None,
            layers: None,
        }
    }

    #[test]
    fn the_table_says_what_was_measured() {
        let want = "\
tiny: 5.25 MB of weights, 1.00 MB of activations
peak of f32 multiply-adds, threads 2: 100.0 GFLOP/s

subnet  batch  threads  ms a call  images/s  direct-convolution GFLOP/s  of peak
0.500       1        2      0.500    2000.0                        40.0   40.0 %
0.500       8        2      2.000    4000.0                        80.0   80.0 %
full        1        2      1.000    1000.0                        50.0   50.0 %
full        8        2      3.200    2500.0                       125.0  125.0 %

switching between 0.500 and full at every call, batch 1, threads 2:
0.7508 ms a call, 0.7500 ms without switching
ratio 1.0010 (0.9995 to 1.0025 with 95 % confidence, 640 calls)
";
        assert_eq!(report().to_string(), want);
    }

    #[test]
    fn a_decoder_has_a_line_for_each_of_its_subnets() {
        let subnet = |name: &str, ms| DecoderSubnet { subnet: name.to_owned(), ms, layers: None };
        let subnets = vec![subnet("0.500", 61.04), subnet("full", 98.6)];
        let sizes =
            DecoderRow { width: 512, height: 256, threads: 2, weight_bytes: 1_500_000, activation_bytes: 0, subnets };
        let shown = Report { decoder: Some(sizes), ..report() }.to_string();
        let want = "\
decoder, 512x256, threads 2: 1.50 MB of weights, 0.00 MB of activations
decoder  ms a picture
0.500            61.0
full             98.6
";
        assert!(shown.ends_with(want), "{shown}");
    }

    #[test]
    fn the_json_has_a_number_for_everything() {
        let json = serde_json::to_value(report()).unwrap();
        let row = serde_json::json!({
            "subnet": "0.500", "batch": 8, "threads": 2, "ms": 2.0,
            "images_per_s": 4000.0, "gflops": 80.0, "share_of_peak": 0.8,
        });
        assert_eq!(json["results"][1], row);
        assert_eq!(json["peak_gflops"], serde_json::json!({ "2": 100.0 }));
        assert_eq!((&json["weight_bytes"], &json["activation_bytes"]), (&5_250_000.into(), &1_000_000.into()));
        let switching = serde_json::json!({
            "subnets": ["0.500", "full"], "batch": 1, "threads": 2, "calls": 640,
            "alternating_ms": 0.75075, "constant_ms": 0.75, "ratio": 1.001, "ratio_interval": [0.9995, 1.0025],
        });
        assert_eq!(json["switching"], switching);
        assert!(json.get("layers").is_none());
    }
}
