//! The time of every layer of a call, as a table and as JSON.

use crate::cli::table::{Align, Table};
use crate::ops::cpu::fused::Layer;
use serde::Serialize;
use std::fmt;
use std::time::Duration;

/// The layers of one subnet's calls.
#[derive(Clone, Debug, Serialize)]
pub struct LayerTable {
    /// Name of the subnet.
    pub subnet: String,
    /// Samples of a call.
    pub batch: usize,
    /// Threads that computed.
    pub threads: usize,
    /// The layers, in the order in which they ran.
    pub layers: Vec<LayerRow>,
    /// The layers of each kind together, the slowest first.
    pub kinds: Vec<KindRow>,
}

/// One layer.
#[derive(Clone, Debug, Serialize)]
pub struct LayerRow {
    /// Its name, such as `enc.28x28_block0.conv0`.
    pub name: String,
    /// What it is and what it takes.
    #[serde(flatten)]
    pub cost: KindRow,
    /// Rows, columns, input channels and output channels of what it makes.
    pub shape: [usize; 4],
    /// How a Winograd convolution divides into its phases.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phases: Option<Phases>,
}

/// What layers of one kind take.
#[derive(Clone, Debug, Serialize)]
pub struct KindRow {
    /// Such as `winograd 3x3 F4`.
    pub kind: String,
    /// Median time in a call.
    pub ms: f64,
    /// That over the sum of all layers'.
    pub share: f64,
    /// Operations of direct convolution, two a multiply-add; absent where there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gflops: Option<f64>,
}

/// Shares of the threads' time in a Winograd convolution.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Phases {
    /// Transforming the input.
    #[serde(rename = "in")]
    pub input: f64,
    /// The products.
    pub multiply: f64,
    /// Transforming back.
    #[serde(rename = "out")]
    pub output: f64,
}

impl LayerTable {
    /// The layers of a call.
    pub fn new(subnet: &str, batch: usize, threads: usize, layers: &[Layer]) -> Self {
        let total: Duration = layers.iter().map(|layer| layer.time).sum();
        let cost = |kind: &str, layers: &[&Layer]| {
            let time: Duration = layers.iter().map(|layer| layer.time).sum();
            let macs: u64 = layers.iter().map(|layer| layer.macs).sum();
            let seconds = time.as_secs_f64();
            let gflops = (macs > 0).then(|| 2.0 * macs as f64 / seconds / 1e9);
            KindRow { kind: kind.to_owned(), ms: seconds * 1e3, share: seconds / total.as_secs_f64(), gflops }
        };
        let row = |layer: &Layer| LayerRow {
            name: layer.name.clone(),
            cost: cost(&layer.kind.to_string(), &[layer]),
            shape: layer.shape,
            phases: Phases::of(layer),
        };
        let mut names: Vec<String> = layers.iter().map(|layer| layer.kind.to_string()).collect();
        names.sort();
        names.dedup();
        let of_kind = |name: &String| {
            let those: Vec<&Layer> = layers.iter().filter(|layer| layer.kind.to_string() == *name).collect();
            cost(name, &those)
        };
        let mut kinds: Vec<KindRow> = names.iter().map(of_kind).collect();
        kinds.sort_by(|a, b| b.ms.total_cmp(&a.ms));
        Self { subnet: subnet.to_owned(), batch, threads, layers: layers.iter().map(row).collect(), kinds }
    }
}

impl Phases {
    fn of(layer: &Layer) -> Option<Self> {
        let all: Duration = layer.phases.iter().sum();
        let [input, multiply, output] = layer.phases.map(|time| time.as_secs_f64() / all.as_secs_f64());
        (!all.is_zero()).then_some(Self { input, multiply, output })
    }
}

impl KindRow {
    /// The cells that layers and kinds have in common: kind, ms, share and GFLOP/s.
    fn cells(&self) -> [String; 4] {
        let gflops = self.gflops.map_or_else(String::new, |rate| format!("{rate:.1}"));
        [self.kind.clone(), format!("{:.4}", self.ms), format!("{:.1} %", self.share * 100.0), gflops]
    }
}

