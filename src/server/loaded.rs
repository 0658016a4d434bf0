//! One loaded model: what draws with it, and what was measured of it.

use crate::engine::Fleet;
use crate::evaluation::profile::{PROFILE, Profile};
use crate::nets::About;
use crate::nets::model::{CARD, SUBNETS};
use crate::nets::text_to_image::DECODER_SUBNETS;
use crate::routing::{Ladder, StepTimes};
use crate::server::state::seconds_since_1970;
use crate::text::Contexts;
use crate::{Error, Result};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A loaded model. Whoever draws with it holds it: when the last one lets go, its engines end and give their memory back.
#[derive(Debug)]
pub struct Loaded {
    /// Its name for clients.
    pub(super) name: String,
    /// Where it was read from, and what was there.
    pub(super) origin: Origin,
    pub(super) fleet: Arc<Fleet>,
    /// From the narrowest to the widest.
    pub(super) subnets: Vec<String>,
    pub(super) ladder: Ladder,
    pub(super) times: StepTimes,
    /// What the qualities of the ladder are.
    pub(super) metric: String,
    /// What encodes prompts, of a model that draws texts.
    pub(super) texts: Option<Arc<Contexts>>,
    /// When it was loaded, in seconds since 1970.
    pub(super) since: u64,
}

impl Loaded {
    /// `fleet` under this name; `texts` encodes its prompts, where it draws texts.
    pub fn new(
        name: impl Into<String>,
        origin: Origin,
        fleet: Fleet,
        texts: Option<Contexts>,
        measured: Measured,
    ) -> Self {
        Self {
            name: name.into(),
            origin,
            subnets: fleet.any().about().subnets.iter().map(|subnet| subnet.name.to_string()).collect(),
            fleet: Arc::new(fleet),
            ladder: measured.ladder,
            times: measured.times,
            metric: measured.metric,
            texts: texts.map(Arc::new),
            since: seconds_since_1970(),
        }
    }

    /// Its name for clients.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The names of its subnets, from the narrowest to the widest.
    pub fn subnets(&self) -> &[String] {
        &self.subnets
    }

    /// What draws its images: for those who ask it for some past HTTP.
    pub fn fleet(&self) -> &Arc<Fleet> {
        &self.fleet
    }

    /// What there is to know of its network.
    pub(super) fn about(&self) -> &About {
        self.fleet.any().about()
    }

    /// The scale of guidance where a request says none: 1, which is off, but for models that draw texts.
    pub(super) fn usual_guidance(&self) -> f64 {
        self.about().usual_guidance()
    }
}

/// A model directory, and what says which version of the model is in it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Origin {
    /// The directory.
    pub directory: PathBuf,
    /// `model.toml`, which has the hashes of the weights, the subnets, the profile, and the subnets of a decoder.
    files: [Vec<u8>; 4],
}

impl Origin {
    /// What is in a directory now.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file that cannot be read; there need be no profile, and no subnets of a decoder.
    pub fn of(directory: &Path) -> Result<Self> {
        let read = |name: &str| {
            let path = directory.join(name);
            std::fs::read(&path).map_err(Error::io(&path))
        };
        let read_if_there = |name: &str| match read(name) {
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            read => read,
        };
        let files = [read(CARD)?, read(SUBNETS)?, read_if_there(PROFILE)?, read_if_there(DECODER_SUBNETS)?];
        Ok(Self { directory: directory.to_owned(), files })
    }
}

/// What is measured of a model, as serving needs it.
#[derive(Clone, Debug)]
pub struct Measured {
    /// The frontier.
    pub ladder: Ladder,
    /// The times of calls.
    pub times: StepTimes,
    /// What the qualities of the ladder are.
    pub metric: String,
}

impl Measured {
    /// The frontier and the times of a profile; a call holds at most `max_batch` samples.
    ///
    /// # Errors
    /// [`Error::Input`] for a profile without plans.
    pub fn new(profile: &Profile, max_batch: usize) -> Result<Self> {
        let mut rows: Vec<(String, Vec<(usize, f64)>)> = Vec::new();
        for row in &profile.latency {
            let point = (row.batch, row.ms / 1e3);
            match rows.iter_mut().find(|(subnet, _)| *subnet == row.subnet) {
                Some((_, points)) => points.push(point),
                None => rows.push((row.subnet.clone(), vec![point])),
            }
        }
        let encode = profile.encode_ms.unwrap_or(0.0) / 1e3;
        let decoders = profile.decode.iter().map(|row| (row.subnet.clone(), row.ms / 1e3)).collect();
        let times = StepTimes::new(rows, max_batch).with_codec(encode, decoders);
        let plans = profile.frontier.iter().map(|rated| (rated.plan.clone(), rated.quality));
        let is_guided = profile.quality.guidance.is_some();
        let ladder = Ladder::of_measured(plans, is_guided, &times)?;
        Ok(Self { ladder, times, metric: profile.quality.metric.to_string() })
    }
}
