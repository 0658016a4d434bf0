//! When requests arrive: a timetable that is fixed before the first of them is sent.

use crate::files::write_whole;
use crate::philox::Stream;
use crate::{Error, Result};
use std::fmt;
use std::fmt::Write;
use std::ops::RangeInclusive;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

/// The most requests of a schedule: a bound on what one run can do to a machine.
pub const MOST_REQUESTS: usize = 100_000;
/// The longest schedule.
const LONGEST: Duration = Duration::from_secs(3600);
/// The accepted squared coefficients of variation of gamma gaps.
const CV2: RangeInclusive<f64> = 1.0..=64.0;
/// Of [`Stream::new`], far from those of training, which may share a seed.
const NORMAL_STREAM: u32 = 301;
const UNIFORM_STREAM: u32 = 302;
const BOOST_STREAM: u32 = 303;

/// How arrivals are spread over a run of a given mean rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Process {
    /// Independent of each other: exponential gaps.
    Poisson,
    /// In bursts: gamma gaps with this squared coefficient of variation, that is of shape `1 / cv2`. 1 is Poisson.
    Gamma {
        /// In [`CV2`].
        cv2: f64,
    },
    /// Poisson at half the mean rate for a quarter of the run, then at one and a half of it for a quarter, then again.
    Steps,
    /// Poisson at a rate that rises evenly from 0 to twice the mean.
    Ramp,
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Poisson => f.write_str("poisson"),
            Self::Gamma { cv2 } => write!(f, "gamma:{cv2}"),
            Self::Steps => f.write_str("steps"),
            Self::Ramp => f.write_str("ramp"),
        }
    }
}

impl FromStr for Process {
    type Err = String;

    /// # Errors
    /// One sentence that lists the accepted processes.
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let gamma = |cv2: &str| cv2.parse().ok().filter(|cv2| CV2.contains(cv2)).map(|cv2| Self::Gamma { cv2 });
        let known = match text {
            "poisson" => Some(Self::Poisson),
            "steps" => Some(Self::Steps),
            "ramp" => Some(Self::Ramp),
            _ => text.strip_prefix("gamma:").and_then(gamma),
        };
        let (least, most) = (CV2.start(), CV2.end());
        known.ok_or_else(|| {
            format!(
                "`{text}` is none of poisson, gamma:<squared coefficient of variation, {least} to {most}>, steps, ramp"
            )
        })
    }
}

impl Process {
    /// The gap before arrival `index`, in units of the mean gap.
    fn gap(self, seed: u64, index: u64) -> f64 {
        match self {
            Self::Gamma { cv2 } if cv2 > 1.0 => gamma(1.0 / cv2, seed, index) * cv2,
            // In (0, 1], so that the logarithm is finite.
            _ => -(1.0 - Stream::new(seed, UNIFORM_STREAM, index).uniform(0)).ln(),
        }
    }

    /// The time, as a share of the run, by which a share `work` of its arrivals is expected. Both are 0 to 1.
    fn time(self, work: f64) -> f64 {
        match self {
            Self::Poisson | Self::Gamma { .. } => work,
            Self::Steps => {
                // Half of a run and of its arrivals lie in each pair of a slow and a fast quarter.
                let (pair, work) = ((work * 2.0).floor() / 2.0, (work * 2.0).fract() / 2.0);
                pair + if work < 0.125 { work * 2.0 } else { 0.25 + (work - 0.125) / 1.5 }
            }
            Self::Ramp => work.sqrt(),
        }
    }
}

/// A gamma variate of a shape below 1 and scale 1: that of `shape + 1` by rejection, and Marsaglia and Tsang's boost
/// (2000, "A simple method for generating gamma variables", sections 3 and 6).
fn gamma(shape: f64, seed: u64, index: u64) -> f64 {
    let above = Stream::new(seed, BOOST_STREAM, index).uniform(0);
    gamma_above_one(shape + 1.0, seed, index) * (1.0 - above).powf(1.0 / shape)
}

fn gamma_above_one(shape: f64, seed: u64, index: u64) -> f64 {
    let (normals, uniforms) = (Stream::new(seed, NORMAL_STREAM, index), Stream::new(seed, UNIFORM_STREAM, index));
    let d = shape - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    let attempt = |attempt| {
        let x = normals.normal(attempt);
        let v = (1.0 + c * x).powi(3);
        let u = 1.0 - uniforms.uniform(attempt);
        (v > 0.0 && u.ln() < 0.5 * x * x + d * (1.0 - v + v.ln())).then_some(d * v)
    };
    // More than 95 of 100 attempts succeed.
    (0..).find_map(attempt).expect("an endless sequence of attempts")
}

/// The intended send time of every request, from the start of a run, in ascending order and whole microseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    times: Vec<Duration>,
}

