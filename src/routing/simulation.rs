//! Policies on a machine and a clock that are made up: the laws of serving, without a model and without waiting.

use crate::engine::policy::{Ask, Policy, Refusal, RequestId, Turn, Wish};
use crate::engine::turns::{Ledger, SeatId};
use crate::philox::Stream;
use crate::routing::ladder::tests::{ladder, times};
use crate::routing::{Elastic, Fixed, Ladder, SlackFit, StepTimes};
use proptest::prelude::*;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

const MAX_BATCH: usize = 8;

/// What a request asks.
#[derive(Clone, Debug)]
struct Arrival {
    at: f64,
    within: f64,
    images: u32,
    wish: Wish,
}

impl Arrival {
    fn ask(&self, id: usize) -> Ask {
        let (arrived, deadline) = (Duration::from_secs_f64(self.at), Duration::from_secs_f64(self.at + self.within));
        Ask { images: self.images, ..Ask::new(id as RequestId, arrived, deadline, self.wish.clone()) }
    }
}

/// How a request ended.
#[derive(Clone, Debug, Default, PartialEq)]
struct Ended {
    refused: bool,
    /// When its last image was drawn, after its arrival.
    took: f64,
    in_time: bool,
    /// Mean over its images, estimated for plans that changed.
    quality: f64,
    plans: Vec<String>,
    begun: f64,
}

/// A machine that takes what `times` says, with a noise of so many percent and slower by `slowness`.
struct Machine {
    times: StepTimes,
    slowness: f64,
    noise: f64,
}

/// An engine of the simulation: who decides, what its machine takes, and what comes to it, ascending in time.
struct Engine<'a> {
    policy: &'a mut dyn Policy,
    machine: &'a Machine,
    arrivals: &'a [Arrival],
}

/// Runs the arrivals to the end. Every image makes the calls of its plan, in order, on its subnets.
fn simulate(policy: &mut dyn Policy, machine: &Machine, arrivals: &[Arrival]) -> Vec<Ended> {
    side_by_side(vec![Engine { policy, machine, arrivals }]).remove(0)
}

/// The same of several engines, whose calls take turns on one device.
fn side_by_side(engines: Vec<Engine>) -> Vec<Vec<Ended>> {
    let mut ledger = Ledger::default();
    let mut desks: Vec<Desk> = engines.into_iter().map(|engine| Desk::new(engine, ledger.join())).collect();
    let mut now = 0.0;
    loop {
        admit(&mut desks, &mut ledger, now);
        for desk in desks.iter_mut().filter(|desk| desk.turn.is_none()) {
            desk.engine.policy.meet(ledger.company(desk.seat, seconds(now)));
            desk.turn = desk.engine.policy.next(seconds(now));
            match &desk.turn {
                Some(_) => ledger.ask(desk.seat),
                None => ledger.rest(desk.seat),
            }
            desk.plan(now);
        }
        let Some(seat) = ledger.give() else {
            let coming = desks.iter().filter_map(|desk| Some(desk.engine.arrivals.get(desk.came)?.at));
            match coming.min_by(f64::total_cmp) {
                Some(at) => now = at,
                None => break,
            }
            continue;
        };
        let running = desks.iter().position(|desk| desk.seat == seat).unwrap();
        let took = desks[running].took();
        now += took;
        // What comes while the call runs is admitted at its own time, not after it.
        admit(&mut desks, &mut ledger, now);
        desks[running].ran(took, now);
        ledger.ended(seat, seconds(took), seconds(now));
    }
    desks.into_iter().map(Desk::ended).collect()
}

fn seconds(time: f64) -> Duration {
    Duration::from_secs_f64(time)
}

