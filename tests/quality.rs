//! From a labelled data set to features, and from those to distances and a frontier: the real binary on a tiny model.

#[path = "support/halves.rs"]
mod halves;
mod support;

use accordion::evaluation::profile::Profile;
use accordion::evaluation::yardstick::Metric;
use accordion::features::classifier::File;
use accordion::features::frechet::{Moments, Target};
use accordion::features::{Classifier, Features};
use accordion::nets::model::FEATURES;
use accordion::nets::{Model, Threads};
use halves::data;
use serde_json::Value;
use std::path::PathBuf;
use std::process::Output;
use std::sync::OnceLock;
use support::{CLASSES, accordion, assert_refused, text, write_model};
use tempfile::TempDir;

/// Images of the data set.
const IMAGES: usize = 256;

/// A folder with a model directory `model`, a data set, and configs of it.
struct Workspace {
    dir: TempDir,
}

impl Workspace {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        write_model(&dir.path().join("model"), &CLASSES);
        halves::write(dir.path(), IMAGES);
        let workspace = Self { dir };
        let source = format!("format = 'idx'\nimages = 'images'\nlabels = 'labels'\nclasses = {CLASSES:?}\n");
        workspace.write("data.toml", &format!("[data]\n{source}"));
        workspace.write(
            "features.toml",
            &format!(
                "seed = 1\n[data]\n{source}[heldout]\n{source}[network]\nchannels = 8\nfeatures = 6\n\
                 [augmentation]\nshift = 1\nflip = true\n\
                 [training]\nimages = 2560\nbatch = 32\nlearning_rate = 3e-3\nema_half_life = 320\n"
            ),
        );
        workspace
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, content: &str) {
        std::fs::write(self.path(name), content).unwrap();
    }

    fn run(&self, subcommand: &str, args: &[&str]) -> Output {
        let model = self.path("model");
        let all = [&[subcommand, "--model", text(&model)], args].concat();
        accordion(&all).current_dir(self.dir.path()).output().unwrap()
    }

    #[track_caller]
    fn prints(&self, subcommand: &str, args: &[&str]) -> String {
        let output = self.run(subcommand, args);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The rows of `evaluate --json`.
    #[track_caller]
    fn rows(&self, args: &[&str]) -> Vec<Value> {
        let json: Value = serde_json::from_str(&self.prints("evaluate", &[&["--json"], args].concat())).unwrap();
        json["rows"].as_array().unwrap().clone()
    }
}

/// One whose model has features, for all tests that do not change it.
fn trained() -> &'static Workspace {
    static TRAINED: OnceLock<Workspace> = OnceLock::new();
    TRAINED.get_or_init(|| {
        let workspace = Workspace::new();
        workspace.prints("train-features", &["--config", "features.toml"]);
        workspace
    })
}

fn number(value: &Value) -> f64 {
    value.as_f64().filter(|number| number.is_finite()).unwrap_or_else(|| panic!("{value}"))
}

#[test]
fn features_are_trained_kept_with_their_hash_and_tell_real_images_from_a_blur() {
    let workspace = trained();
    let model = Model::open(&workspace.path("model")).unwrap();
    assert!(model.card.sha256.contains_key(FEATURES));
    let file = File::open(&workspace.path("model").join(FEATURES)).unwrap();
    assert!(file.accuracy > 0.95, "{}", file.accuracy);
    assert_eq!(model.card.made["features"]["test_accuracy"].as_float(), Some((file.accuracy * 1e4).round() / 1e4));
    assert!(!workspace.path("model/features.state.safetensors").exists(), "nothing is left of the run");
    let reference = &file.reference;
    assert_eq!(reference.images, IMAGES);
    // The same images on both sides.
    assert!(reference.real.abs() < 1e-3 && reference.blur > 0.0, "{reference:?}");
    assert_eq!((reference.quality(reference.real), reference.quality(reference.blur)), (1.0, 0.0));

    let (images, labels) = data(IMAGES);
    let mut classifier = Classifier::new(&file.layout, &file.weights, Threads::new(1)).unwrap();
    let features = classifier.of(&images, model.image()).unwrap();
    assert_eq!(features.len(), IMAGES * classifier.dim());
    let right =
        classifier.classes(&features).into_iter().zip(&labels).filter(|(found, label)| *found == usize::from(**label));
    assert_eq!(right.count() as f64 / IMAGES as f64, file.accuracy);
    let mut moments = Moments::new(classifier.dim());
    moments.add(&features);
    let distance = Target::new(reference.gaussian.clone()).unwrap().distance(&moments.gaussian().unwrap()).unwrap();
    assert!(distance.abs() < 1e-3, "the reference is of these images: {distance}");
}

