//! The engine on a denoiser known in closed form. A gate holds its calls, so that who is in which batch is certain.

use super::gaussian::{Fault, Gate, Gaussian, SeenCall};
use super::policy::{Ask, Member, Planned, Policy, Refusal, RequestId, Turn, Wish};
use super::{Engine, EngineError, Finished, Fleet, Job, Place, Ticket};
use crate::nets::Condition;
use crate::nets::{Denoiser, HostSampler};
use crate::routing::{Elastic, Fixed, Ladder, StepTimes};
use crate::supernet::Subnet;
use std::sync::Arc;
use std::time::{Duration, Instant};

mod slots;

/// First come, first served, so many samples a call.
fn engine(max_batch: usize, queue_images: usize) -> (Engine, Arc<Gate>) {
    let (denoiser, gate) = Gaussian::conditional();
    let policy = Box::new(Fixed::unmeasured(&denoiser.about().subnets, max_batch));
    let sampler = Box::new(HostSampler::new(denoiser));
    (Engine::start(sampler, Place::alone(queue_images).unwrap(), policy).unwrap(), gate)
}

fn job(plan: &str, seed: u64) -> Job {
    Job { condition: Condition::Class(1), ..Job::exact(Arc::new(plan.parse().unwrap()), seed) }
}

fn images(ticket: Ticket) -> Vec<Vec<u8>> {
    ticket.blocking_wait().unwrap().images
}

/// The values of all pixels.
fn values(images: &[Vec<u8>]) -> Vec<f64> {
    images.iter().flatten().map(|&byte| f64::from(byte) / 127.5 - 1.0).collect()
}

fn rows(calls: &[SeenCall]) -> Vec<usize> {
    calls.iter().map(|call| call.sigma.len()).collect()
}

#[test]
fn an_image_lands_on_the_distribution_of_its_class_and_subnet() {
    let (engine, _) = engine(64, 64);
    for (class, plan, mean) in [(0, "heun-18@full", -0.5), (1, "heun-18@full", 0.5), (1, "dpmpp2m-18@0.500", 0.25)] {
        let job = Job { images: 64, condition: Condition::Class(class), ..job(plan, 3) };
        let pixels = values(&images(engine.submit(job).unwrap()));
        let average = pixels.iter().sum::<f64>() / pixels.len() as f64;
        let variance = pixels.iter().map(|x| (x - average).powi(2)).sum::<f64>() / pixels.len() as f64;
        // 768 pixels of deviation 0.25: their average is within 0.03 but once in a thousand seeds.
        assert!((average - mean).abs() < 0.03, "{plan} {class}: {average}");
        assert!((variance.sqrt() - 0.25).abs() < 0.03, "{plan} {class}: {variance}");
    }
}

#[test]
fn an_image_does_not_depend_on_what_shares_its_batches() {
    let (engine, gate) = engine(8, 16);
    let wanted = job("heun-6@full~churn=20", 7);
    let alone = images(engine.submit(wanted.clone()).unwrap());
    let alone_calls = gate.calls().len();

    gate.close();
    let first = engine.submit(job("dpmpp2m-4@full", 1)).unwrap();
    gate.wait_for_calls(alone_calls + 1);
    let others: Vec<Ticket> = (0..3).map(|seed| engine.submit(job("euler-5@full", seed)).unwrap()).collect();
    let among = engine.submit(wanted).unwrap();
    gate.open();
    assert_eq!(images(among), alone);
    for ticket in others.into_iter().chain([first]) {
        assert_eq!(images(ticket).len(), 1);
    }
    assert_eq!(rows(&gate.calls()[alone_calls..])[..2], [1, 5]);
}

#[test]
fn image_i_of_a_request_is_the_same_however_many_are_asked() {
    let (engine, _) = engine(8, 16);
    let draw = |count| images(engine.submit(Job { images: count, ..job("euler-4@full", 5) }).unwrap());
    let (two, three) = (draw(2), draw(3));
    assert_eq!(two, three[..2]);
    assert_ne!(three[0], three[1]);
}