/// Takes what has come by now, or refuses it, each at its own time.
fn admit(desks: &mut [Desk], ledger: &mut Ledger, now: f64) {
    loop {
        let came = desks.iter().enumerate().filter_map(|(index, desk)| {
            let at = desk.engine.arrivals.get(desk.came)?.at;
            (at <= now).then_some((at, index))
        });
        let Some((at, index)) = came.min_by(|a, b| a.0.total_cmp(&b.0)) else { return };
        let (id, seat) = (desks[index].came, desks[index].seat);
        desks[index].came += 1;
        let Engine { policy, arrivals, .. } = &mut desks[index].engine;
        let images = arrivals[id].images;
        policy.meet(ledger.company(seat, seconds(at)));
        let mut is_taken = policy.admit(arrivals[id].ask(id)).is_ok();
        if is_taken && !ledger.works(seat) {
            // As an engine does that begins to work beside others.
            ledger.work(seat);
            let others = desks.iter().filter(|other| other.seat != seat && ledger.works(other.seat));
            let breaks = |other: &Desk| {
                let company = ledger.company(other.seat, seconds(at));
                other.engine.policy.breach(seconds(at), &company).is_some()
            };
            if others.into_iter().any(breaks) {
                is_taken = false;
                ledger.rest(seat);
                ledger.refuse(seat, seconds(at));
                desks[index].engine.policy.leave(id as RequestId);
            }
        }
        desks[index].ended[id].refused = !is_taken;
        desks[index].open.extend(is_taken.then_some((id as RequestId, images)));
    }
}

/// An engine and what it has done.
struct Desk<'a> {
    engine: Engine<'a>,
    seat: SeatId,
    /// How many of its requests have come.
    came: usize,
    /// The call that it waits to make.
    turn: Option<Turn>,
    ended: Vec<Ended>,
    images: HashMap<(RequestId, u32), (Arc<crate::diffusion::Plan>, usize)>,
    open: HashMap<RequestId, u32>,
    noise: Stream,
    calls: u64,
}

impl<'a> Desk<'a> {
    fn new(engine: Engine<'a>, seat: SeatId) -> Self {
        let ended = vec![Ended::default(); engine.arrivals.len()];
        let (images, open) = (HashMap::new(), HashMap::new());
        Self { engine, seat, came: 0, turn: None, ended, images, open, noise: Stream::new(5, 1, 0), calls: 0 }
    }

    /// Begins images and changes plans as the turn says.
    fn plan(&mut self, now: f64) {
        let Some(turn) = &self.turn else { return };
        for (member, plan) in &turn.plans {
            let image = self.images.entry((member.request, member.image)).or_insert_with(|| {
                self.ended[member.request as usize].begun = now;
                (plan.clone(), 0)
            });
            let (step, boundary) = image.0.position(image.1);
            assert!(boundary, "{} changes in the middle of a step", image.0);
            let same = (0..step).all(|step| image.0.subnet_at(step) == plan.subnet_at(step));
            assert!(same && plan.solver == image.0.solver, "{} is not a continuation of {}", plan, image.0);
            image.0 = plan.clone();
        }
        assert!(!turn.members.is_empty() && turn.members.len() <= MAX_BATCH, "{turn:?}");
    }

    /// What the call takes.
    fn took(&mut self) -> f64 {
        let (turn, machine) = (self.turn.as_ref().unwrap(), self.engine.machine);
        let unit = self.noise.uniform(self.calls);
        self.calls += 1;
        let measured = machine.times.measured(turn.kind, turn.members.len());
        machine.slowness * measured * (1.0 + machine.noise * (2.0 * unit - 1.0))
    }

    /// The call has been made.
    fn ran(&mut self, took: f64, now: f64) {
        let turn = self.turn.take().unwrap();
        let Engine { machine, arrivals, .. } = &self.engine;
        let (names, ladder) = (machine.times.subnets(), ladder());
        for member in &turn.members {
            let key = (member.request, member.image);
            let (plan, done) = self.images.get_mut(&key).expect("a member has begun");
            let (step, _) = plan.position(*done);
            assert_eq!(*plan.subnet_at(step), names[turn.kind], "the subnet of the member's next call");
            *done += 1;
            if *done == plan.evaluations() {
                let (plan, _) = self.images.remove(&key).unwrap();
                let arrival = &arrivals[member.request as usize];
                let end = &mut self.ended[member.request as usize];
                end.took = now - arrival.at;
                end.in_time = end.took <= arrival.within;
                let quality = ladder.estimate(&plan, &machine.times).unwrap_or(0.0);
                end.quality += quality / f64::from(arrival.images);
                end.plans.push(plan.to_string());
                *self.open.get_mut(&member.request).unwrap() -= 1;
            }
        }
        self.engine.policy.ran(&Turn { plans: Vec::new(), ..turn }, seconds(took), seconds(now));
    }

