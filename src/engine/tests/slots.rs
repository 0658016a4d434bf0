//! What the engine takes from its sampler and gives back, and what happens when the sampler fails.

use super::{Gate, Gaussian, HostSampler, images, job};
use crate::engine::gaussian::Fault;
use crate::engine::{Engine, EngineError, Job, Place};
use crate::nets::{About, Begin, Denoiser, Move, Sampler, Slot};
use crate::routing::Fixed;
use crate::{Error, Result};
use std::collections::HashSet;
use std::sync::{Arc, Mutex};

/// A sampler that knows which slots live, and fails where it is told to.
struct Watched {
    inner: HostSampler,
    live: Arc<Mutex<HashSet<usize>>>,
    broken: Arc<Mutex<Option<&'static str>>>,
    estimates: Arc<Mutex<usize>>,
}

impl Watched {
    fn check(&self, part: &str) -> Result<()> {
        // Let go before the panic, which would poison it.
        let broken = *self.broken.lock().unwrap();
        match broken {
            Some(broken) if broken == part => Err(Error::input("device", format!("a fault in {part}"))),
            Some(broken) if broken.strip_prefix("panic ") == Some(part) => panic!("a bug in {part}"),
            _ => Ok(()),
        }
    }
}

impl Sampler for Watched {
    fn about(&self) -> &About {
        self.inner.about()
    }

    fn activation_bytes(&self) -> usize {
        self.inner.activation_bytes()
    }

    fn encode(&mut self, canvas: usize, picture: &[f32]) -> Result<Vec<f32>> {
        self.check("encode")?;
        self.inner.encode(canvas, picture)
    }

    fn begin(&mut self, begin: &Begin) -> Result<Slot> {
        self.check("begin")?;
        let slot = self.inner.begin(begin)?;
        assert!(self.live.lock().unwrap().insert(slot.0), "a slot that is taken");
        Ok(slot)
    }

    fn step(&mut self, subnet: usize, moves: &[Move]) -> Result<()> {
        self.check("step")?;
        self.inner.step(subnet, moves)
    }

    fn pixels(&mut self, slot: Slot, decoder: usize) -> Result<Vec<u8>> {
        self.check("pixels")?;
        self.inner.pixels(slot, decoder)
    }

    fn estimate(&mut self, slot: Slot) -> Result<Vec<u8>> {
        self.check("estimate")?;
        *self.estimates.lock().unwrap() += 1;
        self.inner.estimate(slot)
    }

    fn end(&mut self, slot: Slot) {
        assert!(self.live.lock().unwrap().remove(&slot.0), "a slot that ended twice");
        self.inner.end(slot);
    }
}

/// What a test sees of a [`Watched`].
struct View {
    gate: Arc<Gate>,
    live: Arc<Mutex<HashSet<usize>>>,
    broken: Arc<Mutex<Option<&'static str>>>,
    estimates: Arc<Mutex<usize>>,
}

impl View {
    fn live(&self) -> usize {
        self.live.lock().unwrap().len()
    }

    fn fail(&self, part: Option<&'static str>) {
        *self.broken.lock().unwrap() = part;
    }
}

fn watched(max_batch: usize) -> (Engine, View) {
    let (denoiser, gate) = Gaussian::conditional();
    let policy = Box::new(Fixed::unmeasured(&denoiser.about().subnets, max_batch));
    let inner = HostSampler::new(denoiser);
    let view = View { gate, live: Arc::default(), broken: Arc::default(), estimates: Arc::default() };
    let (live, broken, estimates) = (view.live.clone(), view.broken.clone(), view.estimates.clone());
    let sampler = Box::new(Watched { inner, live, broken, estimates });
    (Engine::start(sampler, Place::alone(16).unwrap(), policy).unwrap(), view)
}

