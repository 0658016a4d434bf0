//! `accordion bench` and `accordion profile`: the real binary on a tiny model. Nothing here depends on a time.

mod support;

use accordion::evaluation::profile::{Device, Profile, Quality, Rated};
use accordion::evaluation::prompted::Examples;
use accordion::evaluation::survey::{Effort, Progress};
use accordion::evaluation::yardstick::Metric;
use accordion::nets::{Model, Placement, Threads};
use accordion::ops::cuda::Precision;
use serde_json::Value;
use std::collections::HashSet;
use std::path::PathBuf;
use std::process::Output;
use support::{CLASSES, accordion, assert_refused, text, write_model};
use tempfile::TempDir;

/// A folder with a model directory `model`.
struct Workspace {
    dir: TempDir,
}

impl Workspace {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        write_model(&dir.path().join("model"), &CLASSES);
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn model(&self) -> Model {
        Model::open(&self.path("model")).unwrap()
    }

    /// Runs a subcommand on the model, in this folder.
    fn run(&self, subcommand: &str, args: &[&str]) -> Output {
        let model = self.path("model");
        let common = [subcommand, "--model", text(&model), "--seconds", "0.01"];
        accordion(&[&common[..], args].concat()).current_dir(self.dir.path()).output().unwrap()
    }

    /// What a subcommand prints.
    fn prints(&self, subcommand: &str, args: &[&str]) -> String {
        let output = self.run(subcommand, args);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&std::fs::read(self.path(name)).unwrap()).unwrap()
    }
}

/// The reference has quality 1 without doubt: it is on the frontier, or does not outdo what is.
fn as_good_as_the_reference(best: &Rated) -> bool {
    best.quality + best.error.max(0.005) > 1.0 - 2e-4
}

#[track_caller]
fn number(value: &Value) -> f64 {
    value.as_f64().filter(|number| number.is_finite() && *number > 0.0).unwrap_or_else(|| panic!("{value}"))
}

#[track_caller]
fn assert_near(a: f64, b: f64) {
    assert!((a / b - 1.0).abs() < 1e-9, "{a} is not {b}");
}

#[test]
fn a_benchmark_covers_every_combination_and_its_numbers_fit_together() {
    let workspace = Workspace::new();
    let model = workspace.model();
    let grid = ["--subnets", "full,0.25", "--batches", "3,1", "--threads", "2,1"];
    let table = workspace.prints("bench", &[&grid[..], &["--json", "b.json"]].concat());
    let json = workspace.json("b.json");
    assert_eq!(json["model"], "tiny");
    assert!(json["weight_bytes"].as_u64().unwrap() > 0 && json["activation_bytes"].as_u64().unwrap() > 0);
    let results = json["results"].as_array().unwrap();
    let combination = |row: &Value| {
        let number = |field: &str| row[field].as_u64().unwrap();
        (number("threads"), row["subnet"].as_str().unwrap().to_owned(), number("batch"))
    };
    let row = |threads, subnet: &str, batch| (threads, subnet.to_owned(), batch);
    let want = [1, 2].map(|threads| {
        [row(threads, "0.250", 1), row(threads, "0.250", 3), row(threads, "full", 1), row(threads, "full", 3)]
    });
    assert_eq!(results.iter().map(combination).collect::<Vec<_>>(), want.concat());
    for row in results {
        let (threads, subnet, batch) = combination(row);
        let (seconds, macs) = (number(&row["ms"]) / 1e3, model.subnets()[model.subnet(&subnet).unwrap()].macs);
        assert_near(number(&row["images_per_s"]), batch as f64 / seconds);
        assert_near(number(&row["gflops"]), 2e-9 * macs as f64 * batch as f64 / seconds);
        let peak = number(&json["peak_gflops"][threads.to_string()]);
        assert_near(number(&row["share_of_peak"]), number(&row["gflops"]) / peak);
        let words = [subnet, batch.to_string(), threads.to_string(), format!("{:.3}", seconds * 1e3)];
        let line = |line: &str| line.split_whitespace().take(4).eq(words.iter().map(String::as_str));
        assert!(table.lines().any(line), "no {words:?} in\n{table}");
    }
    let switching = &json["switching"];
    assert_eq!(switching["subnets"], serde_json::json!(["0.250", "full"]));
    assert_eq!((&switching["batch"], &switching["threads"]), (&1.into(), &2.into()));
    let [low, high] = [0, 1].map(|end| number(&switching["ratio_interval"][end]));
    assert!((low..=high).contains(&number(&switching["ratio"])), "{switching}");
    assert!(json.get("layers").is_none());
}