#[test]
fn requests_join_a_running_batch_at_their_own_noise_levels() {
    let (engine, gate) = engine(8, 16);
    gate.close();
    let first = engine.submit(job("euler-3@full", 1)).unwrap();
    gate.wait_for_calls(1);
    let second = engine.submit(Job { condition: Condition::None, ..job("euler-3@full", 2) }).unwrap();
    gate.open();
    images(first);
    images(second);
    let calls = gate.calls();
    assert_eq!(rows(&calls), [1, 2, 2, 1]);
    assert_eq!(calls[1].class, [Some(1), None]);
    assert_eq!(calls[1].sigma[1], calls[0].sigma[0]);
    assert!(calls[1].sigma[0] < calls[1].sigma[1]);
}

#[test]
fn a_width_schedule_changes_the_subnet_between_steps() {
    let (engine, gate) = engine(8, 16);
    images(engine.submit(job("heun-4@0.250*2,full*2", 1)).unwrap());
    let subnets: Vec<usize> = gate.calls().iter().map(|call| call.subnet).collect();
    assert_eq!(subnets, [0, 0, 0, 0, 2, 2, 2]);
}

#[test]
fn a_batch_never_exceeds_its_limit_and_the_older_request_finishes_first() {
    let (engine, gate) = engine(2, 16);
    gate.close();
    let older = engine.submit(Job { images: 3, ..job("euler-2@full", 1) }).unwrap();
    gate.wait_for_calls(1);
    let younger = engine.submit(Job { condition: Condition::Class(0), ..job("euler-2@full", 2) }).unwrap();
    gate.open();
    assert_eq!(images(older).len(), 3);
    images(younger);
    let calls = gate.calls();
    assert_eq!(rows(&calls), [2, 2, 2, 2]);
    assert_eq!(calls[2].class, [Some(1), Some(0)]);
}

#[test]
fn a_short_exact_request_takes_its_turn_beside_a_long_one() {
    let (denoiser, gate) = Gaussian::conditional();
    let row = |(subnet, ms): (&Subnet, f64)| (subnet.name.to_string(), vec![(1, ms / 1e3), (8, 6.0 * ms / 1e3)]);
    let times = StepTimes::new(denoiser.about().subnets.iter().zip([1.0, 2.0, 4.0]).map(row), 8);
    let ladder = Ladder::new([("heun-18@full".parse().unwrap(), 1.0)], &times).unwrap();
    let policy = Box::new(Elastic::new(ladder, times, 8));
    let place = Place::alone(32).unwrap();
    let engine = Engine::start(Box::new(HostSampler::new(denoiser)), place, policy).unwrap();
    gate.close();
    let begun = Instant::now();
    let long = engine.submit(Job { images: 16, ..job("heun-18@full", 1) }).unwrap();
    gate.wait_for_calls(1);
    let short = engine.submit(job("euler-2@0.250", 2)).unwrap();
    let came = Instant::now();
    // It asks for less than a hundredth of what the long one does, and has waited for more than that share of its time.
    while came.elapsed() * 100 < begun.elapsed() {
        std::thread::yield_now();
    }
    gate.open();
    assert_eq!((images(short).len(), images(long).len()), (1, 16));
    let subnets: Vec<usize> = gate.calls().iter().map(|call| call.subnet).collect();
    assert_eq!(subnets[..4], [2, 0, 0, 2]);
}

#[test]
fn guidance_adds_an_unconditional_row_and_moves_away_from_it() {
    let (engine, gate) = engine(3, 16);
    let mean = |guidance| {
        let drawn = images(engine.submit(Job { images: 2, guidance, ..job("euler-18@0.250", 4) }).unwrap());
        let pixels = values(&drawn);
        pixels.iter().sum::<f64>() / pixels.len() as f64
    };
    let plain = mean(1.0);
    assert!(gate.calls().iter().all(|call| call.class == [Some(1), Some(1)]));
    let seen = gate.calls().len();
    let guided = mean(3.0);
    assert!(gate.calls()[seen..].iter().all(|call| call.class == [Some(1), None]), "two slots would be four rows");
    assert!((guided - plain - 0.25).abs() < 0.02, "the class's mean moves from 1/8 to 3/8: {plain} {guided}");
}

