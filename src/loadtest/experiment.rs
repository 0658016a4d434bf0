//! The order of a load test: what the machine can do, then every load under every policy.

use crate::digits::seconds;
use crate::evaluation::drawing::Start;
use crate::evaluation::profile::{Device, PROFILE, Profile};
use crate::evaluation::realism::RealImages;
use crate::evaluation::to_reference::REFERENCE;
use crate::evaluation::yardstick::Metric;
use crate::loadtest::client::{Call, Client};
use crate::loadtest::images::{Judge, Kinds, References, asked, calls};
use crate::loadtest::policy::{Contestant, exact, plan, within};
use crate::loadtest::report::{Machine, Report, Row, Scale, Settings, Window};
use crate::loadtest::target::{Loaded, LocalServer};
use crate::loadtest::traffic::{Sample, closed_loop, open_loop};
use crate::loadtest::{Process, Schedule};
use crate::nets::model::FEATURES;
use crate::server::ServeConfig;
use crate::subnet_name::FULL;
use crate::{Error, Result};
use axum::http::StatusCode;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::time::{Instant, timeout};

/// Requests, one after the other, whose median latency is that of an idle server.
const UNLOADED_REQUESTS: usize = 15;
/// Longer than an image takes in a saturated server.
const CALL_LIMIT: Duration = Duration::from_secs(120);
/// Connections that are open before a run begins. More are opened when more requests wait.
const CONNECTIONS: usize = 64;

/// Different images that are asked for where they are judged together.
const DIFFERENT: usize = 10_000;

/// A load test.
#[derive(Clone, Debug)]
pub struct Experiment {
    /// What every server has in common.
    pub config: ServeConfig,
    /// A server that runs already, in place of one for each policy.
    pub url: Option<SocketAddr>,
    /// The name of the model that it is asked for; the usual one where none is named.
    pub of: Option<String>,
    /// Of [`Contestant::NAMES`], or as `serve.toml` spells them.
    pub policies: Vec<String>,
    /// Solver and steps of the fixed policies, such as `heun-18`.
    pub fixed_plan: String,
    /// When requests come.
    pub arrivals: Arrivals,
    /// What comes before a run and is not counted.
    pub warmup: Duration,
    /// Seed of the arrivals.
    pub seed: u64,
    /// By when an image must be there.
    pub deadline: Deadline,
    /// A client gives up after so many deadlines.
    pub patience: f64,
    /// How many different images are asked for.
    pub images: usize,
    /// How long the capacity is measured.
    pub capacity_window: Duration,
    /// Where the schedule is written before it is run; one load only.
    pub save_schedule: Option<PathBuf>,
}

/// When requests come.
#[derive(Clone, Debug)]
pub enum Arrivals {
    /// Drawn, once for each load.
    Drawn {
        /// How they are spread.
        process: Process,
        /// Mean rates over the capacity.
        loads: Vec<f64>,
        /// Length of a run.
        run: Duration,
    },
    /// As a file says.
    Trace(PathBuf),
}

/// By when an image must be there, from the intended send time.
#[derive(Clone, Copy, Debug)]
pub enum Deadline {
    /// So many times the latency of the widest fixed plan in an idle server.
    Slo(f64),
    /// This.
    Given(Duration),
}

/// What is measured before the runs.
struct Baseline {
    model: Loaded,
    starts: Vec<Start>,
    unloaded: Duration,
    capacity: f64,
}

/// One load.
struct Load {
    load: f64,
    schedule: Schedule,
    window: Window,
}

impl Experiment {
    /// Runs it. `progress` hears of every row as it is measured. The report is of all rows that were: where the test could
    /// not go on after some of them, the second value says why.
    ///
    /// # Errors
    /// One sentence for a setting that cannot be, a server that does not open, or a baseline that cannot be measured.
    pub fn run(&self, mut progress: impl FnMut(&Row)) -> Result<(Report, Result<()>)> {
        let only = |loads: &[f64]| loads.len() == 1;
        if self.save_schedule.is_some() && !matches!(&self.arrivals, Arrivals::Drawn { loads, .. } if only(loads)) {
            let problem = "needs exactly one of --loads: every load has its own schedule";
            return Err(Error::input("--save-schedule", problem));
        }
        if self.url.is_none() {
            require_profile(&self.config)?;
        }
        let runtime = client_runtime()?;
        let widest = Contestant::widest(&self.fixed_plan)?;
        let (baseline, mut judge) = self.with_server(&widest, |address| runtime.block_on(self.baseline(address)))?;
        let deadline = self.deadline(baseline.unloaded);
        let loads = self.loads(baseline.capacity)?;
        let contestants = self.contestants(&baseline.model)?;
        let mut rows = Vec::new();
        let ended = self.rows(&runtime, &contestants, &loads, &baseline, &mut judge, |row| {
            progress(&row);
            rows.push(row);
        });
        let capacity = || {
            self.with_server(&widest, |address| {
                runtime.block_on(self.capacity(address, &baseline.starts, baseline.model.kinds()))
            })
        };
        let (after, ended) = match ended.and_then(|()| capacity()) {
            Ok(after) => (Some(after), Ok(())),
            Err(error) if rows.is_empty() => return Err(error),
            Err(error) => (None, Err(error)),
        };
        Ok((self.report(&baseline, &judge, after, deadline, &loads, rows), ended))
    }