    fn ended(mut self) -> Vec<Ended> {
        self.open.retain(|_, left| *left > 0);
        assert!(self.open.is_empty(), "requests were forgotten: {:?}", self.open);
        self.ended
    }
}

fn machine() -> Machine {
    Machine { times: times(), slowness: 1.0, noise: 0.1 }
}

fn elastic() -> Elastic {
    Elastic::new(ladder(), times(), MAX_BATCH)
}

fn any_quality() -> Wish {
    Wish::Quality { floor: 0.0, target: 1.0 }
}

/// Requests at random times, so many a second on average.
fn poisson(rate: f64, seconds: f64, within: f64, seed: u64) -> Vec<Arrival> {
    let stream = Stream::new(seed, 2, 0);
    let mut at = 0.0;
    let mut arrivals = Vec::new();
    for index in 0.. {
        at -= (1.0 - stream.uniform(index)).ln() / rate;
        if at > seconds {
            return arrivals;
        }
        arrivals.push(Arrival { at, within, images: 1, wish: any_quality() });
    }
    arrivals
}

/// Bursts: groups of requests at once, at the same mean rate.
fn bursts(rate: f64, size: usize, seconds: f64, within: f64, seed: u64) -> Vec<Arrival> {
    let groups = poisson(rate / size as f64, seconds, within, seed);
    groups.into_iter().flat_map(|arrival| vec![arrival; size]).collect()
}

/// Share of all requests that were served in time, and the mean quality of those.
fn score(ended: &[Ended]) -> (f64, f64) {
    let served: Vec<&Ended> = ended.iter().filter(|ended| !ended.refused && ended.in_time).collect();
    let quality = served.iter().map(|ended| ended.quality).sum::<f64>() / served.len().max(1) as f64;
    (served.len() as f64 / ended.len() as f64, quality)
}

/// Capacity of `heun-18@full` on the machine: 1 / 140 ms.
const CAPACITY: f64 = 1.0 / 0.140;
/// Four times what the best plan takes on an idle machine.
const WITHIN: f64 = 0.56;

#[test]
fn under_any_load_ours_serves_nearly_all_in_time_and_better_images_than_slackfit() {
    for (load, burst) in [(0.5, 1), (1.0, 1), (1.5, 1), (2.0, 1), (4.0, 1), (1.0, 4), (2.0, 8)] {
        let arrivals = bursts(load * CAPACITY, burst, 300.0, WITHIN, 1);
        let fixed = Fixed::new(ladder().best().plan.clone(), Some(1.0), times(), MAX_BATCH);
        let slackfit = SlackFit::new(ladder(), times(), MAX_BATCH);
        let ours = score(&simulate(&mut elastic(), &machine(), &arrivals));
        let theirs = score(&simulate(&mut slackfit.clone(), &machine(), &arrivals));
        let widest = score(&simulate(&mut fixed.clone(), &machine(), &arrivals));
        println!("load {load} burst {burst}: ours {ours:.4?}, slackfit {theirs:.4?}, widest {widest:.4?}");
        assert!(ours.0 >= 0.999, "load {load} burst {burst}: {ours:?}");
        let of_all = |(attainment, quality): (f64, f64)| attainment * quality;
        assert!(ours.0 >= theirs.0 && of_all(ours) > of_all(theirs), "load {load} burst {burst}: {ours:?} {theirs:?}");
        if load >= 1.5 {
            assert!(widest.0 < 0.7, "{widest:?}");
        }
    }
}

#[test]
fn an_idle_machine_serves_the_best_that_the_budget_affords() {
    for (within, plan) in
        [(1.0, "heun-18@full"), (0.1, "dpmpp2m-8@full"), (0.03, "dpmpp2m-6@0.500"), (0.003, "dpmpp2m-2@0.250")]
    {
        let arrivals = [Arrival { at: 1.0, within, images: 1, wish: any_quality() }];
        let ended = simulate(&mut elastic(), &Machine { noise: 0.0, ..machine() }, &arrivals);
        assert_eq!(ended[0].plans, [plan], "{within}");
        assert!(ended[0].in_time);
    }
}