impl Schedule {
    /// Arrivals of `process` at `rate` a second for `run`, after arrivals of the same gaps at an even rate for `warmup`.
    ///
    /// # Errors
    /// One sentence when there would be none after `warmup`, or more than [`MOST_REQUESTS`].
    pub fn draw(process: Process, rate: f64, warmup: Duration, run: Duration, seed: u64) -> Result<Self> {
        let expected = rate * (warmup + run).as_secs_f64();
        if !(rate > 0.0 && expected <= MOST_REQUESTS as f64 && warmup + run <= LONGEST) {
            let (seconds, longest) = ((warmup + run).as_secs_f64(), LONGEST.as_secs());
            return Err(Error::input(
                "schedule",
                format!(
                    "{seconds} s at {rate:.3} requests/s are not accepted: at most {MOST_REQUESTS} requests and {longest} s"
                ),
            ));
        }
        let (warm, total) = (rate * warmup.as_secs_f64(), rate * run.as_secs_f64());
        let mut times = Vec::new();
        let mut work = 0.0;
        while times.len() < MOST_REQUESTS {
            work += process.gap(seed, times.len() as u64);
            if work >= warm + total {
                break;
            }
            let time = if work < warm {
                work / rate
            } else {
                warmup.as_secs_f64() + run.as_secs_f64() * process.time((work - warm) / total)
            };
            times.push(Duration::from_micros((time * 1e6).round() as u64));
        }
        Self { times }.checked(warmup).map_err(|problem| Error::input("schedule", problem))
    }