    /// Measures every contestant under every load.
    fn rows(
        &self,
        runtime: &Runtime,
        contestants: &[Contestant],
        loads: &[Load],
        baseline: &Baseline,
        judge: &mut Judge,
        mut measured: impl FnMut(Row),
    ) -> Result<()> {
        let deadline = self.deadline(baseline.unloaded);
        for (turn, load) in loads.iter().enumerate() {
            // All of them under a load within minutes, each load beginning with another: what else the machine does
            // hits them alike.
            for index in 0..contestants.len() {
                let contestant = &contestants[(index + turn) % contestants.len()];
                let samples = self.with_server(contestant, |address| {
                    runtime.block_on(self.measure(load, deadline, address, baseline))
                })?;
                measured(Row::new(&contestant.name, load.load, &samples, load.window, deadline, judge)?);
            }
        }
        Ok(())
    }

    /// Starts the server of `contestant`, where none runs already, for as long as `work` takes. A fresh one for each
    /// run: nothing that an earlier load left in it helps or hurts the next.
    fn with_server<T>(&self, contestant: &Contestant, work: impl FnOnce(SocketAddr) -> Result<T>) -> Result<T> {
        if let Some(address) = self.url {
            return work(address);
        }
        let server = LocalServer::start(&contestant.configure(&self.config))?;
        let worked = work(server.address);
        let stopped = server.stop();
        worked.and_then(|value| stopped.map(|()| value))
    }

    async fn baseline(&self, address: SocketAddr) -> Result<(Baseline, Judge)> {
        let client = Client::connect(address, 1).await?;
        let model = Loaded::ask(&client, self.of.as_deref()).await?;
        // Refuses unknown names before minutes of measuring.
        self.contestants(&model)?;

        let features = self.config.models[0].join(FEATURES);
        // By what the server calls quality.
        let (starts, judge) = if model.metric == Metric::Fd.as_str() && features.exists() {
            // Each image once: what is asked for again says nothing new.
            let judge = Judge::Features(Box::new(RealImages::open(&features, self.config.threads())?));
            (asked(DIFFERENT.max(self.images), model.kinds().count()), judge)
        } else {
            let starts = asked(self.images, model.kinds().count());
            tracing::info!(images = starts.len(), "drawing the reference images");
            let mut files = Vec::new();
            for call in calls(&starts, model.kinds(), self.of.as_deref(), &format!("exact:{REFERENCE}")) {
                files.push(image(&client, &call).await?);
            }
            let judge = Judge::Reference(References::new(&starts, &files)?);
            (starts, judge)
        };

        tracing::info!("measuring the latency of an idle server");
        let widest = exact(&plan(&self.fixed_plan, FULL)?);
        let mut latencies = Vec::new();
        for call in calls(&starts, model.kinds(), self.of.as_deref(), &widest).iter().cycle().take(UNLOADED_REQUESTS) {
            let start = Instant::now();
            image(&client, call).await?;
            latencies.push(start.elapsed());
        }
        latencies.sort();
        let unloaded = latencies[UNLOADED_REQUESTS / 2];
        let capacity = self.capacity(address, &starts, model.kinds()).await?;
        Ok((Baseline { model, starts, unloaded, capacity }, judge))
    }

    /// Images a second of the widest fixed plan in a saturated server.
    async fn capacity(&self, address: SocketAddr, starts: &[Start], kinds: Kinds) -> Result<f64> {
        tracing::info!(seconds = seconds(self.capacity_window), "measuring the capacity");
        let clients = 2 * self.config.max_batch;
        let client = Arc::new(Client::connect(address, clients).await?);
        let calls: Arc<[Call]> =
            calls(starts, kinds, self.of.as_deref(), &exact(&plan(&self.fixed_plan, FULL)?)).into();
        let work = move |index: usize| {
            let (client, calls) = (client.clone(), calls.clone());
            async move { image(&client, &calls[index % calls.len()]).await.map(drop) }
        };
        closed_loop(clients, self.capacity_window, work).await
    }

