//! What a command says: its result on stdout, which has to arrive, and lines on stderr, which nothing waits for.
//!
//! A line for stderr is queued and written by a thread of its own. So a log whose disk is full, whose reader has gone, or whose
//! reader has merely stopped to read, can neither end nor stop the work: lines that cannot be written, and lines for
//! which the queue has no place, are dropped and counted, and the count is logged once lines are written again.

use crate::{Error, Result};
use std::collections::VecDeque;
use std::fmt::Display;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Lines that may wait to be written.
const QUEUE: usize = 4096;
/// For how long the end of the process waits for them.
const PATIENCE: Duration = Duration::from_secs(1);
/// Between two tries on a descriptor that somebody has made non-blocking, and that is full.
const RETRY: Duration = Duration::from_millis(10);

/// Writes the result of a command to stdout, with a line break.
///
/// # Errors
/// [`Error::Output`] when it cannot be written: then the command has failed.
pub fn print(result: impl Display) -> Result<()> {
    let mut text = result.to_string();
    if !text.ends_with('\n') {
        text.push('\n');
    }
    let mut stdout = io::stdout().lock();
    write_whole(&mut stdout, &mut text.as_bytes()).and_then(|()| stdout.flush()).map_err(Error::Output)
}

/// Says a line on stderr, if that can be done.
pub fn note(line: impl Display) {
    STDERR.push(format!("{line}\n").into_bytes());
}

/// Lines for stderr that were lost so far.
pub fn lost_lines() -> u64 {
    STDERR.lost.load(Relaxed)
}

/// Waits until all lines are written, but not for a reader who has stopped to read: for the end of the process.
pub fn flush() {
    STDERR.flush(PATIENCE);
}

/// Lets panics be said as a line too: the standard hook writes to stderr itself, and would wait for its reader.
pub fn note_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let backtrace = std::backtrace::Backtrace::capture();
        let backtrace = match backtrace.status() {
            std::backtrace::BacktraceStatus::Captured => format!("\n{backtrace}"),
            _ => String::new(),
        };
        note(format_args!("thread '{}': {panic}{backtrace}", thread.name().unwrap_or("unnamed")));
        // The panic may end the process.
        flush();
    }));
}

/// The writer of log lines: one call of `write` is one line. It never fails and never waits.
#[derive(Clone, Copy, Debug)]
pub struct LogWriter;

impl Write for LogWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        STDERR.push(line.to_vec());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

static STDERR: Lines = Lines::new();

/// A queue of lines and the thread that writes them.
#[derive(Debug)]
struct Lines {
    queue: Mutex<Queue>,
    changed: Condvar,
    lost: AtomicU64,
    /// Whether there is a thread that writes; it is started by the first line.
    writer: OnceLock<bool>,
}

#[derive(Debug)]
struct Queue {
    lines: VecDeque<Vec<u8>>,
    /// Whether a line that has left the queue is being written.
    writing: bool,
}