#[test]
fn a_guide_may_be_of_a_width_of_its_own() {
    let (engine, gate) = engine(8, 16);
    let drawn = |plan: &str, condition: Condition, guidance| {
        let seen = gate.calls().len();
        let job = Job { images: 2, condition, guidance, ..job(plan, 4) };
        let pixels = values(&images(engine.submit(job).unwrap()));
        let calls: Vec<_> = gate.calls()[seen..].iter().map(|call| (call.subnet, call.class.clone())).collect();
        (pixels.iter().sum::<f64>() / pixels.len() as f64, calls)
    };
    let two = |class| vec![class; 2];
    // The class's mean is half of what a subnet knows of it: 1/4 at half of the width, 1/8 at a quarter.
    let (plain, calls) = drawn("euler-18@0.500^0.250", Condition::Class(1), 1.0);
    assert!(calls.iter().all(|call| *call == (1, two(Some(1)))), "nothing guides");
    let (mean, calls) = drawn("euler-18@0.500^0.250", Condition::Class(1), 1.5);
    assert_eq!(calls[..2], [(1, two(Some(1))), (0, two(None))], "two calls a step");
    assert_eq!(calls.len(), 36);
    assert!((mean - plain - 0.125).abs() < 0.02, "{mean}");
    // What the narrow subnet makes of the same class is led away from.
    let (mean, calls) = drawn("euler-18@0.500^auto:0.250*1.4", Condition::Class(1), 1.0);
    assert_eq!(calls[..2], [(1, two(Some(1))), (0, two(Some(1)))]);
    assert!((mean - plain - 0.4 * 0.125).abs() < 0.02, "{mean}");
    let (_, calls) = drawn("euler-18@0.500^auto:0.250*1.4", Condition::None, 1.0);
    assert_eq!(calls[..2], [(1, two(None)), (0, two(None))], "also where there is no class");
    // A request's own guidance goes before a plan's.
    let (mean, calls) = drawn("euler-18@0.500^auto:0.250*1.4", Condition::Class(1), 1.5);
    assert!(calls[1] == (0, two(None)) && (mean - plain - 0.125).abs() < 0.02, "{mean}");
    // By itself a subnet is led nowhere; of the width of the step a guide shares its call.
    let (_, calls) = drawn("euler-2@0.250*1,full*1^auto:0.250", Condition::None, 1.0);
    assert_eq!(calls, [(0, two(None)), (2, two(None)), (0, two(None))]);
    let (_, calls) = drawn("euler-2@0.250*1,full*1^0.250", Condition::Class(0), 2.0);
    assert_eq!(calls[0], (0, vec![Some(0), None, Some(0), None]));
    assert_eq!(calls[1..], [(2, two(Some(0))), (0, two(None))]);
}

#[test]
fn guidance_without_a_class_costs_nothing() {
    let (engine, gate) = engine(8, 16);
    images(engine.submit(Job { condition: Condition::None, guidance: 3.0, ..job("euler-2@full", 4) }).unwrap());
    assert_eq!(rows(&gate.calls()), [1, 1]);
}

#[test]
fn a_full_queue_refuses_and_says_when_to_come_back() {
    let (engine, gate) = engine(8, 3);
    gate.close();
    let mut tickets = vec![engine.submit(job("euler-2@full", 0)).unwrap()];
    gate.wait_for_calls(1);
    assert_eq!((engine.waiting(), engine.stats().active()), (0, 1));
    tickets.push(engine.submit(Job { images: 2, ..job("euler-2@full", 1) }).unwrap());
    let refused = engine.submit(Job { images: 2, ..job("euler-2@full", 2) }).unwrap_err();
    // Three images of two calls each, at a second a call as far as this policy knows.
    assert_eq!(refused, EngineError::QueueFull { waiting: 2, capacity: 3, retry_after: Duration::from_secs(6) });
    tickets.push(engine.submit(job("euler-2@full", 3)).unwrap());
    gate.open();
    assert_eq!(tickets.into_iter().map(images).map(|images| images.len()).sum::<usize>(), 4);
    assert_eq!((engine.waiting(), engine.stats().finished()), (0, 4));
}

#[test]
fn a_request_whose_client_has_gone_leaves_within_one_step() {
    let (engine, gate) = engine(8, 16);
    gate.close();
    let running = engine.submit(job("euler-9@full", 1)).unwrap();
    gate.wait_for_calls(1);
    let waiting = engine.submit(job("euler-9@full", 2)).unwrap();
    drop((running, waiting));
    let kept = engine.submit(Job { condition: Condition::Class(0), ..job("euler-2@full", 3) }).unwrap();
    gate.open();
    images(kept);
    let classes: Vec<_> = gate.calls().into_iter().map(|call| call.class).collect();
    assert_eq!(classes, [[Some(1)], [Some(0)], [Some(0)]]);
}