#[test]
fn the_layers_of_a_benchmark_make_up_the_call() {
    let workspace = Workspace::new();
    let table = workspace.prints("bench", &["--subnets", "0.5", "--batches", "2", "--layers", "--json", "b.json"]);
    let json = workspace.json("b.json");
    assert_eq!(json["switching"], Value::Null, "there is nothing to switch between");
    let [layers] = json["layers"].as_array().unwrap().as_slice() else { panic!("{json}") };
    assert_eq!((&layers["subnet"], &layers["batch"]), (&"0.500".into(), &2.into()));
    let rows = layers["layers"].as_array().unwrap();
    for part in ["layers", "kinds"] {
        let share: f64 = layers[part].as_array().unwrap().iter().map(|row| number(&row["share"])).sum();
        assert_near(share, 1.0);
    }
    for name in ["map_layer0", "enc.8x8_conv", "enc.8x8_block0.conv0", "enc.4x4_down.skip", "dec.4x4_in0.attn"] {
        assert!(rows.iter().any(|row| row["name"] == name), "{name}");
        assert!(table.lines().any(|line| line.split_whitespace().next() == Some(name)), "{name}");
    }
    let kinds: HashSet<&str> = rows.iter().map(|row| row["kind"].as_str().unwrap()).collect();
    for kind in ["direct 1x1", "direct 3x3", "winograd 3x3 F2", "norm statistics", "attention", "linear", "resample"] {
        assert!(kinds.contains(kind), "{kind} is not in {kinds:?}");
    }
    for row in rows {
        assert_eq!(row.get("phases").is_some(), row["kind"] == "winograd 3x3 F2", "{row}");
    }
}

#[test]
fn a_benchmark_can_be_drawn() {
    let workspace = Workspace::new();
    workspace.prints("bench", &["--plot", "b.svg"]);
    let drawing = std::fs::read_to_string(workspace.path("b.svg")).unwrap();
    assert!(drawing.starts_with("<svg") && drawing.trim_end().ends_with("</svg>"));
    for label in ["0.250", "0.500", "0.750", "full", "ms an image"] {
        assert!(drawing.lines().any(|line| line == label), "{label}");
    }
}

#[test]
fn a_profile_has_every_subnet_at_every_batch_and_fits_the_model() {
    let workspace = Workspace::new();
    let table = workspace.prints("profile", &["--max-batch", "4", "--threads", "1", "--images", "4"]);
    let path = workspace.path("model/profile.toml");
    let profile = Profile::open(&path).unwrap();
    let model = workspace.model();
    profile.check_against(model.subnets(), &[], &model.card.sha256, &path).unwrap();
    let rows: Vec<(&str, usize)> = profile.latency.iter().map(|row| (row.subnet.as_str(), row.batch)).collect();
    let of = |subnet: &'static str| [(subnet, 1), (subnet, 2), (subnet, 4)];
    assert_eq!(rows, ["0.250", "0.500", "0.750", "full"].map(of).concat());
    assert!(profile.weight_bytes > 0 && profile.device.threads == 1 && !profile.device.processor.is_empty());
    for row in &profile.latency {
        assert!(table.contains(&format!("{:.3}", row.ms)), "no {row:?} in\n{table}");
    }

    let kept = profile.clone();
    workspace.prints("profile", &["--quick", "--threads", "2"]);
    let quick = Profile::open(&path).unwrap();
    assert_eq!((quick.device.threads, &quick.quality, &quick.weights), (2, &kept.quality, &kept.weights));
    assert!(quick.frontier.iter().all(|row| kept.frontier.contains(row)), "qualities are kept");
    workspace.prints("profile", &["--batches", "3", "--threads", "2", "--pin", "--images", "2", "--out", "other.toml"]);
    let other = Profile::open(&workspace.path("other.toml")).unwrap();
    assert!(other.device.threads == 2 && other.latency.iter().all(|row| row.batch == 3) && other.latency.len() == 4);
}

