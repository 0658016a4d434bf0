//! What the tests of training and of serving share: a network small enough to train in seconds, and the real binary.

use accordion::nets::Backbone;
use accordion::nets::model::Card;
use accordion::nets::{Model, Network};
use accordion::philox::Stream;
use accordion::supernet::allocation::{self, Constraint};
use accordion::supernet::spec::Init;
use accordion::supernet::{Spec, Subnet, Supernet};
use accordion::training::trainer::initial;
use candle_core::{DType, Device, Tensor};
use std::path::Path;
use std::process::{Command, Output};

#[allow(dead_code, reason = "not every test knows classes")]
/// The classes of the tiny network and its data.
pub const CLASSES: [&str; 2] = ["top", "bottom"];

/// The `[backbone]` and `[preconditioning]` tables of the tiny network: 8x8 grey images of two classes.
pub const NETWORK: &str = r#"
[backbone]
arch = "song-unet"
img_resolution = 8
img_channels = 1
label_dim = 2
model_channels = 8
channel_mult = [1, 2]
num_blocks = 1
attn_resolutions = [4]
embedding_type = "positional"
encoder_type = "standard"
decoder_type = "standard"
resample_filter = [1, 1]

[preconditioning]
kind = "edm"
sigma_data = 0.7
"#;

#[allow(dead_code, reason = "not every test runs it")]
/// The real binary, deaf to the environment's `ACCORDION_*` variables, its log without colours.
pub fn accordion(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_accordion"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("ACCORDION_")) {
        command.env_remove(name);
    }
    command.env("NO_COLOR", "1").args(args);
    command
}

#[allow(dead_code, reason = "not every test is refused something")]
/// Asserts that the process refused its input: exit code 2 and one sentence on stderr with every one of `parts`.
#[track_caller]
pub fn assert_refused(output: &Output, parts: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.starts_with("error: ") && stderr.trim_end().lines().count() == 1, "one sentence: {stderr}");
    for part in parts {
        assert!(stderr.contains(part), "`{part}` is not in: {stderr}");
    }
}

#[allow(dead_code, reason = "not every test names files to the binary")]
/// A path as text.
pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[allow(dead_code, reason = "not every test draws texts")]
/// Writes the tiny pipeline of the golden values, which draws texts, as a model directory with subnets that draws pictures of these sizes.
pub fn write_text_model(dir: &Path, sizes: &[&str]) {
    let work = tempfile::tempdir().unwrap();
    let imported = work.path().join("imported");
    let run = |args: &[&str]| {
        let output = accordion(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let pipeline = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/goldens/sd_tiny");
    run(&["import", pipeline, "--out", text(&imported)]);
    let order = ["--method", "magnitude", "--order", "global"];
    run(&[&["rank", "--model", text(&imported), "--out", text(dir)], &order[..]].concat());
    run(&["allocate", "--model", text(dir), "--target", "channels", "--ratios", "0.25,0.5,0.75"]);
    let card = dir.join("model.toml");
    let listed = std::fs::read_to_string(&card).unwrap().replace(r#"["128x128"]"#, &format!("{sizes:?}"));
    std::fs::write(card, listed).unwrap();
}

/// Writes a copy of a model of latents whose decoder has the subnets 0.250, 0.500 and full.
#[allow(dead_code, reason = "not every test decodes")]
pub fn rank_decoder(model: &Path, dir: &Path) {
    let run = |args: &[&str]| {
        let output = accordion(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let order = ["--part", "decoder", "--method", "magnitude", "--order", "within-group"];
    run(&[&["rank", "--model", text(model), "--out", text(dir)], &order[..]].concat());
    run(&["allocate", "--part", "decoder", "--model", text(dir), "--target", "channels", "--ratios", "0.25,0.5"]);
}

/// Weights with nothing special about them: initial ones have layers that begin at almost zero, and zero biases.
pub fn generic(network: &Network) -> Supernet {
    let mut supernet = initial(network.spec(), 3).unwrap();
    for (index, (param, tensor)) in network.spec().params.iter().zip(&mut supernet.params).enumerate() {
        let stream = Stream::new(3, 98, index as u64);
        let (scale, spread) = match param.init {
            Init::Xavier { gain, .. } => (gain.max(0.5) / gain, 0.0),
            Init::Constant(_) | Init::Kaiming { .. } | Init::Normal(_) => (1.0, 0.2),
        };
        let value = |(i, value): (usize, &f32)| scale as f32 * value + (spread * stream.normal(i as u64)) as f32;
        let generic: Vec<f32> = values(tensor).iter().enumerate().map(value).collect();
        *tensor = Tensor::from_vec(generic, param.shape.as_slice(), &Device::Cpu).unwrap();
    }
    supernet
}

/// Writes a model of untrained weights with the subnets 0.250, 0.500, 0.750 and full.
#[allow(dead_code, reason = "not every test starts from one")]
pub fn write_model(dir: &Path, classes: &[&str]) {
    let tables: toml::Table =
        NETWORK.replace("label_dim = 2", &format!("label_dim = {}", classes.len())).parse().unwrap();
    let backbone: Backbone = tables["backbone"].clone().try_into().unwrap();
    let preconditioning = tables["preconditioning"].clone().try_into().unwrap();
    let network = Network::new(&backbone, preconditioning).unwrap();
    let classes = classes.iter().map(|class| class.to_string()).collect();
    let card = Card::new("tiny".to_owned(), backbone, preconditioning, classes);
    let model = Model::unallocated(card, generic(&network)).unwrap();
    model.with_subnets("channels", subnets(network.spec())).unwrap().write(dir, DType::F32).unwrap();
}

/// Subnets of the ratios 0.25, 0.5, 0.75 and 1 for channels that all matter alike.
pub fn subnets(spec: &Spec) -> Vec<Subnet> {
    let importance: Vec<Vec<f64>> = spec.pipes.iter().map(|pipe| vec![1.0; pipe.width]).collect();
    let widths = |&ratio: &f64| allocation::channels(spec, &importance, ratio, Constraint::default()).unwrap();
    [0.25, 0.5, 0.75, 1.0].iter().map(|ratio| Subnet::new(spec, *ratio, &widths(ratio))).collect()
}

/// The elements of a tensor, row-major.
pub fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}