#[test]
fn what_no_idle_machine_could_do_is_refused_with_the_fastest_plan() {
    let ask = |within: f64, wish| {
        let deadline = Duration::from_secs_f64(within);
        elastic().quote(&Ask::new(1, Duration::ZERO, deadline, wish))
    };
    let Err(Refusal::Infeasible { fastest, takes }) = ask(0.001, any_quality()) else { panic!("taken") };
    assert_eq!((fastest.to_string().as_str(), takes.as_micros()), ("dpmpp2m-2@0.250", 2000));
    let floor = Wish::Quality { floor: 0.96, target: 1.0 };
    let Err(Refusal::Infeasible { fastest, takes }) = ask(0.02, floor) else { panic!("taken") };
    assert_eq!((fastest.to_string().as_str(), takes.as_millis()), ("dpmpp2m-8@full", 32));
}

#[test]
fn what_does_not_fit_at_present_is_refused_until_it_does() {
    let mut policy = elastic();
    let wish = Wish::Quality { floor: 1.0, target: 1.0 };
    let ask = |id, at: f64, within: f64| {
        let (arrived, deadline) = (Duration::from_secs_f64(at), Duration::from_secs_f64(at + within));
        Ask::new(id, arrived, deadline, wish.clone())
    };
    policy.admit(ask(1, 0.0, 0.2)).unwrap();
    let Err(Refusal::Overloaded { retry_after }) = policy.admit(ask(2, 0.0, 0.2)) else { panic!("taken") };
    assert!((0.05..0.3).contains(&retry_after.as_secs_f64()), "{retry_after:?}");
    assert!(policy.admit(ask(3, 0.0, 0.5)).is_ok(), "a later deadline fits");
    policy.leave(1);
    policy.leave(3);
    assert!(policy.admit(ask(4, 0.0, 0.2)).is_ok());
}

#[test]
fn a_running_image_is_shortened_when_somebody_more_urgent_comes_and_not_below_its_floor() {
    for (floor, shortened) in [(0.0, true), (1.0, false)] {
        let wish = Wish::Quality { floor, target: 1.0 };
        let arrivals = [
            Arrival { at: 0.0, within: 0.165, images: 1, wish },
            Arrival { at: 0.07, within: 0.05, images: 1, wish: Wish::Quality { floor: 0.96, target: 1.0 } },
        ];
        let ended = simulate(&mut elastic(), &Machine { noise: 0.0, ..machine() }, &arrivals);
        assert_eq!(ended[0].plans[0].contains("~respace"), shortened, "{ended:?}");
        assert_eq!(ended[1].refused, !shortened);
        assert!(ended[0].in_time, "{ended:?}");
    }
}

#[test]
fn small_jobs_are_not_stuck_behind_large_ones_and_large_ones_do_not_starve() {
    let wish = Wish::Quality { floor: 0.96, target: 0.96 };
    let mut arrivals = vec![Arrival { at: 0.0, within: 60.0, images: 64, wish: wish.clone() }];
    arrivals.extend((0..200).map(|i| Arrival { at: 0.05 * f64::from(i), within: 0.5, images: 1, wish: wish.clone() }));
    let ended = simulate(&mut elastic(), &machine(), &arrivals);
    assert!(ended.iter().all(|ended| ended.in_time && !ended.refused));
    let slowest = ended[1..].iter().map(|ended| ended.took).fold(0.0, f64::max);
    assert!(slowest < 0.4, "{slowest}");
}

/// An exact request at `at`, with so long a time as a server gives one.
fn exact(at: f64, images: u32, plan: &str) -> Arrival {
    Arrival { at, within: 300.0, images, wish: Wish::Exact(Arc::new(plan.parse().unwrap())) }
}

#[test]
fn a_short_exact_request_beside_a_long_one_is_done_in_a_few_times_its_idle_time() {
    for (plan, idle) in [("dpmpp2m-6@0.500", 0.012), ("dpmpp2m-8@full", 0.032), ("heun-18@full", 0.140)] {
        let mut arrivals = vec![exact(0.0, 16, "heun-18@full")];
        arrivals.extend((1..10).map(|i| exact(0.2 * f64::from(i), 1, plan)));
        let ended = simulate(&mut elastic(), &machine(), &arrivals);
        let slowest = ended[1..].iter().map(|ended| ended.took).fold(0.0, f64::max);
        assert!(slowest < 3.0 * idle, "{plan}: {slowest}");
        assert!(ended[0].took < 1.1 * (16.0 * 0.140 + 9.0 * idle), "nothing is lost by it: {}", ended[0].took);
    }
}