#[test]
fn a_run_that_was_stopped_goes_on_to_the_bit() {
    let workspace = Workspace::new();
    workspace.prints("train-features", &["--config", "features.toml"]);
    let whole = std::fs::read(workspace.path("model").join(FEATURES)).unwrap();
    // The state of a shorter run of the same seed, as a stop would leave it.
    let config = std::fs::read_to_string(workspace.path("features.toml")).unwrap();
    let state = workspace.path("model/features.state.safetensors");
    {
        use accordion::training::classification::{Config, Learner};
        let config = Config::load(&workspace.path("features.toml")).unwrap();
        let model = Model::open(&workspace.path("model")).unwrap();
        let dataset = config.load_for(&config.data, &model).unwrap();
        let layout = config.layout(&dataset).unwrap();
        let mut learner = Learner::new(&config, &dataset, &layout, None).unwrap();
        for _ in 0..3 {
            learner.step().unwrap();
        }
        learner.state.write(&learner.program().spec, &state).unwrap();
    }
    let output = workspace.run("train-features", &["--config", "features.toml"]);
    assert_refused(&output, &["features.state.safetensors holds a run; --resume continues it"]);
    workspace.prints("train-features", &["--config", "features.toml", "--resume"]);
    assert_eq!(std::fs::read(workspace.path("model").join(FEATURES)).unwrap(), whole);
    workspace.write("features.toml", &config.replace("channels = 8", "channels = 7"));
    let output = workspace.run("train-features", &["--config", "features.toml"]);
    assert_refused(&output, &["features.toml: network.channels: 7 is not a multiple of 8"]);
}

#[test]
fn real_images_are_nearer_to_real_ones_than_those_of_an_untrained_model_by_every_metric() {
    let workspace = trained();
    let args =
        ["--metric", "fd,kid,pr", "--data", "data.toml", "--real", "data.toml", "--plan", "euler-2@full", "--n", "128"];
    let [real, drawn] = <[Value; 2]>::try_from(workspace.rows(&args)).unwrap();
    assert_eq!((&real["images"], &drawn["images"]), (&"real".into(), &"euler-2@full".into()));
    assert_eq!((&real["n"], &drawn["n"]), (&128.into(), &128.into()));
    for path in ["/fd/distance", "/fd/limit", "/kid/value"] {
        let [real, drawn] = [&real, &drawn].map(|row| number(row.pointer(path).unwrap()));
        assert!(real < drawn, "{path}: {real} is not below {drawn}");
    }
    for path in [
        "/overlap/precision/value",
        "/overlap/recall/value",
        "/overlap/density",
        "/overlap/coverage/value",
        "/accuracy",
    ] {
        let [real, drawn] = [&real, &drawn].map(|row| number(row.pointer(path).unwrap()));
        assert!(real > drawn, "{path}: {real} is not above {drawn}");
    }
    assert!(
        number(&drawn["fd"]["error"]) > 0.0 && drawn["quality"].is_null(),
        "its quality is by the model's own reference"
    );
    let table = workspace.prints("evaluate", &["--metric", "fd", "--plan", "euler-2@full", "--n", "16"]);
    assert!(table.starts_with("images of") && table.contains("quality") && table.contains("euler-2@full"), "{table}");
}

#[test]
fn an_evaluation_that_was_cut_off_goes_on_and_another_one_is_refused() {
    let workspace = trained();
    let evaluate = |work: &str, n: &str, seed: &str| {
        workspace.run(
            "evaluate",
            &["--metric", "fd", "--plan", "euler-2@0.5*1,full*1", "--work", work, "--n", n, "--seed", seed, "--json"],
        )
    };
    let whole = evaluate("whole", "40", "3");
    assert!(whole.status.success(), "{}", String::from_utf8_lossy(&whole.stderr));
    assert!(evaluate("parts", "12", "3").status.success());
    // In the middle of an image.
    let kept = std::fs::read_dir(workspace.path("parts")).unwrap().map(|entry| entry.unwrap().path());
    let kept: Vec<PathBuf> = kept.filter(|path| path.extension().is_some_and(|ending| ending == "f32")).collect();
    let bytes = std::fs::read(&kept[0]).unwrap();
    std::fs::write(&kept[0], &bytes[..bytes.len() - 7]).unwrap();
    assert_eq!(evaluate("parts", "40", "3").stdout, whole.stdout);
    let other = evaluate("parts", "40", "4");
    assert!(other.status.success() && other.stdout != whole.stdout, "another seed is kept apart");
}

