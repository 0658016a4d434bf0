//! What a decision of the policy costs while requests wait: `cargo bench --bench planner`.

#![allow(missing_docs, reason = "criterion makes functions of its own")]

use accordion::engine::policy::{Ask, Policy, Wish};
use accordion::routing::{Elastic, Ladder, StepTimes};
use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use std::time::Duration;

const MAX_BATCH: usize = 16;

/// A frontier of 24 plans on seven subnets.
fn policy() -> Elastic {
    let names = ["0.250", "0.375", "0.500", "0.625", "0.750", "0.875", "full"];
    let row = |(index, name): (usize, &&str)| {
        let ms = 0.6 + 0.1 * index as f64;
        ((*name).to_owned(), vec![(1, ms / 1e3), (4, 3.7 * ms / 1e3), (16, 14.5 * ms / 1e3)])
    };
    let times = StepTimes::new(names.iter().enumerate().map(row), MAX_BATCH);
    let plan = |index: usize| {
        let text = format!("dpmpp2m-{}@{}", index + 2, names[index * names.len() / 24]);
        (text.parse().expect("a plan"), 0.5 + index as f64 / 50.0)
    };
    Elastic::new(Ladder::new((0..24).map(plan), &times).expect("a ladder"), times, MAX_BATCH)
}

fn ask(id: u64, now: Duration) -> Ask {
    let wish = Wish::Quality { floor: 0.0, target: 1.0 };
    // Room for all of them: what is refused costs less.
    Ask::new(id, now, now + Duration::from_secs(20), wish)
}

/// So many requests taken, of which none runs.
fn taken(requests: u64) -> Elastic {
    let mut policy = policy();
    for id in 0..requests {
        policy.admit(ask(id, Duration::from_millis(id % 1000))).expect("room for all");
    }
    policy
}

/// `quote` is an arrival's decision, `begin` that of a call whose images all begin, `next` that of a call whose images
/// all run already.
fn decisions(criterion: &mut Criterion) {
    let now = Duration::from_secs(1);
    let mut group = criterion.benchmark_group("planner");
    for requests in [1, 16, 64, 256, 4096] {
        let idle = taken(requests);
        let mut busy = idle.clone();
        busy.next(now);
        group.bench_function(BenchmarkId::new("quote", requests), |bencher| {
            bencher.iter(|| busy.quote(&ask(u64::MAX, now)));
        });
        for (name, policy) in [("begin", idle), ("next", busy.clone())] {
            group.bench_function(BenchmarkId::new(name, requests), |bencher| {
                bencher.iter_batched_ref(|| policy.clone(), |policy| policy.next(now), BatchSize::SmallInput);
            });
        }
    }
    group.finish();
}

criterion_group!(benches, decisions);
criterion_main!(benches);
