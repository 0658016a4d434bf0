//! `accordion loadtest`: how a server does under load, policy against policy.

use crate::cli::serve::Settings;
use crate::cli::table::{Align, Table};
use crate::console::print;
use crate::digits::to_decimals;
use crate::files::write_whole;
use crate::loadtest::{Arrivals, Contestant, Deadline, Experiment, Overhead, Process, Report, Row, client, plan, plot};
use crate::subnet_name::FULL;
use crate::{Error, Result};
use serde::Serialize;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Measure how a server does under load.
///
/// An open loop: requests are sent at times fixed beforehand, whatever the earlier ones do, and latency runs from those
/// times. Refusals, errors and late images are misses. Each policy's server runs in this process, and the requests come
/// from it too, so that both share the machine's cores.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    settings: Settings,
    /// Test a server that runs already on this machine, such as http://127.0.0.1:8080, whatever its policy.
    #[arg(long, value_parser = client::loopback, conflicts_with_all = ["policies", "overhead"])]
    url: Option<SocketAddr>,
    /// The model that it is asked for, by its name, where it has several; the first of its list without.
    #[arg(long, requires = "url")]
    of: Option<String>,
    /// Policies to compare, separated by commas: these names, or as `policy` in the server's config.
    #[arg(long, value_delimiter = ',', default_values = Contestant::NAMES)]
    policies: Vec<String>,
    /// Solver and steps of the fixed policies, and of the plan that capacity and latency are measured with.
    #[arg(long, default_value = "heun-18")]
    fixed_plan: String,
    /// Mean rates of arrivals over the measured capacity at full width, separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "0.5,0.75,1,1.25,1.5,2", value_parser = positive)]
    loads: Vec<f64>,
    /// How arrivals are spread: poisson, gamma:<squared coefficient of variation of the gaps>, steps or ramp.
    #[arg(long, default_value = "poisson")]
    process: Process,
    /// Arrival times from a file, one a line, in seconds; in place of --process and --loads.
    #[arg(long, conflicts_with_all = ["process", "loads", "seconds", "save_schedule"])]
    trace: Option<PathBuf>,
    /// Write the arrival times of the only load to a file that --trace reads.
    #[arg(long)]
    save_schedule: Option<PathBuf>,
    /// Seed of the arrivals.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Length of a run.
    #[arg(long, default_value = "20", value_parser = super::seconds)]
    seconds: Duration,
    /// Seconds before it that are not counted.
    #[arg(long, default_value = "3", value_parser = super::seconds)]
    warmup: Duration,
    /// The deadline, as a multiple of the latency of an idle server at full width.
    #[arg(long, default_value = "4", value_parser = positive)]
    slo: f64,
    /// The deadline itself.
    #[arg(long, conflicts_with = "slo", value_parser = clap::value_parser!(u64).range(1..=3_600_000))]
    deadline_ms: Option<u64>,
    /// A client gives up after so many deadlines.
    #[arg(long, default_value = "10", value_parser = positive)]
    patience: f64,
    /// Different images, of seed and class, that are asked for.
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u16).range(2..=1000))]
    images: u16,
    /// How long the capacity is measured.
    #[arg(long, default_value = "5", value_parser = super::seconds)]
    capacity_seconds: Duration,
    /// Measure instead what HTTP costs: a saturated server against its own engine on the fixed plan at full width.
    #[arg(long)]
    overhead: bool,
    /// Succeed even if requests were sent too late for the rows to mean anything.
    #[arg(long)]
    allow_late: bool,
    /// Print everything as JSON, as the last line.
    #[arg(long)]
    json: bool,
    /// Draw attainment against load and against quality into this directory.
    #[arg(long, conflicts_with = "overhead")]
    plot: Option<PathBuf>,
}

/// For a flag that is a factor.
fn positive(text: &str) -> std::result::Result<f64, String> {
    let number = text.trim().parse().ok().filter(|number: &f64| *number > 0.0 && *number <= 1000.0);
    number.ok_or_else(|| "must be above 0 and at most 1000".to_owned())
}