    /// Reads a trace: one arrival time in seconds a line, ascending; `#` begins a comment.
    ///
    /// # Errors
    /// One sentence with the file and the line, or when nothing arrives after `warmup`.
    pub fn read(path: &Path, warmup: Duration) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        let mut times: Vec<Duration> = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let number = line.split('#').next().unwrap_or_default().trim();
            if number.is_empty() {
                continue;
            }
            let refuse = |problem| Err(Error::input(format!("{}, line {}", path.display(), index + 1), problem));
            let seconds = number.parse().ok().filter(|seconds| (0.0..=LONGEST.as_secs_f64()).contains(seconds));
            let Some(seconds) = seconds else {
                return refuse(format!("`{number}` is not a number of seconds from 0 to {}", LONGEST.as_secs()));
            };
            let time = Duration::from_micros((seconds * 1e6_f64).round() as u64);
            if times.last().is_some_and(|last| *last > time) {
                return refuse(format!("{number} is earlier than the line before"));
            }
            if times.len() == MOST_REQUESTS {
                return refuse(format!("a trace has at most {MOST_REQUESTS} arrivals"));
            }
            times.push(time);
        }
        Self { times }.checked(warmup).map_err(|problem| Error::input(path.display(), problem))
    }

    /// Writes the trace that [`Self::read`] reads, with `title` as its first line.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, path: &Path, title: &str) -> Result<()> {
        let mut text = format!("# {title}\n");
        for time in &self.times {
            writeln!(text, "{}.{:06}", time.as_secs(), time.subsec_micros()).expect("a string takes everything");
        }
        write_whole(path, text.as_bytes())
    }

    /// The times.
    pub fn times(&self) -> &[Duration] {
        &self.times
    }

    fn checked(self, warmup: Duration) -> std::result::Result<Self, String> {
        match self.times.last() {
            Some(last) if *last >= warmup => Ok(self),
            _ => Err(format!("no request arrives after the {} s of warm-up", warmup.as_secs_f64())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn draw(process: Process, rate: f64, seconds: u32, seed: u64) -> Vec<f64> {
        let schedule = Schedule::draw(process, rate, Duration::ZERO, seconds * SECOND, seed).unwrap();
        schedule.times().iter().map(Duration::as_secs_f64).collect()
    }

    /// Mean and squared coefficient of variation.
    fn moments(values: &[f64]) -> (f64, f64) {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / n;
        (mean, variance / mean / mean)
    }

    #[test]
    fn gaps_have_the_mean_and_the_variation_that_were_asked() {
        for (process, cv2) in [
            (Process::Poisson, 1.0),
            (Process::Gamma { cv2: 1.0 }, 1.0),
            (Process::Gamma { cv2: 2.0 }, 2.0),
            (Process::Gamma { cv2: 4.0 }, 4.0),
            (Process::Gamma { cv2: 8.0 }, 8.0),
        ] {
            for seed in 0..3 {
                let gaps: Vec<f64> = (0..200_000).map(|index| process.gap(seed, index)).collect();
                let (mean, variation) = moments(&gaps);
                // Five standard errors of the mean; the variation's own spread grows with it.
                assert!((mean - 1.0).abs() < 5.0 * (cv2 / 200_000.0_f64).sqrt(), "{process} {seed}: {mean}");
                assert!((variation / cv2 - 1.0).abs() < 0.1, "{process} {seed}: {variation}");
            }
        }
    }

    #[test]
    fn the_rejection_sampler_has_the_moments_of_its_distribution() {
        for shape in [1.0, 1.125, 2.0, 5.0] {
            let values: Vec<f64> = (0..100_000).map(|index| gamma_above_one(shape, 9, index)).collect();
            let (mean, cv2) = moments(&values);
            assert!((mean / shape - 1.0).abs() < 0.02 && (cv2 * shape - 1.0).abs() < 0.05, "{shape}: {mean} {cv2}");
        }
    }

    #[test]
    fn steps_are_slow_and_fast_by_quarters_and_a_ramp_rises() {
        let quarters = |process| {
            let times = draw(process, 500.0, 40, 7);
            [0, 1, 2, 3].map(|quarter| {
                let within = (10.0 * f64::from(quarter))..(10.0 * f64::from(quarter + 1));
                times.iter().filter(|time| within.contains(time)).count() as f64 / 5000.0
            })
        };
        for (process, want) in [
            (Process::Poisson, [1.0, 1.0, 1.0, 1.0]),
            (Process::Steps, [0.5, 1.5, 0.5, 1.5]),
            (Process::Ramp, [0.25, 0.75, 1.25, 1.75]),
        ] {
            let got = quarters(process);
            assert!(got.iter().zip(want).all(|(got, want)| (got - want).abs() < 0.08), "{process}: {got:?}");
        }
    }

    #[test]
    fn the_warm_up_comes_before_the_shape_of_the_run() {
        let schedule = Schedule::draw(Process::Ramp, 500.0, 10 * SECOND, 10 * SECOND, 3).unwrap();
        let count =
            |from, to| schedule.times().iter().filter(|&&t| t >= from * SECOND && t < to * SECOND).count() as f64;
        assert!((count(0, 10) / 5000.0 - 1.0).abs() < 0.08, "even before");
        assert!((count(10, 15) / 1250.0 - 1.0).abs() < 0.15, "a quarter of the run's in its first half");
    }

    #[test]
    fn a_schedule_that_was_saved_is_read_back_as_it_was() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let schedule = Schedule::draw(Process::Gamma { cv2: 8.0 }, 40.0, SECOND, 20 * SECOND, 5).unwrap();
        schedule.write(file.path(), "gamma:8").unwrap();
        assert_eq!(Schedule::read(file.path(), SECOND).unwrap(), schedule);
    }

    #[test]
    fn a_broken_trace_is_refused_with_its_line() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (text, says) in [
            ("0.5\n# a comment\nsoon", ", line 3: `soon` is not a number of seconds from 0 to 3600"),
            ("0.5\n-1", ", line 2: `-1` is not"),
            ("nan", ", line 1: `nan` is not"),
            ("3601", ", line 1: `3601` is not"),
            ("2\n1.5", ", line 2: 1.5 is earlier than the line before"),
            ("0.25", ": no request arrives after the 1 s of warm-up"),
            ("", ": no request arrives"),
        ] {
            std::fs::write(file.path(), text).unwrap();
            let message = Schedule::read(file.path(), SECOND).unwrap_err().to_string();
            assert!(message.contains(says) && !message.contains('\n'), "{text:?}: {message}");
        }
    }

    #[test]
    fn a_schedule_without_requests_or_with_too_many_is_refused() {
        for (rate, seconds) in [(0.0, 10), (1e-9, 10), (1e6, 10), (f64::NAN, 10), (1.0, 3601)] {
            let drawn = Schedule::draw(Process::Poisson, rate, Duration::ZERO, seconds * SECOND, 1);
            assert!(matches!(drawn, Err(Error::Input { .. })), "{rate} for {seconds} s");
        }
    }

    #[test]
    fn a_process_is_read_as_it_is_written() {
        for text in ["poisson", "gamma:4", "gamma:2.5", "steps", "ramp"] {
            assert_eq!(text.parse::<Process>().unwrap().to_string(), text);
        }
        for text in ["", "Poisson", "gamma", "gamma:0.5", "gamma:nan", "gamma:65", "steps:2"] {
            assert!(text.parse::<Process>().unwrap_err().contains("poisson, gamma:<"), "{text}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_schedule_ascends_within_its_run_and_depends_on_its_seed_alone(
            process in prop_oneof![
                Just(Process::Poisson),
                (1.0..8.0).prop_map(|cv2| Process::Gamma { cv2 }),
                Just(Process::Steps),
                Just(Process::Ramp),
            ],
            rate in 20.0..200.0_f64,
            warmup in 0..3u32,
            seed in any::<u64>(),
        ) {
            let draw = |seed| Schedule::draw(process, rate, warmup * SECOND, 20 * SECOND, seed).unwrap();
            let schedule = draw(seed);
            prop_assert!(schedule.times().is_sorted());
            prop_assert!(schedule.times().iter().all(|&time| time <= (warmup + 20) * SECOND));
            // At least 400 arrivals are expected, whose number varies with a variance of cv2 times that: seven
            // standard deviations, and what a gap begun outside adds.
            let expected = rate * f64::from(warmup + 20);
            prop_assert!((schedule.times().len() as f64 - expected).abs() < 7.0 * (8.0 * expected).sqrt() + 8.0);
            prop_assert_eq!(&draw(seed), &schedule);
            prop_assert_ne!(&draw(seed.wrapping_add(1)), &schedule);
        }
    }
}