#[test]
fn a_closed_engine_finishes_what_it_took_and_takes_no_more() {
    let (engine, gate) = engine(1, 16);
    gate.close();
    let running = engine.submit(job("euler-3@full", 1)).unwrap();
    gate.wait_for_calls(1);
    let waiting = engine.submit(job("euler-3@full", 2)).unwrap();
    engine.close();
    assert_eq!(engine.submit(job("euler-3@full", 3)).unwrap_err(), EngineError::Draining);
    gate.open();
    engine.join().unwrap();
    assert!(engine.is_alive());
    assert_eq!(images(running).len() + images(waiting).len(), 2);
}

#[test]
fn a_failed_batch_answers_its_requests_and_no_others() {
    for (fault, message) in [
        (Fault::Error, "the denoiser failed: device: a fault"),
        (Fault::Panic, "the denoiser failed: it panicked: a bug in a kernel"),
        (Fault::NotFinite, "the denoiser failed: it returned values that are not finite"),
    ] {
        let (engine, gate) = engine(8, 16);
        gate.close();
        let first = engine.submit(job("euler-3@0.250", 1)).unwrap();
        gate.wait_for_calls(1);
        let second = engine.submit(job("euler-3@0.250", 2)).unwrap();
        let other = engine.submit(job("euler-3@full", 3)).unwrap();
        gate.admit_one();
        gate.wait_for_calls(2);
        gate.admit_one();
        gate.wait_for_calls(3);
        assert_eq!(gate.calls()[2].sigma.len(), 2);
        gate.fail_next(fault);
        gate.open();
        for ticket in [first, second] {
            assert_eq!(ticket.blocking_wait().unwrap_err().to_string(), message);
        }
        assert_eq!(images(other).len(), 1);
        assert!(engine.is_alive());
        assert_eq!(images(engine.submit(job("euler-3@0.250", 1)).unwrap()).len(), 1);
    }
}

#[test]
fn an_engine_whose_thread_dies_answers_everyone_and_says_so() {
    let (engine, gate) = engine(8, 16);
    gate.close();
    let running = engine.submit(job("euler-3@full", 1)).unwrap();
    gate.wait_for_calls(1);
    let waiting = engine.submit(job("euler-3@full", 2)).unwrap();
    gate.fail_next(Fault::Bomb);
    gate.open();
    assert!(matches!(running.blocking_wait(), Err(EngineError::Denoiser(_) | EngineError::Dead)));
    assert_eq!(waiting.blocking_wait(), Err(EngineError::Dead));
    assert!(!engine.is_alive());
    assert_eq!(engine.submit(job("euler-3@full", 3)).unwrap_err(), EngineError::Dead);
    assert_eq!(engine.join(), Err(EngineError::Dead));
}

#[test]
fn a_job_that_does_not_fit_the_model_is_refused_before_it_waits() {
    let (engine, _) = engine(8, 16);
    for unfit in [
        job("euler-3@0.750", 1),
        Job { condition: Condition::Class(2), ..job("euler-3@full", 1) },
        Job { images: 0, ..job("euler-3@full", 1) },
        Job { images: 17, ..job("euler-3@full", 1) },
    ] {
        assert!(matches!(engine.submit(unfit), Err(EngineError::Unfit(_))));
    }
    assert_eq!(engine.waiting(), 0);
}

#[test]
fn the_statistics_count_calls_and_samples_by_subnet() {
    let (engine, _) = engine(8, 16);
    let Finished { queued, denoising, .. } =
        engine.submit(Job { images: 3, ..job("heun-3@0.500*2,full*1", 1) }).unwrap().blocking_wait().unwrap();
    engine.join().unwrap();
    let counts: Vec<_> =
        engine.stats().subnets().iter().map(|(name, stats)| (name.as_str(), stats.calls(), stats.samples())).collect();
    assert_eq!(counts, [("0.250", 0, 0), ("0.500", 4, 12), ("full", 1, 3)]);
    assert_eq!((engine.stats().finished(), engine.stats().active()), (3, 0));
    let busy: Duration = engine.stats().subnets().iter().map(|(_, stats)| stats.busy()).sum();
    assert!(busy <= denoising && queued < Duration::from_secs(60));
}

