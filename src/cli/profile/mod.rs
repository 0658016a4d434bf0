//! `accordion profile`: what a model costs on this machine and what its plans are worth, for the server.

mod plot;
mod report;

use super::device::Device;
use crate::console::{note, print};
use crate::evaluation::profile::{PROFILE, Profile};
use crate::evaluation::prompted::Examples;
use crate::evaluation::survey::{self, Effort};
use crate::evaluation::yardstick::Metric;
use crate::files::{check_writable, write_whole};
use crate::nets::model::{FEATURES, WEIGHTS};
use crate::nets::text_to_image::DECODER;
use crate::nets::{Model, Threads};
use crate::training::progress::Progress;
use crate::{Error, Result};
use report::Summary;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Images of a plan that is decided on: without a flag, with --thorough, and where they are compared with a reference's.
const IMAGES: usize = 2_000;
const THOROUGH: usize = 10_000;
const IMAGES_TO_REFERENCE: usize = 40;

/// Measure what the server must know of this machine, into the model directory.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Model directory.
    #[arg(long, env = "ACCORDION_MODEL", default_value = "models/fashion-mnist")]
    model: PathBuf,
    /// Samples of a call, several numbers separated by commas; powers of two without it.
    #[arg(long, value_delimiter = ',', value_parser = super::batch)]
    batches: Vec<usize>,
    /// The largest batch, where --batches does not say which.
    #[arg(long, default_value = "64", conflicts_with = "batches", value_parser = super::batch)]
    max_batch: usize,
    #[command(flatten)]
    device: Device,
    /// Threads that compute where it is the CPU; one for each core without it.
    #[arg(long, value_parser = super::threads)]
    threads: Option<usize>,
    /// Bind each thread but the first to a core of its own.
    #[arg(long)]
    pin: bool,
    /// Seconds for each subnet and batch.
    #[arg(long, default_value = "0.5", value_parser = super::seconds)]
    seconds: Duration,
    /// What the quality of a plan is made of: fd, the distance of its images from real ones in the model's features, the default
    /// where it has some (`accordion train-features`); or mse-to-reference, that to the images of a reference plan.
    #[arg(long)]
    metric: Option<Metric>,
    /// Images of each plan that is decided on: seeds from 0, with classes in turn. 2,000 without it, or 40 where they are compared
    /// with a reference's.
    #[arg(long, value_parser = super::images)]
    images: Option<usize>,
    /// 10,000 images of each plan that is decided on, as the shipped profile has.
    #[arg(long, conflicts_with_all = ["images", "quick"])]
    thorough: bool,
    /// Only the times, in seconds, where there is a profile whose qualities can be kept; else those of a few plans too.
    #[arg(long, conflicts_with_all = ["images", "metric", "plot"])]
    quick: bool,
    /// The file, if not `profile.toml` in the model directory.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Draw the quality of every plan that was measured against its time, and the frontier, into this SVG file.
    #[arg(long)]
    plot: Option<PathBuf>,
}

impl Args {
    /// Runs the subcommand.
    pub fn run(self) -> Result<()> {
        let model = Model::open(&self.model)?;
        let out = self.out.clone().unwrap_or_else(|| self.model.join(PROFILE));
        for path in [Some(&out), self.plot.as_ref()].into_iter().flatten() {
            check_writable(path)?;
        }
        let batches: Vec<usize> = self.batches().into_iter().collect();
        let most = batches.iter().copied().max().unwrap_or(1);
        let mut opened = self.device.open(&model, most, Threads { count: self.threads, pin: self.pin })?;
        let mut shown = Shown::default();
        let hashes = &model.card.sha256;
        let (weights, decoder) = (hashes.get(WEIGHTS).cloned(), hashes.get(DECODER).cloned());
        if self.quick {
            let effort = Effort::Quick { max_batch: most };
            let profile = match out.exists() {
                true => {
                    let profile = Profile::open(&out)?;
                    profile.check_against(model.subnets(), &model.decoders(), hashes, &out)?;
                    profile.measured_here(&mut *opened, &effort, &mut |now| shown.at(&now))?
                }
                false => {
                    let examples = Examples::encoded(model.contexts()?.as_ref())?;
                    let measured = Profile::measure(&mut *opened, &examples, &effort, None, &mut |now| shown.at(&now))?;
                    measured.profile
                }
            };
            shown.finish();
            return finish(Profile { weights, decoder, ..profile }, &out);
        }
        let features = self.features()?;
        let images = self.images.unwrap_or(match features {
            Some(_) if self.thorough => THOROUGH,
            Some(_) => IMAGES,
            None => IMAGES_TO_REFERENCE,
        });
        let effort = Effort::Thorough { batches, time: self.seconds, images };
        note(format_args!(
            "this takes about {}",
            minutes(survey::expected(&mut *opened, &effort, features.is_some())?)
        ));
        let examples = Examples::encoded(model.contexts()?.as_ref())?;
        let survey =
            Profile::measure(&mut *opened, &examples, &effort, features.as_deref(), &mut |now| shown.at(&now))?;
        shown.finish();
        if let Some(path) = &self.plot {
            write_whole(path, plot::svg(&model.card.name, &survey)?.as_bytes())?;
        }
        if let Some((correlation, plans)) = survey.foretold {
            note(format_args!(
                "rank correlation of the first round with the last, over its {plans} plans: {correlation:.3}"
            ));
        }
        finish(Profile { weights, decoder, ..survey.profile }, &out)
    }