#[test]
fn neither_short_exact_requests_nor_a_long_one_among_them_starve() {
    // Four fifths of the machine: one fifth is left for the long one.
    let mut arrivals = vec![exact(0.0, 16, "heun-18@full")];
    arrivals.extend((0..1500).map(|i| exact(0.015 * f64::from(i), 1, "dpmpp2m-6@0.500")));
    let ended = simulate(&mut elastic(), &machine(), &arrivals);
    let long = ended[0].took / (16.0 * 0.140);
    assert!(long < 1.1 * 5.0, "{long}");
    let slowest = ended[1..].iter().map(|ended| ended.took / 0.012).fold(0.0, f64::max);
    assert!(slowest < long + 2.0, "nobody waits longer for what it asks than another: {slowest} {long}");
}

#[test]
fn a_single_image_does_not_wait_for_the_many_of_a_request_with_the_same_budget() {
    for wish in [any_quality(), Wish::Quality { floor: 1.0, target: 1.0 }] {
        let mut arrivals = vec![Arrival { at: 0.0, within: 60.0, images: 64, wish: wish.clone() }];
        arrivals.extend((1..5).map(|i| Arrival { at: f64::from(i), within: 60.0, images: 1, wish: wish.clone() }));
        let ended = simulate(&mut elastic(), &machine(), &arrivals);
        let slowest = ended[1..].iter().map(|ended| ended.took).fold(0.0, f64::max);
        assert!(slowest < 3.0 * 0.140, "{slowest}");
    }
}

#[test]
fn a_long_request_that_cannot_be_degraded_does_not_spoil_the_images_of_others() {
    let images = poisson(0.4 * CAPACITY, 60.0, 2.0, 6);
    let alone = score(&simulate(&mut elastic(), &machine(), &images));
    let exact = exact(0.0, 200, "heun-18@full");
    let best = Arrival { wish: Wish::Quality { floor: 1.0, target: 1.0 }, ..exact.clone() };
    for long in [exact, best] {
        let arrivals: Vec<Arrival> = [long].into_iter().chain(images.clone()).collect();
        let ended = simulate(&mut elastic(), &machine(), &arrivals);
        let beside = score(&ended[1..]);
        assert!(beside.0 >= 0.999 && beside.1 > alone.1 - 0.02, "{beside:?} {alone:?}");
        assert!(ended[0].took < 4.0 * 200.0 * 0.140, "{}", ended[0].took);
    }
}

#[test]
fn under_overload_plans_become_faster_long_before_a_long_deadline_is_near() {
    let arrivals = poisson(3.0 * CAPACITY, 120.0, 60.0, 4);
    let ended = simulate(&mut elastic(), &machine(), &arrivals);
    let slowest = ended.iter().map(|ended| ended.took).fold(0.0, f64::max);
    assert!(ended.iter().all(|ended| !ended.refused) && slowest < 5.0, "{slowest}");
}

#[test]
fn a_machine_that_becomes_slower_does_not_miss_every_deadline() {
    let arrivals = poisson(CAPACITY, 300.0, WITHIN, 3);
    let ended = simulate(&mut elastic(), &Machine { slowness: 2.5, ..machine() }, &arrivals);
    let (attainment, quality) = score(&ended[200..]);
    assert!(attainment >= 0.99, "{attainment} {quality}");
}

/// What two engines serve side by side on one device, of which the second is so many times slower.
fn two(arrivals: [&[Arrival]; 2], slower: f64) -> [Vec<Ended>; 2] {
    let machines = [1.0, slower].map(|slowness| Machine { slowness, ..machine() });
    let (mut one, mut other) = (elastic(), elastic_of(slower));
    let engines = vec![
        Engine { policy: &mut one, machine: &machines[0], arrivals: arrivals[0] },
        Engine { policy: &mut other, machine: &machines[1], arrivals: arrivals[1] },
    ];
    let [one, other] = side_by_side(engines).try_into().unwrap();
    [one, other]
}

