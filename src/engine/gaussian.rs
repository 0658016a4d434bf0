//! A denoiser that is known in closed form, with a gate, for tests.

use crate::ImageShape;
use crate::diffusion::{Process, SigmaRange};
use crate::nets::{About, Denoiser, Rows};
use crate::supernet::Subnet;
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex};

/// What the denoiser was asked in one call.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SeenCall {
    pub subnet: usize,
    pub sigma: Vec<f64>,
    pub class: Vec<Option<usize>>,
}

/// What a call does instead of denoising.
pub(crate) enum Fault {
    Error,
    Panic,
    NotFinite,
    /// A panic whose payload panics when dropped: no catch outlives it, so it ends the thread.
    Bomb,
}

#[derive(Default)]
struct State {
    closed: bool,
    /// Calls that have begun.
    entered: usize,
    /// Calls that may still begin while the gate is closed.
    admitted: usize,
    fault: Option<Fault>,
    calls: Vec<SeenCall>,
}

/// Holds and lets go the denoiser's calls, and remembers them.
#[derive(Default)]
pub(crate) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

impl Gate {
    pub fn close(&self) {
        self.state.lock().unwrap().closed = true;
    }

    pub fn open(&self) {
        self.state.lock().unwrap().closed = false;
        self.changed.notify_all();
    }

    /// Lets one more call through the closed gate.
    pub fn admit_one(&self) {
        self.state.lock().unwrap().admitted += 1;
        self.changed.notify_all();
    }

    /// Waits until `calls` calls have reached the gate since the start.
    pub fn wait_for_calls(&self, calls: usize) {
        let state = self.state.lock().unwrap();
        drop(self.changed.wait_while(state, |state| state.entered < calls).unwrap());
    }

    /// What the next call that passes does.
    pub fn fail_next(&self, fault: Fault) {
        self.state.lock().unwrap().fault = Some(fault);
    }

    pub fn calls(&self) -> Vec<SeenCall> {
        self.state.lock().unwrap().calls.clone()
    }

    fn pass(&self, call: SeenCall) -> Option<Fault> {
        let mut state = self.state.lock().unwrap();
        state.entered += 1;
        state.calls.push(call);
        self.changed.notify_all();
        let mut state = self.changed.wait_while(state, |state| state.closed && state.admitted == 0).unwrap();
        state.admitted = state.admitted.saturating_sub(usize::from(state.closed));
        state.fault.take()
    }
}

struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("the payload's drop panics");
    }
}

/// The ideal denoiser of `N(mean of the class, SD^2)` in every pixel: `D = mean + (x - mean) SD^2 / (SD^2 + sigma^2)`.
///
/// A narrower subnet knows the mean less well, so that subnets can be told apart.
pub(crate) struct Gaussian {
    gate: Arc<Gate>,
    about: About,
}

impl Gaussian {
    pub const SHAPE: ImageShape = ImageShape { height: 4, width: 3, channels: 1 };
    /// Its noise levels.
    pub const PROCESS: Process = Process::edm(SigmaRange { min: 0.002, max: 80.0 });
    const WEIGHT_BYTES: usize = 1234;
    const SD: f64 = 0.25;

    /// Classes `low` and `high`; subnets `0.250`, `0.500` and `full`.
    pub fn conditional() -> (Box<Self>, Arc<Gate>) {
        Self::with_classes(&["low", "high"])
    }

    pub fn unconditional() -> (Box<Self>, Arc<Gate>) {
        Self::with_classes(&[])
    }

    /// Of two colour channels, which no image format has.
    pub fn unencodable() -> (Box<Self>, Arc<Gate>) {
        let (mut denoiser, gate) = Self::unconditional();
        denoiser.about.canvases[0].picture.channels = 2;
        (denoiser, gate)
    }

    fn with_classes(classes: &[&str]) -> (Box<Self>, Arc<Gate>) {
        let gate = Arc::new(Gate::default());
        let subnet = |(name, ratio): (&str, f64)| Subnet {
            name: name.parse().unwrap(),
            ratio,
            parameters: (ratio * 1e6) as u64,
            macs: (ratio * 1e9) as u64,
            widths: BTreeMap::new(),
        };
        let subnets = [("0.250", 0.25), ("0.500", 0.5), ("full", 1.0)].map(subnet).to_vec();
        let classes = classes.iter().map(|&name| name.to_owned()).collect();
        let about = About {
            canvases: vec![Self::SHAPE.into()],
            process: Self::PROCESS,
            reads_texts: false,
            inpaints: false,
            classes,
            subnets,
            decoders: vec![],
            weights: None,
            weight_bytes: Self::WEIGHT_BYTES,
        };
        (Box::new(Self { about, gate: gate.clone() }), gate)
    }

    fn mean(&self, subnet: usize, class: Option<usize>) -> f64 {
        let known = self.about.subnets[subnet].ratio;
        known * class.map_or(0.0, |class| if class == 0 { -0.5 } else { 0.5 })
    }
}

impl Denoiser for Gaussian {
    fn about(&self) -> &About {
        &self.about
    }

    fn activation_bytes(&self) -> usize {
        Self::WEIGHT_BYTES / 2
    }

    fn denoise(&mut self, subnet: usize, rows: &Rows) -> Result<Vec<f32>> {
        let (x, class) = (rows.x, rows.classes());
        let sigma: Vec<f64> = rows.levels.iter().map(|level| level.sigma).collect();
        let call = SeenCall { subnet, sigma: sigma.clone(), class: class.clone() };
        match self.gate.pass(call) {
            None => {}
            Some(Fault::Error) => return Err(Error::input("device", "a fault")),
            Some(Fault::Panic) => panic!("a bug in a kernel"),
            Some(Fault::NotFinite) => return Ok(vec![f32::NAN; x.len()]),
            Some(Fault::Bomb) => std::panic::panic_any(Bomb),
        }
        let rows = x.chunks_exact(self.about.state().elements()).zip(&sigma).zip(&class);
        let denoised = rows.flat_map(|((row, sigma), class)| {
            let mean = self.mean(subnet, *class);
            let shrink = Self::SD.powi(2) / (Self::SD.powi(2) + sigma * sigma);
            row.iter().map(move |&x| (mean + (f64::from(x) - mean) * shrink) as f32)
        });
        Ok(denoised.collect())
    }
}
