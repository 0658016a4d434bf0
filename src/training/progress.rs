//! Progress of long work: a bar on a terminal, a plain line now and then elsewhere.

use crate::console::note;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Time between two plain lines.
const LINE_EVERY: Duration = Duration::from_secs(30);

/// Shows how far some work has come.
pub struct Progress {
    name: String,
    total: u64,
    bar: Option<ProgressBar>,
    last_line: Option<Instant>,
}

impl Progress {
    /// Work called `name` of `total` parts.
    pub fn new(name: &str, total: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{prefix} {wide_bar} {pos}/{len} {eta} {msg}");
            ProgressBar::new(total)
                .with_prefix(name.to_string())
                .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        Self { name: name.to_string(), total, bar, last_line: None }
    }

    /// `done` parts are done; `message` says more.
    pub fn at(&mut self, done: u64, message: &str) {
        if let Some(bar) = &self.bar {
            bar.set_position(done);
            bar.set_message(message.to_string());
        } else if done >= self.total || self.last_line.is_none_or(|last| last.elapsed() >= LINE_EVERY) {
            note(format_args!("{}: {done}/{} {message}", self.name, self.total));
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
