//! The JSON beside a public checkpoint: the network's options and its preconditioning.

use super::backbone::Arch;
use super::backbone::Backbone;
use super::model::Model;
use crate::diffusion::preconditioning::Preconditioning;
use crate::files::{refuse_foreign, write_whole};
use crate::supernet::groups;
use crate::{Error, Result};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// EDM's standard deviation of the data.
pub const SIGMA_DATA: f64 = 0.5;

/// The kinds of preconditioning, by their names in files and flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// EDM's.
    Edm,
    /// Variance preserving.
    Vp,
    /// Variance exploding.
    Ve,
    /// Variance preserving in the steps of Stable Diffusion.
    #[value(skip)]
    Ddpm,
}

impl Kind {
    /// The preconditioning, for data of this standard deviation.
    pub fn with(self, sigma_data: f64) -> Preconditioning {
        match self {
            Self::Edm => Preconditioning::Edm { sigma_data },
            Self::Vp => Preconditioning::Vp,
            Self::Ve => Preconditioning::Ve,
            Self::Ddpm => Preconditioning::STABLE_DIFFUSION,
        }
    }

    /// That of a preconditioning.
    pub fn of(preconditioning: Preconditioning) -> Self {
        match preconditioning {
            Preconditioning::Edm { .. } => Self::Edm,
            Preconditioning::Vp => Self::Vp,
            Preconditioning::Ve => Self::Ve,
            Preconditioning::Ddpm { .. } => Self::Ddpm,
        }
    }

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Edm => "edm",
            Self::Vp => "vp",
            Self::Ve => "ve",
            Self::Ddpm => "ddpm",
        }
    }
}

/// A JSON file about a network, of which these fields are read: `config`, the network's options; `arch`, what they are of;
/// `preconditioning` (edm, vp, ve or ddpm) and, for edm, `sigma_data`, for ddpm `beta_start`, `beta_end` and `num_train_timesteps`.
#[derive(Debug)]
pub struct PublicConfig<'a> {
    path: &'a Path,
    json: BTreeMap<String, Value>,
}

impl<'a> PublicConfig<'a> {
    /// Reads the file.
    ///
    /// # Errors
    /// If it cannot be read or is no JSON object.
    pub fn open(path: &'a Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(Error::io(path))?;
        refuse_foreign(path, &bytes, "a JSON file")?;
        let json = serde_json::from_slice(&bytes)
            .map_err(|error| Error::input(path.display(), format!("is not a JSON object ({error})")))?;
        Ok(Self { path, json })
    }

    /// The architecture, where the file says one that there is.
    pub fn arch(&self) -> Option<Arch> {
        Arch::named(self.json.get("arch")?.as_str()?)
    }

    /// The backbone of this architecture.
    ///
    /// # Errors
    /// One sentence with the file and the field that is missing or does not fit.
    pub fn backbone(&self, arch: Arch) -> Result<Backbone> {
        let config = self.json.get("config").ok_or_else(|| Error::field(self.path, "config", "is missing"))?;
        let refuse = |problem: String| Error::field(self.path, "config", problem);
        let Value::Object(config) = config else { return Err(refuse("is no object".into())) };
        arch.options(config.clone()).map_err(refuse)
    }

    /// The preconditioning, where the file says it; `sigma_data` is 0.5 where it is not said.
    ///
    /// # Errors
    /// One sentence with the file and the field that does not fit.
    pub fn preconditioning(&self) -> Result<Option<Preconditioning>> {
        let sigma_data = match self.json.get("sigma_data") {
            None => SIGMA_DATA,
            Some(value) => value
                .as_f64()
                .filter(|value| *value > 0.0)
                .ok_or_else(|| Error::field(self.path, "sigma_data", format!("{value} is not a positive number")))?,
        };
        let Some(kind) = self.json.get("preconditioning") else { return Ok(None) };
        let named = |known: &Kind| kind.as_str() == Some(known.as_str());
        match [Kind::Edm, Kind::Vp, Kind::Ve, Kind::Ddpm].iter().find(|known| named(known)) {
            Some(Kind::Ddpm) => self.ddpm().map(Some),
            Some(known) => Ok(Some(known.with(sigma_data))),
            None => Err(Error::field(self.path, "preconditioning", format!("{kind} is none of edm, vp, ve, ddpm"))),
        }
    }

    /// That of Stable Diffusion, with the betas that the file says.
    fn ddpm(&self) -> Result<Preconditioning> {
        let mut written = serde_json::to_value(Preconditioning::STABLE_DIFFUSION).expect("plain data");
        for (ours, theirs) in [
            ("beta_start", "beta_start"),
            ("beta_end", "beta_end"),
            ("steps", "num_train_timesteps"),
            ("predicts", "prediction_type"),
        ] {
            if let Some(value) = self.json.get(theirs) {
                written[ours] = value.clone();
            }
        }
        let refuse =
            |error: serde_json::Error| Error::field(self.path, "num_train_timesteps, prediction_type and betas", error);
        serde_json::from_value(written).map_err(refuse)
    }
}

/// Writes what [`PublicConfig`] reads, and `norm_groups`, which public code needs of an extracted network: the number
/// of groups of each norm over a pipe.
///
/// # Errors
/// [`Error::Io`] if the file cannot be written.
pub fn write(model: &Model, path: &Path) -> Result<()> {
    let (backbone, network) = (&model.card.backbone, &model.network);
    let mut config = serde_json::to_value(backbone).expect("options are plain data");
    let arch = config.as_object_mut().and_then(|config| config.remove("arch"));
    let pipes = &network.spec().pipes;
    let count = |(pipe, name): (usize, &str)| {
        Some((name.to_owned(), groups::count(pipes[pipe].width, pipes[pipe].norm_groups?)))
    };
    let norm_groups: BTreeMap<String, usize> = network.program().pipe_norms().filter_map(count).collect();
    let mut json = json!({ "arch": arch, "config": config, "norm_groups": norm_groups });
    json["preconditioning"] = Kind::of(network.preconditioning()).as_str().into();
    match network.preconditioning() {
        Preconditioning::Edm { sigma_data } => json["sigma_data"] = sigma_data.into(),
        Preconditioning::Ddpm { beta_start, beta_end, steps, predicts } => {
            json["prediction_type"] = json!(predicts);
            json["beta_start"] = beta_start.into();
            json["beta_end"] = beta_end.into();
            json["num_train_timesteps"] = steps.into();
        }
        Preconditioning::Vp | Preconditioning::Ve => {}
    }
    write_whole(path, format!("{json:#}\n").as_bytes())
}