impl Lines {
    const fn new() -> Self {
        let queue = Queue { lines: VecDeque::new(), writing: false };
        Self { queue: Mutex::new(queue), changed: Condvar::new(), lost: AtomicU64::new(0), writer: OnceLock::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&'static self, line: Vec<u8>) {
        let start = || {
            let thread = std::thread::Builder::new().name("accordion-log".to_owned());
            let say_lost = |lost| tracing::error!(lost, "log lines were lost");
            let write = move || {
                let mut writer = Writer { out: io::stderr(), torn: false, said: 0 };
                loop {
                    writer.write_next(self, say_lost);
                }
            };
            thread.spawn(write).is_ok()
        };
        let mut queue = self.lock();
        if queue.lines.len() < QUEUE && *self.writer.get_or_init(start) {
            queue.lines.push_back(line);
            self.changed.notify_all();
        } else {
            self.lost.fetch_add(1, Relaxed);
        }
    }

    /// Waits for the next line.
    fn take(&self) -> Vec<u8> {
        let mut queue = self.lock();
        loop {
            if let Some(line) = queue.lines.pop_front() {
                queue.writing = true;
                return line;
            }
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until all lines are written, for at most `patience`.
    fn flush(&self, patience: Duration) {
        let end = Instant::now() + patience;
        let mut queue = self.lock();
        while queue.writing || !queue.lines.is_empty() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            queue = self.changed.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Takes lines from a queue to `out`.
struct Writer<W> {
    out: W,
    /// Whether the last line was written in part, so that the next would go on in its middle.
    torn: bool,
    /// The lost lines that were said.
    said: u64,
}

impl<W: Write> Writer<W> {
    /// Waits for a line and writes it. If others were lost before it, `say_lost` is told how many, of all time.
    fn write_next(&mut self, lines: &Lines, say_lost: impl FnOnce(u64)) {
        let mut line = lines.take();
        if self.torn {
            line.insert(0, b'\n');
        }
        let mut left = line.as_slice();
        let written = write_whole(&mut self.out, &mut left);
        if left.len() < line.len() {
            self.torn = !left.is_empty();
        }
        if written.is_err() {
            lines.lost.fetch_add(1, Relaxed);
        }
        lines.lock().writing = false;
        lines.changed.notify_all();
        let lost = lines.lost.load(Relaxed);
        if written.is_ok() && lost > self.said {
            self.said = lost;
            say_lost(lost);
        }
    }
}

/// As [`Write::write_all`], and waits where a non-blocking descriptor is full: whoever shares a terminal or a pipe with us
/// may have made it so. `left` becomes what is not written.
fn write_whole(out: &mut impl Write, left: &mut &[u8]) -> io::Result<()> {
    while !left.is_empty() {
        match out.write(left) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => *left = &left[count..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(RETRY),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines that no thread writes.
    fn lines() -> &'static Lines {
        let lines = Box::leak(Box::new(Lines::new()));
        lines.writer.set(true).unwrap();
        lines
    }

    /// Takes as many bytes at each call as it is told, and fails when it is told none.
    struct Disk {
        room: VecDeque<Option<usize>>,
        written: String,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let room = self.room.pop_front().unwrap_or(Some(usize::MAX)).ok_or(io::ErrorKind::StorageFull)?;
            let count = room.min(bytes.len());
            self.written += std::str::from_utf8(&bytes[..count]).unwrap();
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_that_cannot_be_written_are_counted_and_said_once_when_it_writes_again() {
        let lines = lines();
        // "ab" of "abc", no more; nothing of the next; then there is room again.
        let disk = Disk { room: [Some(2), None, None].into(), written: String::new() };
        let mut writer = Writer { out: disk, torn: false, said: 0 };
        let mut said = Vec::new();
        for line in ["abc\n", "def\n", "ghi\n", "jkl\n"] {
            lines.push(line.as_bytes().to_vec());
            writer.write_next(lines, |lost| said.push(lost));
        }
        assert_eq!(writer.out.written, "ab\nghi\njkl\n");
        assert_eq!(said, [2]);
    }

    #[test]
    fn a_reader_that_has_stopped_to_read_costs_lines_but_no_time() {
        let lines = lines();
        (0..QUEUE + 3).for_each(|line| lines.push(format!("{line}\n").into_bytes()));
        assert_eq!((lines.lock().lines.len(), lines.lost.load(Relaxed)), (QUEUE, 3));
        lines.flush(Duration::ZERO);
        // Once it reads again, what was kept comes first, and then the count.
        let mut writer = Writer { out: Vec::new(), torn: false, said: 0 };
        let mut said = Vec::new();
        (0..QUEUE).for_each(|_| writer.write_next(lines, |lost| said.push(lost)));
        assert!(writer.out.ends_with(format!("\n{}\n", QUEUE - 1).as_bytes()));
        assert_eq!(said, [3]);
        lines.flush(Duration::from_secs(3600));
    }

    #[test]
    fn a_descriptor_that_is_full_for_a_moment_is_waited_for() {
        struct Busy(bool, Vec<u8>);
        impl Write for Busy {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0 = !self.0;
                if self.0 { Err(io::ErrorKind::WouldBlock.into()) } else { self.1.write(&bytes[..1]) }
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut busy = Busy(false, Vec::new());
        write_whole(&mut busy, &mut &b"abc"[..]).unwrap();
        assert_eq!(busy.1, b"abc");
    }
}
