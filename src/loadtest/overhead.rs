//! What HTTP costs: a saturated server against its own engine, by turns.

use crate::diffusion::plan::Plan;
use crate::engine::{Fleet, Job};
use crate::evaluation::drawing::Start;
use crate::loadtest::client::{Call, Client};
use crate::loadtest::experiment::{client_runtime, image};
use crate::loadtest::images::{Kinds, asked, calls};
use crate::loadtest::policy::exact;
use crate::loadtest::report::Machine;
use crate::loadtest::target::LocalServer;
use crate::loadtest::traffic::closed_loop;
use crate::routing::PolicyChoice;
use crate::server::ServeConfig;
use crate::{Error, Result};
use serde::Serialize;
use std::sync::Arc;
use std::time::Duration;

/// How often the two take turns. Odd: the median is one of the ratios.
const TURNS: usize = 5;

/// Throughput over HTTP, images encoded, against that of the engine alone.
#[derive(Clone, Debug, Serialize)]
pub struct Overhead {
    /// What was measured on.
    pub machine: Machine,
    /// What every image ran.
    pub plan: Plan,
    /// Samples in one call of the denoiser.
    pub max_batch: usize,
    /// Requests that are under way at any time.
    pub clients: usize,
    /// Images a second, turn by turn.
    pub http_per_s: Vec<f64>,
    /// The same without HTTP.
    pub engine_per_s: Vec<f64>,
    /// Median of the first over the second within a turn: 1 is no overhead.
    pub ratio: f64,
}

impl Overhead {
    /// Measures `plan` on a server of `config`: five turns of `window` for each of the two, after
    /// one that is not counted.
    ///
    /// # Errors
    /// One sentence for a server that does not open or a plan that it does not draw.
    pub fn measure(config: &ServeConfig, plan: &Plan, window: Duration) -> Result<Self> {
        let config = ServeConfig { policy: PolicyChoice::Fixed(plan.clone()), ..config.clone() };
        let server = LocalServer::start(&config)?;
        let measured: Result<_> = client_runtime()?.block_on(async {
            let clients = 2 * config.max_batch;
            let client = Arc::new(Client::connect(server.address, clients).await?);
            let models = server.state.models();
            let fleet = models[0].fleet();
            let about = fleet.any().about();
            if about.reads_texts {
                return Err(Error::input("--overhead", "is of models that draw no texts"));
            }
            let starts = asked(clients, about.classes.len());
            let (mut http, mut alone) = (Vec::new(), Vec::new());
            for _ in 0..=TURNS {
                http.push(over_http(&client, &starts, plan, clients, window).await?);
                alone.push(by_engine(fleet, &starts, plan, clients, window).await?);
            }
            let counted = |per_s: Vec<f64>| per_s.into_iter().skip(1).collect::<Vec<f64>>();
            Ok((counted(http), counted(alone)))
        });
        server.stop()?;
        let (http_per_s, engine_per_s) = measured?;
        let mut ratios: Vec<f64> = http_per_s.iter().zip(&engine_per_s).map(|(http, engine)| http / engine).collect();
        ratios.sort_by(f64::total_cmp);
        Ok(Self {
            machine: Machine::here(Some(&config)),
            plan: plan.clone(),
            max_batch: config.max_batch,
            clients: 2 * config.max_batch,
            http_per_s,
            engine_per_s,
            ratio: ratios[TURNS / 2],
        })
    }
}

async fn over_http(
    client: &Arc<Client>,
    starts: &[Start],
    plan: &Plan,
    clients: usize,
    window: Duration,
) -> Result<f64> {
    let calls: Arc<[Call]> = calls(starts, Kinds::Classes(0), None, &exact(plan)).into();
    let client = client.clone();
    let work = move |index: usize| {
        let (client, calls) = (client.clone(), calls.clone());
        async move { image(&client, &calls[index % calls.len()]).await.map(drop) }
    };
    closed_loop(clients, window, work).await
}

async fn by_engine(fleet: &Arc<Fleet>, starts: &[Start], plan: &Plan, clients: usize, window: Duration) -> Result<f64> {
    let plan = Arc::new(plan.clone());
    let (fleet, starts): (_, Arc<[Start]>) = (fleet.clone(), starts.into());
    let work = move |index: usize| {
        let Start { seed, class } = starts[index % starts.len()];
        let job = Job { condition: class.into(), ..Job::exact(plan.clone(), seed) };
        let submitted = fleet.submit(job);
        async move {
            let ticket = submitted.map_err(Error::from)?;
            ticket.wait().await.map(drop).map_err(Error::from)
        }
    };
    closed_loop(clients, window, work).await
}