    /// The file of the features that quality is measured in; `None` where it is measured by a reference.
    fn features(&self) -> Result<Option<PathBuf>> {
        let path = self.model.join(FEATURES);
        match self.metric {
            Some(Metric::MseToReference) => Ok(None),
            Some(Metric::Fd) if !path.exists() => {
                let problem =
                    "is not there: make it with `accordion train-features`, or give --metric mse-to-reference";
                Err(Error::input(path.display(), problem))
            }
            _ => Ok(path.exists().then_some(path)),
        }
    }

    fn batches(&self) -> BTreeSet<usize> {
        if self.batches.is_empty() {
            let powers = (0..).map(|power| 1 << power).take_while(|&batch| batch < self.max_batch);
            powers.chain([self.max_batch]).collect()
        } else {
            self.batches.iter().copied().collect()
        }
    }
}

/// Writes the profile and prints it.
fn finish(profile: Profile, out: &Path) -> Result<()> {
    profile.write(out)?;
    print(Summary(&profile))
}

/// A time for people.
fn minutes(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..90 => format!("{} s", seconds.max(1)),
        seconds => format!("{} min", (seconds + 30) / 60),
    }
}

/// What a survey is doing, as a bar or lines for each part of it.
#[derive(Default)]
struct Shown {
    /// The part, and how many plans or rounds it has: another number is the next of several rounds of plans.
    now: Option<((&'static str, usize), Progress)>,
}

impl Shown {
    fn at(&mut self, progress: &survey::Progress<'_>) {
        let part = (progress.part, progress.total);
        if self.now.as_ref().is_none_or(|(now, _)| *now != part) {
            self.finish();
            let unit = if progress.part == "latency" { "rounds" } else { "plans" };
            self.now = Some((part, Progress::new(progress.part, unit, 0, progress.total as u64)));
        }
        if let Some((_, bar)) = &mut self.now {
            bar.at(progress.done as u64, &progress.plan.map(ToString::to_string).unwrap_or_default());
        }
    }

    fn finish(&mut self) {
        if let Some((_, mut bar)) = self.now.take() {
            bar.finish();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn batches_are_powers_of_two_up_to_the_largest_unless_they_are_given() {
        let batches = |args: &[&str]| {
            let line = Line::try_parse_from([&["profile"], args].concat()).map_err(|error| error.kind())?;
            Ok::<_, clap::error::ErrorKind>(line.args.batches().into_iter().collect::<Vec<_>>())
        };
        assert_eq!(batches(&[]), Ok(vec![1, 2, 4, 8, 16, 32, 64]));
        assert_eq!(batches(&["--max-batch", "12"]), Ok(vec![1, 2, 4, 8, 12]));
        assert_eq!(batches(&["--max-batch", "1"]), Ok(vec![1]));
        assert_eq!(batches(&["--batches", "3,1,3"]), Ok(vec![1, 3]));
        assert!(batches(&["--batches", "0"]).is_err());
        assert!(batches(&["--batches", "1", "--max-batch", "2"]).is_err());
    }
}