#[test]
fn statistics_of_others_can_be_the_reference() {
    let workspace = trained();
    let file = File::open(&workspace.path("model").join(FEATURES)).unwrap();
    let dim = file.layout.features;
    let [mean, covariance] = file.reference.tensors().unwrap().map(|(_, tensor)| {
        let values = tensor.to_dtype(candle_core::DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
        values.into_iter().flat_map(f64::to_le_bytes).collect::<Vec<u8>>()
    });
    let write = |name: &str, arrays: &[(&str, String, &Vec<u8>)]| {
        let mut zip = zip::ZipWriter::new(std::fs::File::create(workspace.path(name)).unwrap());
        for (name, shape, bytes) in arrays {
            use std::io::Write;
            let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
            zip.start_file(format!("{name}.npy"), options).unwrap();
            let mut head = format!("{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}");
            head += &" ".repeat(63 - (10 + head.len()) % 64);
            head.push('\n');
            zip.write_all(b"\x93NUMPY\x01\x00").unwrap();
            zip.write_all(&(head.len() as u16).to_le_bytes()).unwrap();
            zip.write_all(head.as_bytes()).unwrap();
            zip.write_all(bytes).unwrap();
        }
        zip.finish().unwrap();
    };
    write("whole.npz", &[("mu", format!("({dim},)"), &mean), ("sigma", format!("({dim}, {dim})"), &covariance)]);
    write("half.npz", &[("mu", format!("({dim},)"), &mean)]);
    let args = ["--metric", "fd", "--plan", "euler-1@full", "--n", "16"];
    let [own, given] =
        [vec![], vec!["--reference", "whole.npz"]].map(|more| workspace.rows(&[&args[..], &more].concat()));
    assert_eq!(own[0]["fd"], given[0]["fd"]);
    let output = workspace.run("evaluate", &[&args[..], &["--reference", "half.npz"]].concat());
    assert_refused(&output, &["half.npz: has no array sigma"]);
    let output = workspace.run("evaluate", &["--metric", "kid", "--plan", "euler-1@full", "--n", "16"]);
    assert_refused(&output, &["--data: is needed for kid and pr"]);
}

#[test]
fn a_profile_by_features_decides_by_rounds_keeps_errors_and_names_plans() {
    let workspace = Workspace::new();
    workspace.prints("train-features", &["--config", "features.toml"]);
    let output = workspace.run("profile", &["--batches", "1", "--threads", "2", "--seconds", "0.01", "--images", "24"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && said.contains("this takes about "), "{said}");
    let path = workspace.path("model/profile.toml");
    let profile = Profile::open(&path).unwrap();
    assert_eq!((profile.quality.metric, profile.quality.images), (Metric::Fd, 24));
    assert!(std::fs::read_to_string(&path).unwrap().contains("definition = \"1 - (sqrt(d) - sqrt(one))"));
    let file = File::open(&workspace.path("model").join(FEATURES)).unwrap();
    for row in &profile.frontier {
        assert!((row.quality - file.reference.quality(row.distance)).abs() < 2e-4, "{row:?}");
        assert!(row.error > 0.0, "{row:?}");
    }
    for pair in profile.frontier.windows(2) {
        assert!(pair[1].quality >= pair[0].quality + pair[0].error.max(pair[1].error) - 1e-9, "{pair:?}");
    }
    // The plan of a budget by its name.
    let best = profile.frontier.last().unwrap().plan.to_string();
    let rows = workspace.rows(&["--metric", "fd", "--plan", "best", "--n", "24"]);
    assert_eq!(rows[0]["images"], best.as_str());
    let quality = number(&rows[0]["quality"]);
    assert!(
        (quality - profile.frontier.last().unwrap().quality).abs() < 2e-4,
        "the same images, the same quality: {quality}"
    );
}

#[test]
fn a_model_without_features_is_told_how_to_get_them() {
    let workspace = Workspace::new();
    let output = workspace.run("evaluate", &["--metric", "fd", "--plan", "euler-1@full"]);
    assert_refused(&output, &[FEATURES, "make it with `accordion train-features`, or give --features FILE"]);
    let output = workspace.run("profile", &["--metric", "fd"]);
    assert_refused(&output, &[FEATURES, "--metric mse-to-reference"]);
    let output = workspace.run("evaluate", &["--metric", "fd,loss", "--plan", "euler-1@full"]);
    assert_refused(&output, &["--metric: `loss` is of subnets"]);
}