/// One that knows that its machine is so many times slower.
fn elastic_of(slower: f64) -> Elastic {
    let times = times();
    let of = |kind: usize, name: &String| {
        let points = [1, 2, 4, MAX_BATCH].map(|batch| (batch, slower * times.measured(kind, batch)));
        (name.clone(), points.to_vec())
    };
    let times = StepTimes::new(times.subnets().iter().enumerate().map(|(kind, name)| of(kind, name)), MAX_BATCH);
    let plans = ladder();
    let plans = plans.rungs().iter().map(|rung| (rung.plan.as_ref().clone(), rung.quality));
    Elastic::new(Ladder::new(plans, &times).unwrap(), times, MAX_BATCH)
}

#[test]
fn two_models_with_a_whole_machine_s_work_each_keep_their_deadlines_on_one_device() {
    for load in [0.4, 1.0, 2.0] {
        let arrivals = [1, 2].map(|seed| poisson(load * CAPACITY, 200.0, 2.0 * WITHIN, seed));
        let ended = two([&arrivals[0], &arrivals[1]], 1.0);
        let scores = ended.each_ref().map(|ended| score(ended));
        println!("load {load} each: {scores:.4?}");
        assert!(scores.iter().all(|(in_time, _)| *in_time >= 0.99), "load {load}: {scores:?}");
        assert!((scores[0].1 - scores[1].1).abs() < 0.03, "both are served alike: {scores:?}");
        let late = ended.iter().flatten().filter(|ended| !ended.refused && !ended.in_time).count();
        assert_eq!(late, 0, "load {load}");
    }
}

#[test]
fn a_model_of_long_calls_does_not_starve_one_of_short_calls() {
    let best = |seed, rate: f64, within| {
        let arrivals = poisson(rate * CAPACITY, 60.0, within, seed);
        let wish = Wish::Quality { floor: 1.0, target: 1.0 };
        arrivals.into_iter().map(|arrival| Arrival { wish: wish.clone(), ..arrival }).collect::<Vec<_>>()
    };
    // A quarter of the device for the short ones; the long ones, of calls 20 times as long, could fill it.
    let (short, long) = (best(1, 0.25, 2.0), best(2, 0.04, 300.0));
    let [short, long] = two([&short, &long], 20.0);
    let (in_time, _) = score(&short);
    assert!(in_time >= 0.99, "{in_time}");
    assert!(long.iter().all(|ended| !ended.refused && ended.in_time));
    assert!(short.iter().all(|ended| ended.refused || ended.in_time));
}

#[test]
fn a_model_beside_an_idle_one_has_the_device_to_itself() {
    let arrivals = poisson(1.5 * CAPACITY, 60.0, WITHIN, 7);
    let alone = simulate(&mut elastic(), &machine(), &arrivals);
    let [beside, _] = two([&arrivals, &[]], 1.0);
    assert_eq!(beside, alone);
}

#[test]
fn a_seldom_asked_model_takes_no_half_of_the_device_from_a_busy_one() {
    let busy = poisson(1.5 * CAPACITY, 100.0, 2.0 * WITHIN, 8);
    let seldom = poisson(0.5, 100.0, 2.0 * WITHIN, 9);
    let alone = score(&simulate(&mut elastic(), &machine(), &busy));
    let [beside, seldom] = two([&busy, &seldom], 1.0).map(|ended| score(&ended));
    println!("alone {alone:?}, beside {beside:?}, seldom {seldom:?}");
    assert!(beside.0 >= 0.99 && beside.1 > alone.1 - 0.02, "{beside:?} {alone:?}");
    assert!(seldom.0 >= 0.95, "{seldom:?}");
}

#[test]
fn work_that_would_break_another_model_s_promise_is_refused_at_first_and_then_has_its_half() {
    // Nothing can be degraded, and there is just time for what has been taken.
    let wish = Wish::Quality { floor: 1.0, target: 1.0 };
    let busy: Vec<Arrival> =
        (0..200).map(|i| Arrival { at: 0.05 * f64::from(i), within: 0.6, images: 1, wish: wish.clone() }).collect();
    let newcomer: Vec<Arrival> = (0..40)
        .map(|i| Arrival { at: 2.01 + 0.2 * f64::from(i), within: 0.6, images: 1, wish: wish.clone() })
        .collect();
    let ended = two([&busy, &newcomer], 1.0);
    let [busy, newcomer] = ended.each_ref().map(|ended| ended.iter().filter(|ended| !ended.refused).count());
    assert!(ended[1][0].refused, "the promises that were there come first");
    assert!(newcomer >= 20, "{newcomer} of the newcomer, {busy} of the other");
    assert!(ended.iter().flatten().all(|ended| ended.refused || ended.in_time));
}

