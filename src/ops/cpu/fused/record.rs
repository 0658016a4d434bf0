//! A stopwatch for the layers of a call: the time from the end of one layer to the end of the next is the next one's.

use super::method::Method;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// What a layer does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A convolution of this method and these rows and columns of its kernel.
    Conv(Method, [usize; 2]),
    /// Sums for a GroupNorm.
    Norm,
    /// Scores, softmax and the mixing of values.
    Attention,
    /// Linear layers on the embedding.
    Linear,
    /// A filter that makes a map larger or smaller.
    Resample,
    /// The largest values or the means of neighbours.
    Pool,
    /// A map written down whole.
    Copy,
    /// Arithmetic by element between layers.
    Elementwise,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Conv(Method::Winograd(filtering), [rows, columns]) => {
                write!(f, "winograd {rows}x{columns} {}", filtering.name())
            }
            Self::Conv(Method::Direct, [rows, columns]) => write!(f, "direct {rows}x{columns}"),
            Self::Norm => f.write_str("norm statistics"),
            Self::Attention => f.write_str("attention"),
            Self::Linear => f.write_str("linear"),
            Self::Resample => f.write_str("resample"),
            Self::Pool => f.write_str("pool"),
            Self::Copy => f.write_str("copy"),
            Self::Elementwise => f.write_str("elementwise"),
        }
    }
}

/// A layer that has run.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// Its name in the network's table, such as `enc.28x28_block0.conv0`.
    pub name: String,
    /// What it does.
    pub kind: Kind,
    /// Rows, columns, input channels and output channels of what it makes.
    pub shape: [usize; 4],
    /// Multiply-accumulates by its definition on the whole batch; 0 where those are not what it does.
    pub macs: u64,
    /// How long it took.
    pub time: Duration,
    /// What all threads together spent in each [`Phase`], for a Winograd convolution.
    pub phases: [Duration; 3],
}

/// A phase of a Winograd convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Transforming the input.
    In,
    /// The products.
    Multiply,
    /// Transforming back.
    Out,
}

/// What all threads together have spent in each phase of the layer under way, in nanoseconds.
#[derive(Debug, Default)]
pub struct Phases([AtomicU64; 3]);

/// Times the phases of one task, if anybody wants to know.
pub struct Clock<'a>(Option<(&'a Phases, Instant)>);

impl<'a> Clock<'a> {
    /// A clock that runs.
    #[inline]
    pub fn new(phases: Option<&'a Phases>) -> Self {
        Self(phases.map(|phases| (phases, Instant::now())))
    }

    /// Ends a phase, which may come again.
    #[inline]
    pub fn end(&mut self, phase: Phase) {
        if let Some((phases, start)) = &mut self.0 {
            let now = Instant::now();
            phases.0[phase as usize].fetch_add((now - *start).as_nanos() as u64, Relaxed);
            *start = now;
        }
    }
}

/// The stopwatch.
#[derive(Debug)]
pub struct Recorder {
    layers: Vec<Layer>,
    /// When the last layer ended.
    end: Instant,
    phases: Phases,
}

impl Recorder {
    /// A stopwatch that runs.
    #[expect(clippy::new_without_default, reason = "a clock that has started is no default")]
    pub fn new() -> Self {
        Self { layers: Vec::new(), end: Instant::now(), phases: Phases::default() }
    }

    /// The layers so far, in the order in which they ran.
    pub fn layers(self) -> Vec<Layer> {
        self.layers
    }

    /// For the tasks of the layer under way.
    pub fn phases(&self) -> &Phases {
        &self.phases
    }

    /// Ends a layer, which `name`, `kind`, `shape` and `macs` describe.
    pub fn layer(&mut self, name: fmt::Arguments, kind: Kind, shape: [usize; 4], macs: u64) {
        let time = self.end.elapsed();
        let phases = std::mem::take(&mut self.phases).0.map(|ns| Duration::from_nanos(ns.into_inner()));
        self.layers.push(Layer { name: name.to_string(), kind, shape, macs, time, phases });
        self.end = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::super::method::Filtering;
    use super::*;

    const WINOGRAD: Kind = Kind::Conv(Method::Winograd(Filtering::F4), [3, 3]);

    #[test]
    fn a_layer_has_the_time_since_the_one_before_and_the_phases_since_then() {
        let started = Instant::now();
        let mut recorder = Recorder::new();
        let mut clock = Clock::new(Some(recorder.phases()));
        for phase in [Phase::In, Phase::Multiply, Phase::Out, Phase::In] {
            clock.end(phase);
        }
        recorder.layer(format_args!("{}.conv0", "block"), WINOGRAD, [4, 4, 1, 2], 288);
        Clock::new(None).end(Phase::In);
        recorder.layer(format_args!("norm"), Kind::Norm, [4, 4, 2, 2], 0);
        let layers = recorder.layers();
        assert_eq!(layers.iter().map(|layer| layer.name.as_str()).collect::<Vec<_>>(), ["block.conv0", "norm"]);
        assert!(layers[0].phases.iter().sum::<Duration>() <= layers[0].time);
        assert_eq!(layers[1].phases, [Duration::ZERO; 3]);
        assert!(layers.iter().map(|layer| layer.time).sum::<Duration>() <= started.elapsed());
    }

    #[test]
    fn kinds_say_the_method_and_the_kernel() {
        let kinds = [WINOGRAD, Kind::Conv(Method::Direct, [1, 7]), Kind::Norm];
        assert_eq!(kinds.map(|kind| kind.to_string()), ["winograd 3x3 F4", "direct 1x7", "norm statistics"]);
    }
}
