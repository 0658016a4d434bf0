//! The JSON beside a public checkpoint: the network's options and its preconditioning.

use super::backbone::Backbone;
use super::network::Network;
use crate::diffusion::preconditioning::Preconditioning;
use crate::files::{refuse_foreign, write_whole};
use crate::supernet::groups;
use crate::{Error, Result};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// Reads `config`, `preconditioning` (edm, vp or ve) and, for edm, `sigma_data` (0.5 without it) of a SongUNet. Other
/// fields of the file are passed over.
///
/// # Errors
/// One sentence with the file and the field that is missing or does not fit.
pub fn read(path: &Path) -> Result<(Backbone, Preconditioning)> {
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    refuse_foreign(path, &bytes, "a JSON file")?;
    let mut json: BTreeMap<String, Value> = serde_json::from_slice(&bytes)
        .map_err(|error| Error::input(path.display(), format!("is not a JSON object ({error})")))?;
    let config = json.remove("config").ok_or_else(|| Error::field(path, "config", "is missing"))?;
    let mut config = config;
    config["arch"] = json.remove("arch").unwrap_or_else(|| "song-unet".into());
    let backbone: Backbone = serde_json::from_value(config).map_err(|error| Error::field(path, "config", error))?;
    let sigma_data = match json.get("sigma_data") {
        None => 0.5,
        Some(value) => value
            .as_f64()
            .filter(|value| *value > 0.0)
            .ok_or_else(|| Error::field(path, "sigma_data", format!("{value} is not a positive number")))?,
    };
    let preconditioning = match json.get("preconditioning").map(|kind| (kind, kind.as_str())) {
        Some((_, Some("edm"))) => Preconditioning::Edm { sigma_data },
        Some((_, Some("vp"))) => Preconditioning::Vp,
        Some((_, Some("ve"))) => Preconditioning::Ve,
        Some((other, _)) => {
            return Err(Error::field(path, "preconditioning", format!("{other} is none of edm, vp, ve")));
        }
        None => return Err(Error::field(path, "preconditioning", "is missing; give edm, vp or ve")),
    };
    Ok((backbone, preconditioning))
}

/// Writes what [`read`] reads, and `norm_groups`, which public code needs of an extracted network: the number
/// of groups of each norm over a pipe.
///
/// # Errors
/// [`Error::Io`] if the file cannot be written.
pub fn write(backbone: &Backbone, network: &Network, path: &Path) -> Result<()> {
    let mut config = serde_json::to_value(backbone).expect("options are plain data");
    let arch = config.as_object_mut().and_then(|config| config.remove("arch"));
    let pipes = network.spec().pipes.iter();
    let norm_groups: BTreeMap<String, usize> = pipes
        .filter_map(|pipe| Some((format!("{}.norm1", pipe.block), groups::count(pipe.width, pipe.norm_groups?))))
        .collect();
    let mut json = json!({ "arch": arch, "config": config, "norm_groups": norm_groups });
    json["preconditioning"] = match network.preconditioning() {
        Preconditioning::Vp => "vp".into(),
        Preconditioning::Ve => "ve".into(),
        Preconditioning::Edm { sigma_data } => {
            json["sigma_data"] = sigma_data.into();
            "edm".into()
        }
    };
    write_whole(path, format!("{json:#}\n").as_bytes())
}