#[test]
fn nothing_is_remembered_of_a_request_that_left() {
    let mut policy = elastic();
    for id in 0..3 {
        let deadline = Duration::from_secs(100);
        policy.admit(Ask { images: 5, rows: 2, ..Ask::new(id, Duration::ZERO, deadline, any_quality()) }).unwrap();
    }
    policy.next(Duration::ZERO).unwrap();
    (0..3).for_each(|id| policy.leave(id));
    assert_eq!((policy.next(Duration::ZERO), policy.work()), (None, Duration::ZERO));
}

/// A state that some requests have left behind.
fn state(arrivals: &[(f64, f64, u32, f64)], turns: usize) -> (Elastic, f64) {
    let mut policy = elastic();
    let mut now = 0.0;
    for (id, &(gap, within, images, floor)) in arrivals.iter().enumerate() {
        now += gap;
        let wish = Wish::Quality { floor, target: 1.0 };
        let (arrived, deadline) = (Duration::from_secs_f64(now), Duration::from_secs_f64(now + within));
        let _ = policy.admit(Ask { images, ..Ask::new(id as u64, arrived, deadline, wish) });
    }
    for _ in 0..turns {
        let Some(turn) = policy.next(Duration::from_secs_f64(now)) else { break };
        let took = times().measured(turn.kind, turn.members.len());
        now += took;
        policy.ran(&turn, Duration::from_secs_f64(took), Duration::from_secs_f64(now));
    }
    (policy, now)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_larger_budget_never_gives_a_worse_plan_on_the_same_state(
        arrivals in prop::collection::vec((0.0f64..0.2, 0.01f64..2.0, 1u32..4, 0.0f64..1.0), 0..12),
        turns in 0usize..30,
        mut budgets in prop::array::uniform2(0.002f64..2.0),
        floor in 0.0f64..1.0,
    ) {
        let (policy, now) = state(&arrivals, turns);
        budgets.sort_by(f64::total_cmp);
        let quote = |within: f64| {
            let wish = Wish::Quality { floor, target: 1.0 };
            let (arrived, deadline) = (Duration::from_secs_f64(now), Duration::from_secs_f64(now + within));
            policy.quote(&Ask::new(1000, arrived, deadline, wish))
        };
        let [small, large] = budgets.map(quote);
        if let Ok(small) = small {
            let large = large.expect("what a smaller budget gets, a larger one gets too");
            prop_assert!(large.quality >= small.quality, "{small:?} {large:?}");
        }
    }

    #[test]
    fn every_plan_that_is_promised_is_of_the_frontier_and_within_what_the_client_accepts(
        arrivals in prop::collection::vec((0.0f64..0.2, 0.01f64..2.0, 1u32..4, 0.0f64..1.0), 0..12),
        turns in 0usize..30,
        floor in 0.0f64..1.0,
        span in 0.0f64..1.0,
    ) {
        let (policy, now) = state(&arrivals, turns);
        let target = floor + span * (1.0 - floor);
        let (arrived, deadline) = (Duration::from_secs_f64(now), Duration::from_secs_f64(now + 1.0));
        let ask = Ask::new(1000, arrived, deadline, Wish::Quality { floor, target });
        if let Ok(planned) = policy.quote(&ask) {
            let ladder: Ladder = ladder();
            let quality = ladder.quality(&planned.plan);
            prop_assert!(quality.is_some() && quality == planned.quality);
            prop_assert!(quality.unwrap() + 1e-6 >= floor);
            prop_assert!(quality.unwrap() <= ladder.rungs()[ladder.at_least(target)].quality);
        }
    }

    #[test]
    fn on_a_machine_as_it_was_measured_nothing_that_was_admitted_is_late(
        arrivals in prop::collection::vec((0.0f64..0.1, 0.01f64..1.0, 1u32..5, 0.0f64..1.0), 1..40),
    ) {
        let mut at = 0.0;
        let arrivals: Vec<Arrival> = arrivals.into_iter().map(|(gap, within, images, floor)| {
            at += gap;
            Arrival { at, within, images, wish: Wish::Quality { floor, target: 1.0 } }
        }).collect();
        let ended = simulate(&mut elastic(), &Machine { noise: 0.0, ..machine() }, &arrivals);
        for (arrival, ended) in arrivals.iter().zip(&ended) {
            prop_assert!(ended.refused || ended.in_time, "{arrival:?} {ended:?}");
        }
    }

    #[test]
    fn deadlines_hold_beside_exact_requests_and_these_are_done_in_their_time_too(
        arrivals in prop::collection::vec((0.0f64..0.1, 0.01f64..1.0, 1u32..5, 0.0f64..1.0, any::<bool>()), 1..40),
    ) {
        let mut at = 0.0;
        let arrivals: Vec<Arrival> = arrivals.into_iter().map(|(gap, within, images, floor, is_exact)| {
            at += gap;
            let budget = Arrival { at, within, images, wish: Wish::Quality { floor, target: 1.0 } };
            if is_exact { Arrival { within: 4.0, ..exact(at, 4 * images, "heun-3@0.250*1,full*2") } } else { budget }
        }).collect();
        let ended = simulate(&mut elastic(), &Machine { noise: 0.0, ..machine() }, &arrivals);
        for (arrival, ended) in arrivals.iter().zip(&ended) {
            prop_assert!(ended.refused || ended.in_time, "{arrival:?} {ended:?}");
        }
    }

    #[test]
    fn beside_another_model_nothing_that_was_admitted_is_late_by_more_than_a_call_of_the_other(
        arrivals in prop::array::uniform2(
            prop::collection::vec((0.0f64..0.2, 0.01f64..1.0, 1u32..5, 0.0f64..1.0), 1..30)),
        slower in 1.0f64..5.0,
    ) {
        let arrivals = arrivals.map(|arrivals| {
            let mut at = 0.0;
            arrivals.into_iter().map(|(gap, within, images, floor)| {
                at += gap;
                Arrival { at, within, images, wish: Wish::Quality { floor, target: 1.0 } }
            }).collect::<Vec<_>>()
        });
        let exact = |slowness| Machine { noise: 0.0, slowness, ..machine() };
        let (mut one, mut other, machines) = (elastic(), elastic_of(slower), [exact(1.0), exact(slower)]);
        let ended = side_by_side(vec![
            Engine { policy: &mut one, machine: &machines[0], arrivals: &arrivals[0] },
            Engine { policy: &mut other, machine: &machines[1], arrivals: &arrivals[1] },
        ]);
        // How long a call of the other is, is known from those that it has made.
        let longest = |slowness: f64| slowness * times().measured(2, MAX_BATCH);
        for ((arrivals, ended), call) in arrivals.iter().zip(&ended).zip([longest(slower), longest(1.0)]) {
            for (arrival, ended) in arrivals.iter().zip(ended) {
                prop_assert!(ended.refused || ended.took <= arrival.within + call, "{arrival:?} {ended:?}");
            }
        }
    }

    #[test]
    fn every_policy_draws_every_image_that_it_took(
        arrivals in prop::collection::vec((0.0f64..0.1, 0.01f64..1.0, 1u32..5, any::<bool>()), 1..30),
        policy in 0usize..3,
    ) {
        let mut at = 0.0;
        let arrivals: Vec<Arrival> = arrivals.into_iter().map(|(gap, within, images, exact)| {
            at += gap;
            let plan = || Arc::new("heun-3@0.250*1,full*2".parse().unwrap());
            let wish = if exact { Wish::Exact(plan()) } else { any_quality() };
            Arrival { at, within: if exact { 100.0 } else { within }, images, wish }
        }).collect();
        let mut policy: Box<dyn Policy> = match policy {
            0 => Box::new(elastic()),
            1 => Box::new(SlackFit::new(ladder(), times(), MAX_BATCH)),
            _ => Box::new(Fixed::new(ladder().best().plan.clone(), None, times(), MAX_BATCH)),
        };
        // The simulation itself asserts that no image is lost.
        let ended = simulate(&mut *policy, &machine(), &arrivals);
        for (arrival, ended) in arrivals.iter().zip(&ended) {
            prop_assert!(ended.refused || ended.plans.len() == arrival.images as usize);
        }
    }
}