#[test]
fn every_image_that_begins_ends_whether_drawn_cancelled_or_failed() {
    let (engine, view) = watched(3);
    view.gate.close();
    // Of four images three have begun when the client goes.
    let cancelled = engine.submit(Job { images: 4, ..job("euler-9@full", 1) }).unwrap();
    view.gate.wait_for_calls(1);
    assert_eq!(view.live(), 3);
    drop(cancelled);
    let kept = engine.submit(Job { images: 2, ..job("heun-2@full", 2) }).unwrap();
    view.gate.open();
    assert_eq!(images(kept).len(), 2);
    for fault in [Fault::Error, Fault::Panic, Fault::NotFinite] {
        view.gate.fail_next(fault);
        // Two images in the batch that fails, one that begins with it or later: whichever, all are the request's.
        let failed = engine.submit(Job { images: 3, guidance: 2.0, ..job("euler-3@full", 3) }).unwrap();
        assert!(matches!(failed.blocking_wait(), Err(EngineError::Denoiser(_))));
    }
    images(engine.submit(Job { images: 5, ..job("dpmpp2m-4@full", 4) }).unwrap());
    engine.join().unwrap();
    assert_eq!((view.live(), engine.stats().active(), engine.waiting()), (0, 0, 0));
}

#[test]
fn a_fault_of_any_part_of_the_sampler_fails_the_request_that_it_hits_and_no_other() {
    for (part, message) in [
        ("begin", "the denoiser failed: device: a fault in begin"),
        ("panic begin", "the denoiser failed: it panicked: a bug in begin"),
        ("pixels", "the denoiser failed: device: a fault in pixels"),
        ("panic pixels", "the denoiser failed: it panicked: a bug in pixels"),
    ] {
        let (engine, view) = watched(8);
        view.gate.close();
        let (hit, spared) = if part.ends_with("begin") {
            let spared = engine.submit(job("euler-3@full", 1)).unwrap();
            view.gate.wait_for_calls(1);
            (engine.submit(Job { images: 2, ..job("euler-3@full", 2) }).unwrap(), spared)
        } else {
            let hit = engine.submit(Job { images: 2, ..job("euler-2@full", 2) }).unwrap();
            view.gate.wait_for_calls(1);
            (hit, engine.submit(job("euler-5@full", 1)).unwrap())
        };
        view.fail(Some(part));
        if part.ends_with("pixels") {
            // Both images of the first request are drawn by the second call.
            view.gate.admit_one();
            view.gate.wait_for_calls(2);
            view.gate.admit_one();
        } else {
            view.gate.admit_one();
        }
        assert_eq!(hit.blocking_wait().unwrap_err().to_string(), message);
        view.fail(None);
        view.gate.open();
        assert_eq!(images(spared).len(), 1, "{part}");
        assert_eq!(images(engine.submit(job("euler-3@full", 1)).unwrap()).len(), 1);
        engine.join().unwrap();
        assert_eq!((view.live(), engine.waiting()), (0, 0), "{part}");
    }
}

#[test]
fn an_engine_goes_on_after_a_turn_of_which_nothing_could_begin() {
    let (engine, view) = watched(8);
    view.fail(Some("begin"));
    let refused = engine.submit(Job { images: 3, ..job("euler-3@full", 1) }).unwrap();
    assert!(matches!(refused.blocking_wait(), Err(EngineError::Denoiser(_))));
    view.fail(None);
    assert_eq!(images(engine.submit(job("euler-3@full", 1)).unwrap()).len(), 1);
    assert_eq!((view.gate.calls().len(), view.live()), (3, 0));
}

#[test]
fn estimates_are_fetched_only_for_a_listener_with_room_and_without_them_the_images_come() {
    let (engine, view) = watched(8);
    let with = |events| Job { events, ..job("heun-4@full", 1) };
    images(engine.submit(with(None)).unwrap());
    assert_eq!(*view.estimates.lock().unwrap(), 0);
    let (told, mut steps) = tokio::sync::mpsc::channel(2);
    images(engine.submit(with(Some(told))).unwrap());
    assert_eq!(*view.estimates.lock().unwrap(), 2, "there was room for two");
    assert_eq!(std::iter::from_fn(|| steps.blocking_recv()).count(), 2);
    for part in ["estimate", "panic estimate"] {
        view.fail(Some(part));
        let (told, mut steps) = tokio::sync::mpsc::channel(16);
        images(engine.submit(with(Some(told))).unwrap());
        assert_eq!(steps.blocking_recv(), None);
    }
}