impl Args {
    /// Runs the subcommand.
    pub fn run(self) -> Result<()> {
        let (config, _) = self.settings.config()?;
        if self.overhead {
            let plan = plan(&self.fixed_plan, FULL)?;
            let overhead = Overhead::measure(&config, &plan, self.capacity_seconds)?;
            print(overhead_table(&overhead))?;
            return print_json(self.json, &overhead);
        }
        if let Some(dir) = &self.plot {
            std::fs::create_dir_all(dir).map_err(Error::io(dir))?;
        }
        let experiment = Experiment {
            config,
            url: self.url,
            of: self.of,
            policies: self.policies,
            fixed_plan: self.fixed_plan,
            arrivals: match self.trace {
                Some(path) => Arrivals::Trace(path),
                None => Arrivals::Drawn { process: self.process, loads: self.loads, run: self.seconds },
            },
            warmup: self.warmup,
            seed: self.seed,
            deadline: match self.deadline_ms {
                Some(ms) => Deadline::Given(Duration::from_millis(ms)),
                None => Deadline::Slo(self.slo),
            },
            patience: self.patience,
            images: usize::from(self.images),
            capacity_window: self.capacity_seconds,
            save_schedule: self.save_schedule,
        };
        let (report, ended) = experiment.run(|row| {
            let (load, attainment) = (to_decimals(row.load, 3), to_decimals(row.attainment, 4));
            tracing::info!(policy = row.policy, load, attainment, void = row.void, "measured");
        })?;
        // What was measured is said and kept, whatever comes of the end.
        let plotted = self.plot.as_deref().map_or(Ok(()), |dir| write_plots(dir, &report));
        print(head(&report))?;
        print(rows_table(&report.rows))?;
        print_json(self.json, &report)?;
        plotted?;
        ended?;
        let void = report.rows.iter().filter(|row| row.void).count();
        if void > 0 && !self.allow_late {
            let of = report.rows.len();
            return Err(Error::input(
                "loadtest",
                format!(
                    "requests of {void} of {of} rows went out too late: they say nothing; --allow-late accepts them"
                ),
            ));
        }
        Ok(())
    }
}

fn print_json(wanted: bool, value: &impl Serialize) -> Result<()> {
    if wanted {
        print(serde_json::to_string(value).map_err(|error| Error::input("--json", error))?)?;
    }
    Ok(())
}

fn write_plots(dir: &Path, report: &Report) -> Result<()> {
    write_whole(&dir.join("attainment-by-load.svg"), plot::attainment_by_load(report)?.as_bytes())?;
    write_whole(&dir.join("attainment-by-quality.svg"), plot::attainment_by_quality(report)?.as_bytes())
}

fn head(report: &Report) -> String {
    let Report { machine, model, settings, unloaded_ms, deadline_ms, quality, .. } = report;
    let after = report.capacity_after_per_s.map_or_else(|| "not measured".to_owned(), |after| format!("{after:.2}"));
    let before = report.capacity_per_s;
    format!(
        "{model} on {}, cores {}, generator: {}\n\
         {}@full: {before:.2} images/s saturated ({after} after the runs), {unloaded_ms:.1} ms alone; deadline {deadline_ms:.0} ms\n\
         {} arrivals, seed {}, {} s after {} s of warm-up; quality: {} by {} images\n\n",
        machine.cpu,
        machine.cores,
        machine.generator,
        settings.fixed_plan,
        settings.arrivals,
        settings.seed,
        settings.seconds,
        settings.warmup_s,
        quality.metric,
        quality.images,
    )
}

/// A line a row. Attainment and qualities are shares; latencies and lateness are milliseconds.
fn rows_table(rows: &[Row]) -> Table {
    let right = |name| (Align::Right, name);
    let columns = [
        "load",
        "sent",
        "in time",
        "late",
        "refused",
        "timed out",
        "errors",
        "attainment",
        "p50 ms",
        "p95 ms",
        "p99 ms",
        "quality",
        "p5",
        "of all",
        "claimed",
        "FD",
        "images/s",
        "lateness p99 ms",
    ];
    let mut table =
        Table::new([(Align::Left, "policy")].into_iter().chain(columns.map(right)).chain([(Align::Left, "")]));
    for row in rows {
        let counts = [row.sent, row.in_time, row.late, row.refused, row.timed_out, row.errors].map(|n| n.to_string());
        let latency = &row.latency_ms;
        let quality = &row.quality;
        let share = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.3}"));
        let cells = [row.policy.clone(), format!("{:.2}", row.load)]
            .into_iter()
            .chain(counts)
            .chain([format!("{:.4}", row.attainment)])
            .chain([latency.p50, latency.p95, latency.p99].map(ms))
            .chain([quality.in_time, quality.in_time_p5, Some(quality.all), quality.claimed].map(share))
            .chain([quality.distance.map_or_else(|| "-".to_owned(), |distance| format!("{:.2}", distance.fd))])
            .chain([format!("{:.2}", row.throughput_per_s), ms(row.lateness_ms.p99)])
            .chain([if row.void { "void" } else { "" }.to_owned()]);
        table.row(cells);
    }
    table
}

