//! `accordion loadtest` as a user meets it: the real binary, a tiny model, short runs. Nothing here depends on a time.

mod support;

use accordion::diffusion::plan::Plan;
use accordion::loadtest::Schedule;
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Output, Stdio};
use std::time::Duration;
use support::{CLASSES, accordion, assert_refused, text, write_model};
use tempfile::TempDir;

/// Short, and never void: what is measured does not matter here.
const QUICK: [&str; 12] = [
    "--seconds",
    "1",
    "--warmup",
    "0.2",
    "--capacity-seconds",
    "0.2",
    "--images",
    "4",
    "--deadline-ms",
    "200",
    "--allow-late",
    "--json",
];

/// A folder with a profiled model directory `model`.
struct Workspace {
    dir: TempDir,
}

impl Workspace {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let model = dir.path().join("model");
        write_model(&model, &CLASSES);
        let quick = ["--batches", "1,4", "--seconds", "0.01", "--images", "2", "--threads", "1"];
        let profiled = accordion(&[&["profile", "--model", text(&model)], &quick[..]].concat()).output().unwrap();
        assert!(profiled.status.success(), "{}", String::from_utf8_lossy(&profiled.stderr));
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self, args: &[&str]) -> Output {
        let model = self.path("model");
        let common = ["loadtest", "--model", text(&model), "--threads", "1"];
        accordion(&[&common[..], &QUICK, args].concat()).current_dir(self.dir.path()).output().unwrap()
    }

    /// The JSON that a run ends with, and what it prints before.
    fn report(&self, args: &[&str]) -> (Value, String) {
        let output = self.run(args);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let stdout = String::from_utf8(output.stdout).unwrap();
        let (words, json) = stdout.trim_end().rsplit_once('\n').unwrap();
        (serde_json::from_str(json).unwrap(), words.to_owned())
    }
}

#[track_caller]
fn count(row: &Value, field: &str) -> u64 {
    row[field].as_u64().unwrap_or_else(|| panic!("{field} of {row}"))
}

/// Every request is counted once, whatever became of it.
#[track_caller]
fn assert_adds_up(row: &Value) {
    let kinds = ["in_time", "late", "refused", "timed_out", "errors"].map(|kind| count(row, kind));
    let sent = count(row, "sent");
    assert!(sent > 0 && kinds.iter().sum::<u64>() == sent, "{row}");
    assert_eq!(row["attainment"].as_f64().unwrap(), count(row, "in_time") as f64 / sent as f64);
    assert!(row["void"].is_boolean() && row["lateness_ms"]["p99"].as_f64().unwrap() >= 0.0, "{row}");
}

#[test]
fn every_policy_and_load_has_a_row_whose_counts_add_up() {
    let workspace = Workspace::new();
    let policies = ["--policies", "fixed-widest,fixed-narrowest", "--loads", "0.1,0.05", "--process", "gamma:4"];
    let (report, words) = workspace.report(&[&policies[..], &["--plot", "plots"]].concat());

    let rows = report["rows"].as_array().unwrap();
    let names: Vec<(&str, f64)> =
        rows.iter().map(|row| (row["policy"].as_str().unwrap(), row["load"].as_f64().unwrap())).collect();
    let (widest, narrowest) = ("fixed-widest", "fixed-narrowest");
    assert_eq!(names, [(widest, 0.1), (narrowest, 0.1), (narrowest, 0.05), (widest, 0.05)]);
    rows.iter().for_each(assert_adds_up);
    assert_eq!(count(&rows[0], "sent"), count(&rows[1], "sent"), "a load has one schedule");
    for row in rows {
        let images = count(row, "in_time") + count(row, "late");
        let plan: Plan = format!("heun-18@{}", if row["policy"] == widest { "full" } else { "0.250" }).parse().unwrap();
        let shares = row["plans"].as_object().unwrap();
        assert!(images == 0 || (shares.len() == 1 && shares[&plan.to_string()] == 1.0), "{row}");
        // The reference plan's images are the references themselves.
        if row["policy"] == widest && count(row, "in_time") > 0 {
            assert_eq!((&row["quality"]["in_time"], &row["quality"]["in_time_p5"]), (&1.0.into(), &1.0.into()));
        }
    }
    assert_eq!(report["model"], "tiny");
    assert_eq!(report["deadline_ms"], 200.0);
    assert_eq!(report["settings"]["arrivals"], "gamma:4");
    assert!(report["capacity_per_s"].as_f64().unwrap() > 0.0 && report["quality"]["zero"].as_f64().unwrap() > 0.0);
    assert_eq!(words.lines().filter(|line| line.starts_with("fixed-")).count(), 4, "{words}");
    for plot in ["plots/attainment-by-load.svg", "plots/attainment-by-quality.svg"] {
        assert!(std::fs::read_to_string(workspace.path(plot)).unwrap().contains(widest), "{plot}");
    }
}