    async fn measure(
        &self,
        load: &Load,
        deadline: Duration,
        address: SocketAddr,
        Baseline { model, starts, .. }: &Baseline,
    ) -> Result<Vec<Sample>> {
        let client = Arc::new(Client::connect(address, CONNECTIONS).await?);
        let calls = calls(starts, model.kinds(), self.of.as_deref(), &within(deadline));
        Ok(open_loop(&client, &load.schedule, &calls, deadline.mul_f64(self.patience)).await)
    }

    fn deadline(&self, unloaded: Duration) -> Duration {
        let exactly = match self.deadline {
            Deadline::Slo(times) => unloaded.mul_f64(times),
            Deadline::Given(deadline) => deadline,
        };
        // What a budget can say.
        Duration::from_millis((exactly.as_secs_f64() * 1e3).round().max(1.0) as u64)
    }

    fn loads(&self, capacity: f64) -> Result<Vec<Load>> {
        let from = self.warmup;
        match &self.arrivals {
            Arrivals::Drawn { process, loads, run } => {
                let draw = |&load: &f64| {
                    let schedule = Schedule::draw(*process, load * capacity, from, *run, self.seed)?;
                    if let Some(path) = &self.save_schedule {
                        let rate = load * capacity;
                        schedule.write(path, &format!("{process}, {rate:.3} requests/s, seed {}", self.seed))?;
                    }
                    Ok(Load { load, schedule, window: Window { from, to: from + *run } })
                };
                loads.iter().map(draw).collect()
            }
            Arrivals::Trace(path) => {
                let schedule = Schedule::read(path, from)?;
                let counted = schedule.times().iter().filter(|&&time| time >= from).count();
                let last = *schedule.times().last().expect("a schedule has an arrival after its warm-up");
                // A trace does not say when it ends.
                let to = last.max(from + Duration::from_secs(1));
                let load = counted as f64 / (to - from).as_secs_f64() / capacity;
                Ok(vec![Load { load, schedule, window: Window { from, to } }])
            }
        }
    }

    fn contestants(&self, model: &Loaded) -> Result<Vec<Contestant>> {
        if self.url.is_some() {
            return Ok(vec![Contestant::running()]);
        }
        self.policies.iter().map(|name| Contestant::named(name, &self.fixed_plan, model)).collect()
    }

    fn report(
        &self,
        baseline: &Baseline,
        judge: &Judge,
        after: Option<f64>,
        deadline: Duration,
        loads: &[Load],
        rows: Vec<Row>,
    ) -> Report {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let ours = self.url.is_none();
        Report {
            machine: Machine::here(ours.then_some(&self.config)),
            model: baseline.model.model.clone(),
            settings: Settings {
                fixed_plan: self.fixed_plan.clone(),
                arrivals: match &self.arrivals {
                    Arrivals::Drawn { process, .. } => process.to_string(),
                    Arrivals::Trace(path) => path.display().to_string(),
                },
                seed: self.seed,
                seconds: loads.first().map_or(0.0, |load| (load.window.to - load.window.from).as_secs_f64()),
                warmup_s: self.warmup.as_secs_f64(),
                patience_ms: ms(deadline.mul_f64(self.patience)),
                max_batch: ours.then_some(self.config.max_batch),
                queue_images: ours.then_some(self.config.queue_images),
            },
            capacity_per_s: baseline.capacity,
            capacity_after_per_s: after,
            unloaded_ms: ms(baseline.unloaded),
            deadline_ms: ms(deadline),
            quality: Scale::of(judge),
            rows,
        }
    }
}

/// Without a profile of this machine every server would measure a rough one of its own.
fn require_profile(config: &ServeConfig) -> Result<()> {
    let path = config.models[0].join(PROFILE);
    let refused = |problem| Error::input(path.display(), problem);
    if !path.exists() {
        return Err(refused("is missing: run `accordion profile --quick`, so that all policies know the same"));
    }
    if Profile::open(&path)?.device != Device::here(config.threads().number()) {
        return Err(refused("is of another machine or number of threads: run `accordion profile --quick`"));
    }
    Ok(())
}

/// One thread for all connections: it takes as little as possible from the server.
pub(super) fn client_runtime() -> Result<Runtime> {
    let built = tokio::runtime::Builder::new_current_thread().enable_all().build();
    built.map_err(Error::io("the load test's runtime".as_ref()))
}

/// The file of an image that must come.
pub(super) async fn image(client: &Client, call: &Call) -> Result<axum::body::Bytes> {
    let refused = |problem: String| Error::input(format!("POST {}", call.path), problem);
    match timeout(CALL_LIMIT, client.send(call)).await {
        Ok(Ok(reply)) if reply.status == StatusCode::OK => Ok(reply.body),
        Ok(Ok(reply)) => Err(refused(format!("the answer was {}", reply.code()))),
        Ok(Err(broken)) => Err(refused(broken)),
        Err(_) => Err(refused(format!("no answer within {} s", CALL_LIMIT.as_secs()))),
    }
}