/// A time that may be infinite.
fn ms(value: f64) -> String {
    if value.is_finite() { format!("{value:.1}") } else { "inf".to_owned() }
}

fn overhead_table(overhead: &Overhead) -> String {
    let mut table =
        Table::new([(Align::Right, "turn"), (Align::Right, "HTTP"), (Align::Right, "engine"), (Align::Right, "ratio")]);
    for (turn, (http, engine)) in overhead.http_per_s.iter().zip(&overhead.engine_per_s).enumerate() {
        table.row([
            (turn + 1).to_string(),
            format!("{http:.2}"),
            format!("{engine:.2}"),
            format!("{:.4}", http / engine),
        ]);
    }
    let Overhead { plan, max_batch, clients, ratio, .. } = overhead;
    format!("images/s of {plan}, batch {max_batch}, {clients} requests under way:\n{table}median ratio: {ratio:.4}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loadtest::report::{Percentiles, Quality};
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn parsed(args: &[&str]) -> std::result::Result<Args, String> {
        let line = Line::try_parse_from([&["loadtest"], args].concat());
        line.map(|line| line.args).map_err(|error| error.to_string())
    }

    #[test]
    fn the_defaults_are_every_policy_from_half_the_capacity_to_twice_it() {
        let args = parsed(&[]).unwrap();
        assert_eq!(args.policies, Contestant::NAMES);
        assert_eq!(args.loads, [0.5, 0.75, 1.0, 1.25, 1.5, 2.0]);
        assert_eq!((args.process, args.slo, args.deadline_ms), (Process::Poisson, 4.0, None));
    }

    #[test]
    fn flags_that_contradict_each_other_or_leave_the_machine_are_refused() {
        for args in [
            &["--loads", "0"][..],
            &["--loads", "x"],
            &["--process", "gamma"],
            &["--slo", "2", "--deadline-ms", "5"],
            &["--trace", "t", "--loads", "1"],
            &["--trace", "t", "--save-schedule", "u"],
            &["--url", "http://127.0.0.1:1", "--policies", "ours"],
            &["--url", "http://127.0.0.1:1", "--overhead"],
            &["--url", "http://example.com:80"],
            &["--images", "1"],
        ] {
            assert!(parsed(args).is_err(), "{args:?}");
        }
        let message = parsed(&["--url", "http://example.com:80"]).unwrap_err();
        assert!(message.contains("it must be http://127.0.0.1:PORT, http://[::1]:PORT"), "{message}");
    }

    #[test]
    fn a_row_without_images_has_dashes_and_infinities() {
        let never = Percentiles { p50: f64::INFINITY, p95: f64::INFINITY, p99: f64::INFINITY, max: f64::INFINITY };
        let row = Row {
            policy: "ours".to_owned(),
            load: 2.0,
            sent: 3,
            in_time: 0,
            late: 0,
            refused: 3,
            timed_out: 0,
            errors: 0,
            problems: [("queue_full".to_owned(), 3)].into(),
            attainment: 0.0,
            throughput_per_s: 0.0,
            goodput_per_s: 0.0,
            latency_ms: never,
            quality: Quality::default(),
            plans: [].into(),
            replanned: 0.0,
            lateness_ms: Percentiles { p50: 0.1, p95: 0.2, p99: 0.25, max: 1.0 },
            void: true,
        };
        let table = rows_table(&[row]).to_string();
        let cells: Vec<&str> = table.lines().nth(1).unwrap().split_whitespace().collect();
        let want =
            ["ours", "2.00", "3", "0", "0", "3", "0", "0", "0.0000", "inf", "inf", "inf", "-", "-", "0.000", "-", "-"];
        assert_eq!(cells, [&want[..], &["0.00", "0.2", "void"]].concat());
    }
}
