//! Progress of long work: a bar on a terminal, a plain line now and then elsewhere.

use crate::console::note;
use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Time between two plain lines.
const LINE_EVERY: Duration = Duration::from_secs(30);

/// Shows how far some work has come.
pub struct Progress {
    work: Work,
    started: Instant,
    bar: Option<ProgressBar>,
    last_line: Option<Instant>,
}

/// What is done, and in what it is counted.
struct Work {
    name: String,
    unit: &'static str,
    /// Parts that were done before.
    begun: u64,
    total: u64,
}

impl Progress {
    /// Work called `name` of `total` parts, each one of the `unit` (in the plural), of which the first `begun` were done in
    /// another sitting.
    pub fn new(name: &str, unit: &'static str, begun: u64, total: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{prefix} {wide_bar} {msg}");
            ProgressBar::new(total)
                .with_prefix(name.to_string())
                .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        let work = Work { name: name.to_string(), unit, begun, total };
        Self { work, started: Instant::now(), bar, last_line: None }
    }

    /// `done` parts are done; `message` says more.
    pub fn at(&mut self, done: u64, message: &str) {
        let line = || self.work.line(done, self.started.elapsed(), message);
        if let Some(bar) = &self.bar {
            bar.set_position(done);
            bar.set_message(line());
        } else if done >= self.work.total || self.last_line.is_none_or(|last| last.elapsed() >= LINE_EVERY) {
            note(format_args!("{}: {}", self.work.name, line()));
            self.last_line = Some(Instant::now());
        }
    }

    /// The work is over, or stopped.
    pub fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.abandon();
        }
    }
}

impl Work {
    /// What is done after `elapsed`, how fast it went and how long the rest takes at that rate.
    fn line(&self, done: u64, elapsed: Duration, message: &str) -> String {
        let Self { unit, begun, total, .. } = self;
        let mut line = format!("{} of {} {unit}", HumanCount(done), HumanCount(*total));
        let rate = done.saturating_sub(*begun) as f64 / elapsed.as_secs_f64();
        if rate > 0.0 && rate.is_finite() {
            let digits = usize::from(rate < 10.0);
            line += &format!(", {rate:.digits$} {unit}/s");
            if done < *total {
                line += &format!(", {} left", span((total - done) as f64 / rate));
            }
        }
        if !message.is_empty() {
            line += &format!(", {message}");
        }
        line
    }
}

/// A time in the unit in which it has a digit or two.
fn span(seconds: f64) -> String {
    match seconds {
        ..90.0 => format!("{seconds:.0} s"),
        ..5400.0 => format!("{:.0} min", seconds / 60.0),
        _ => format!("{:.1} h", seconds / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_is_done_how_fast_it_went_and_how_long_is_left() {
        let work = Work { name: "full".into(), unit: "images", begun: 3_150, total: 64_000 };
        let line = |done, seconds, message: &str| work.line(done, Duration::from_secs(seconds), message);
        assert_eq!(
            line(12_800, 50, "0.500: loss 1.32"),
            "12,800 of 64,000 images, 193 images/s, 4 min left, 0.500: loss 1.32"
        );
        assert_eq!(line(64_000, 50_000, ""), "64,000 of 64,000 images, 1.2 images/s");
        assert_eq!(line(3_150, 50, ""), "3,150 of 64,000 images", "nothing is known yet");
        assert_eq!([89.0, 5_399.0, 9_000.0].map(span), ["89 s", "90 min", "2.5 h"]);
    }
}