#[test]
fn a_profile_has_the_frontier_up_to_the_reference_and_it_can_be_drawn() {
    let workspace = Workspace::new();
    let args = ["--batches", "1,2", "--threads", "1", "--images", "6", "--plot", "f.svg"];
    let output = workspace.run("profile", &args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let profile = Profile::open(&workspace.path("model/profile.toml")).unwrap();
    let Quality { metric, images, one, zero, .. } = profile.quality;
    assert_eq!((metric, images, one), (Metric::MseToReference, 6, 0.0));
    assert!(zero > 0.0);
    let best = profile.frontier.last().unwrap();
    assert!(as_good_as_the_reference(best), "{best:?}");

    let drawing = std::fs::read_to_string(workspace.path("f.svg")).unwrap();
    assert!(drawing.starts_with("<svg") && drawing.trim_end().ends_with("</svg>"));
    let (table, progress) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    for row in &profile.frontier {
        let ms = format!("{:.2}", profile.image_ms(&row.plan).unwrap());
        let [quality, error] = [row.quality, row.error].map(|value| format!("{value:.4}"));
        let distance = format!("{:.3}", row.distance);
        let words = [row.plan.to_string(), row.plan.evaluations().to_string(), ms, distance, quality, error];
        let line = |line: &str| line.split_whitespace().eq(words.iter().map(String::as_str));
        assert!(table.lines().any(line), "no {words:?} in\n{table}");
    }
    assert!(drawing.lines().any(|line| line == best.plan.to_string()), "the best has a label");
    for part in ["latency: 8 of 8 rounds", "reference: 1 of 1 plans", "solvers: ", "widths: ", "width schedules: "] {
        assert!(progress.contains(part), "no {part} in\n{progress}");
    }
}

#[test]
fn a_quick_measurement_gives_a_profile_that_another_machine_can_take_over() {
    let workspace = Workspace::new();
    let model = workspace.model();
    let open = |threads| {
        accordion::nets::open(
            &model,
            model.supernet.clone(),
            Placement::Cpu,
            Precision::F32,
            8,
            Threads::new(threads),
            None,
        )
        .unwrap()
    };
    let mut subject = open(1);
    let effort = Effort::Quick { max_batch: 8 };
    let mut parts = Vec::new();
    let mut progress = |progress: Progress<'_>| parts.push(progress.part);
    let profile = Profile::measure(&mut *subject, &Examples::default(), &effort, None, &mut progress).unwrap().profile;
    profile.check_against(model.subnets(), &[], &Default::default(), &workspace.path("profile.toml")).unwrap();
    assert!(as_good_as_the_reference(profile.frontier.last().unwrap()));
    assert_eq!(profile.device, Device::here(1));

    let mut subject = open(2);
    assert_ne!(profile.device, Device::of(&*subject));
    let other = profile.clone().measured_here(&mut *subject, &effort, &mut progress).unwrap();
    assert_eq!((&other.device, &other.quality), (&Device::here(2), &profile.quality));
    let path = workspace.path("other.toml");
    other.write(&path).unwrap();
    assert_eq!(Profile::open(&path).unwrap(), other);
    assert!(other.frontier.iter().all(|row| profile.frontier.contains(row)));
    assert_eq!(parts.first(), Some(&"latency"));
}

#[test]
fn what_cannot_be_measured_is_refused_and_leaves_nothing() {
    let workspace = Workspace::new();
    let names = "`0.300` is none of 0.250, 0.500, 0.750, full";
    assert_refused(&workspace.run("bench", &["--subnets", "0.5,0.300"]), &["subnet", names]);
    for subcommand in ["bench", "profile"] {
        for flag in ["--batches", "--threads", "--seconds"] {
            let output = workspace.run(subcommand, &[flag, "0"]);
            let stderr = String::from_utf8(output.stderr).unwrap();
            assert!(output.status.code() == Some(2) && stderr.contains(flag), "{stderr}");
        }
    }
    let stderr = String::from_utf8(workspace.run("profile", &["--images", "1"]).stderr).unwrap();
    assert!(stderr.contains("--images") && stderr.contains("must be a number from 2"), "{stderr}");
    let absent = |subcommand: &str, flag: &str| {
        let output = workspace.run(subcommand, &["--batches", "1", "--threads", "1", flag, "absent/file"]);
        assert_refused(&output, &["absent/file: No such file"]);
    };
    absent("bench", "--json");
    absent("bench", "--plot");
    absent("profile", "--out");
    absent("profile", "--plot");
    std::fs::create_dir(workspace.path("folder")).unwrap();
    assert_refused(&workspace.run("profile", &["--out", "folder"]), &["folder: is a directory"]);
    let left: HashSet<_> =
        std::fs::read_dir(workspace.dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(left, HashSet::from(["model", "folder"].map(|name| workspace.path(name))));
}