/// Begins every image at once by `euler-4@full` and lets it go on by `euler-4@full*2,0.250*1~respace=2/4` after two steps.
#[derive(Debug, Default)]
struct Changing {
    asked: Option<Ask>,
    calls: usize,
}

impl Policy for Changing {
    fn quote(&self, _: &Ask) -> Result<Planned, Refusal> {
        Ok(Planned { plan: Arc::new("euler-4@full".parse().unwrap()), quality: Some(0.5) })
    }

    fn admit(&mut self, ask: Ask) -> Result<Planned, Refusal> {
        let planned = self.quote(&ask);
        self.asked = Some(ask);
        planned
    }

    fn next(&mut self, _: Duration) -> Option<Turn> {
        let member = Member { request: self.asked.as_ref()?.id, image: 0 };
        let plans = match self.calls {
            0 => vec![(member, Arc::new("euler-4@full".parse().unwrap()))],
            2 => vec![(member, Arc::new("euler-3@full*2,0.250*1~respace=2/4".parse().unwrap()))],
            _ => vec![],
        };
        Some(Turn { kind: if self.calls < 2 { 2 } else { 0 }, members: vec![member], plans })
    }

    fn ran(&mut self, _: &Turn, _: Duration, _: Duration) {
        self.calls += 1;
        if self.calls == 3 {
            self.asked = None;
        }
    }

    fn leave(&mut self, _: RequestId) {
        self.asked = None;
    }

    fn work(&self) -> Duration {
        Duration::ZERO
    }
}

#[test]
fn an_image_whose_plan_changes_says_what_it_ran_and_can_be_repeated() {
    let (denoiser, gate) = Gaussian::conditional();
    let place = Place::alone(4).unwrap();
    let changing = Engine::start(Box::new(HostSampler::new(denoiser)), place, Box::new(Changing::default())).unwrap();
    let wish = Wish::Quality { floor: 0.0, target: 1.0 };
    let ticket = changing.submit(Job { wish, ..job("euler-1@full", 9) }).unwrap();
    assert_eq!(ticket.planned().plan.to_string(), "euler-4@full");
    let finished = ticket.blocking_wait().unwrap();
    assert_eq!(finished.plans[0].to_string(), "euler-3@full*2,0.250*1~respace=2/4");
    assert_eq!(gate.calls().iter().map(|call| call.subnet).collect::<Vec<_>>(), [2, 2, 0]);
    let (fixed, _) = engine(8, 16);
    assert_eq!(images(fixed.submit(job(&finished.plans[0].to_string(), 9)).unwrap()), finished.images);
}

#[test]
fn a_listener_is_told_every_step_with_the_image_so_far() {
    let (engine, _) = engine(8, 16);
    let (told, mut steps) = tokio::sync::mpsc::channel(16);
    let drawn = images(engine.submit(Job { events: Some(told), ..job("heun-3@full", 1) }).unwrap());
    let steps: Vec<_> = std::iter::from_fn(|| steps.blocking_recv()).collect();
    assert_eq!(steps.iter().map(|step| (step.image, step.step)).collect::<Vec<_>>(), [(0, 1), (0, 2), (0, 3)]);
    assert_eq!(steps[2].estimate, drawn[0], "the last step goes to what the denoiser says");
}

#[test]
fn a_fleet_gives_work_to_the_engine_that_has_the_least() {
    let (first, first_gate) = engine(8, 16);
    let (second, second_gate) = engine(8, 16);
    let fleet = Fleet::new(vec![("cpu:0".to_owned(), first), ("cpu:1".to_owned(), second)]);
    first_gate.close();
    second_gate.close();
    let tickets: Vec<_> = (0..2).map(|seed| fleet.submit(job("euler-3@full", seed)).unwrap()).collect();
    first_gate.wait_for_calls(1);
    second_gate.wait_for_calls(1);
    first_gate.open();
    second_gate.open();
    assert_eq!(tickets.into_iter().map(images).map(|images| images.len()).sum::<usize>(), 2);
    fleet.join().unwrap();
    assert_eq!(fleet.submit(job("euler-3@full", 3)).unwrap_err(), EngineError::Draining);
}