#[test]
fn a_saved_schedule_is_run_again_as_a_trace() {
    let workspace = Workspace::new();
    let narrowest = ["--policies", "fixed-narrowest"];
    let (drawn, _) = workspace.report(&[&narrowest[..], &["--loads", "0.1", "--save-schedule", "s.txt"]].concat());
    let warmup = Duration::from_millis(200);
    let schedule = Schedule::read(&workspace.path("s.txt"), warmup).unwrap();
    let counted = schedule.times().iter().filter(|&&time| time >= warmup).count() as u64;
    assert_eq!(count(&drawn["rows"][0], "sent"), counted);

    let model = workspace.path("model");
    let trace = ["loadtest", "--model", text(&model), "--threads", "1", "--trace", "s.txt", "--warmup", "0.2"];
    let quick = ["--capacity-seconds", "0.2", "--images", "4", "--deadline-ms", "200", "--allow-late", "--json"];
    let output =
        accordion(&[&trace[..], &quick, &narrowest].concat()).current_dir(workspace.dir.path()).output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    let replayed: Value = serde_json::from_str(stdout.lines().last().unwrap()).unwrap();
    assert_adds_up(&replayed["rows"][0]);
    assert_eq!(count(&replayed["rows"][0], "sent"), counted);
    assert_eq!(replayed["settings"]["arrivals"], "s.txt");
}

/// A running server; killed when dropped.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Server {
    /// A server of `workspace`'s model and its URL.
    fn start(workspace: &Workspace) -> (Self, String) {
        let model = workspace.path("model");
        let serve = ["serve", "--model", text(&model), "--listen", "127.0.0.1:0", "--threads", "1"];
        let mut command = accordion(&serve);
        let mut server = Self(command.current_dir(workspace.dir.path()).stderr(Stdio::piped()).spawn().unwrap());
        let mut log = BufReader::new(server.0.stderr.take().unwrap()).lines().map_while(Result::ok);
        let address = log.find_map(|line| {
            line.split_once("ready address=").map(|(_, rest)| rest.split_whitespace().next().unwrap().to_owned())
        });
        // A full pipe would stop the server.
        std::thread::spawn(move || log.for_each(drop));
        (server, format!("http://{}", address.expect("the server says when it is ready")))
    }
}

#[test]
fn a_server_that_runs_already_is_tested_as_it_is() {
    let workspace = Workspace::new();
    let (_server, url) = Server::start(&workspace);
    let (report, _) = workspace.report(&["--url", &url, "--loads", "0.05"]);
    let rows = report["rows"].as_array().unwrap();
    assert_eq!((rows.len(), &rows[0]["policy"]), (1, &"server".into()));
    assert_adds_up(&rows[0]);
    assert!(report["machine"]["server_threads"].is_null() && report["settings"]["max_batch"].is_null());
}

#[test]
fn rows_that_were_measured_are_printed_also_if_the_server_ends_before_the_test() {
    let workspace = Workspace::new();
    let (server, url) = Server::start(&workspace);
    let args = ["loadtest", "--url", &url, "--loads", "0.05", "--capacity-seconds", "2", "--images", "4"];
    let more = ["--seconds", "1", "--warmup", "0.2", "--deadline-ms", "200", "--allow-late", "--json"];
    let mut command = accordion(&[&args[..], &more].concat());
    let mut test = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut log = BufReader::new(test.stderr.take().unwrap()).lines().map_while(Result::ok);
    let measured = log.find(|line| line.contains("measured")).expect("a row");
    // Two seconds are left of the closing check.
    drop(server);
    let said: Vec<String> = log.collect();
    let output = test.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{measured} {said:?}");
    assert!(said.last().unwrap().starts_with("error: "), "{said:?}");
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(stdout.contains("(not measured after the runs)"), "{stdout}");
    assert_eq!(stdout.lines().filter(|line| line.starts_with("server ")).count(), 1, "{stdout}");
    let report: Value = serde_json::from_str(stdout.lines().last().unwrap()).unwrap();
    assert!(report["capacity_after_per_s"].is_null(), "{report}");
    assert_adds_up(&report["rows"][0]);
}

#[test]
fn the_cost_of_http_is_a_ratio_of_two_rates() {
    let workspace = Workspace::new();
    let (report, words) = workspace.report(&["--overhead", "--max-batch", "4", "--fixed-plan", "euler-2"]);
    assert_eq!((&report["plan"], &report["max_batch"]), (&"euler-2@full".into(), &4.into()));
    for side in ["http_per_s", "engine_per_s"] {
        assert!(report[side].as_array().unwrap().iter().all(|rate| rate.as_f64().unwrap() > 0.0), "{report}");
    }
    assert!(report["ratio"].as_f64().unwrap() > 0.0 && words.contains("median ratio: "));
}

#[test]
fn what_cannot_be_tested_is_refused_with_one_sentence() {
    let workspace = Workspace::new();
    for (args, part) in [
        (&["--policies", "best"][..], "--policies: `best` is none of ours, slackfit, fixed-widest"),
        (&["--fixed-plan", "heun"], "--fixed-plan: plan: \"heun@full\" is not <solver>-<steps>@<widths>"),
        (&["--save-schedule", "s.txt"], "--save-schedule: needs exactly one of --loads"),
        // Nothing listens on the port of nobody.
        (&["--url", "http://127.0.0.1:1"], "127.0.0.1:1: no connection could be made"),
    ] {
        assert_refused(&workspace.run(args), &[part]);
    }
    let output = workspace.run(&["--url", "http://192.0.2.1:8080"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("is not accepted: it must be http://127.0.0.1:PORT"));
}