impl fmt::Display for LayerTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { subnet, batch, threads, .. } = self;
        writeln!(f, "layers of {subnet}, batch {batch}, threads {threads}:")?;
        let mut table = Table::new([
            (Align::Left, "layer"),
            (Align::Left, "kind"),
            (Align::Left, "shape"),
            (Align::Right, "ms"),
            (Align::Right, "share"),
            (Align::Right, "GFLOP/s"),
            (Align::Right, "in, multiply, out"),
        ]);
        for layer in &self.layers {
            let [kind, ms, share, gflops] = layer.cost.cells();
            let [height, width, c_in, c_out] = layer.shape;
            let shape = format!("{height}x{width} {c_in} -> {c_out}");
            let phases = layer.phases.map_or_else(String::new, |phases| {
                let Phases { input, multiply, output } = phases;
                format!("{:.0} % {:.0} % {:.0} %", input * 100.0, multiply * 100.0, output * 100.0)
            });
            table.row([layer.name.clone(), kind, shape, ms, share, gflops, phases]);
        }
        writeln!(f, "{table}")?;
        let mut table = Table::new([
            (Align::Left, "kind"),
            (Align::Right, "ms"),
            (Align::Right, "share"),
            (Align::Right, "GFLOP/s"),
        ]);
        self.kinds.iter().for_each(|kind| table.row(kind.cells()));
        let ms: f64 = self.kinds.iter().map(|kind| kind.ms).sum();
        table.row(["all".to_owned(), format!("{ms:.4}"), String::new(), String::new()]);
        write!(f, "{table}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::cpu::fused::Kind;
    use crate::ops::cpu::fused::method::{Filtering, Method};

    /// A Winograd convolution of 1 ms, one by the definition of 0.5 ms and two norms of 0.25 ms.
    fn table() -> LayerTable {
        let layer = |name: &str, kind, macs, us: u64, phases: [u64; 3]| Layer {
            name: name.to_owned(),
            kind,
            shape: [28, 28, 32, 16],
            macs,
            time: Duration::from_micros(us),
            phases: phases.map(Duration::from_micros),
        };
        let layers = [
            layer("b.norm0", Kind::Norm, 0, 250, [0; 3]),
            layer("b.conv0", Kind::Conv(Method::Winograd(Filtering::F4), [3, 3]), 50_000_000, 1000, [400, 1000, 600]),
            layer("b.norm1", Kind::Norm, 0, 250, [0; 3]),
            layer("b.skip", Kind::Conv(Method::Direct, [1, 1]), 10_000_000, 500, [0; 3]),
        ];
        LayerTable::new("full", 8, 2, &layers)
    }

    #[test]
    fn the_table_lists_layers_and_sums_kinds() {
        let want = "\
layers of full, batch 8, threads 2:
layer    kind             shape               ms   share  GFLOP/s  in, multiply, out
b.norm0  norm statistics  28x28 32 -> 16  0.2500  12.5 %
b.conv0  winograd 3x3 F4  28x28 32 -> 16  1.0000  50.0 %    100.0     20 % 50 % 30 %
b.norm1  norm statistics  28x28 32 -> 16  0.2500  12.5 %
b.skip   direct 1x1       28x28 32 -> 16  0.5000  25.0 %     40.0

kind                 ms   share  GFLOP/s
winograd 3x3 F4  1.0000  50.0 %    100.0
direct 1x1       0.5000  25.0 %     40.0
norm statistics  0.5000  25.0 %
all              2.0000
";
        assert_eq!(table().to_string(), want);
    }

    #[test]
    fn the_json_has_the_cost_and_the_phases_of_each_layer() {
        let json = serde_json::to_value(table()).unwrap();
        let conv = serde_json::json!({
            "name": "b.conv0", "kind": "winograd 3x3 F4", "ms": 1.0, "share": 0.5, "gflops": 100.0,
            "shape": [28, 28, 32, 16], "phases": { "in": 0.2, "multiply": 0.5, "out": 0.3 },
        });
        assert_eq!(json["layers"][1], conv);
        let norms = serde_json::json!({ "kind": "norm statistics", "ms": 0.5, "share": 0.25 });
        assert_eq!(json["kinds"][2], norms);
        assert_eq!((&json["subnet"], &json["batch"], &json["threads"]), (&"full".into(), &8.into(), &2.into()));
    }
}
