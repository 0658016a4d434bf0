//! A model directory: `model.toml`, `supernet.safetensors` and `subnets.toml`, read together or refused together.

use super::about::Canvas;
use super::backbone::Backbone;
use super::network::Network;
use super::text_to_image::{self, Autoencoder, TextToImage, TrainableTexts};
use crate::checkpoint::StateDict;
use crate::classes;
use crate::diffusion::preconditioning::Preconditioning;
use crate::diffusion::schedule::{Process, SigmaRange};
use crate::files::{read_toml, sha256, write_toml};
use crate::labels;
use crate::subnet_name::SubnetName;
use crate::supernet::{Order, Spec, Subnet, Supernet, Widths, ranking, widths_of};
use crate::text::Contexts;
use crate::{Error, Result};
use crate::{ImageShape, Size};
use candle_core::DType;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Version of the directory's TOML files.
const FORMAT: u32 = 1;
/// What the model is; the last file of a directory to be written.
pub const CARD: &str = "model.toml";
/// The weights.
pub const WEIGHTS: &str = "supernet.safetensors";
const SUBNETS: &str = "subnets.toml";
/// The network in whose features the quality of its images is measured, where it has one.
pub const FEATURES: &str = "features.safetensors";

/// `model.toml`: what the model is and how it was made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Card {
    /// Version of the format.
    pub format: u32,
    /// The model's name.
    pub name: String,
    /// Licence of the weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub licence: Option<String>,
    /// Class names by index; empty for an unconditional model.
    #[serde(default)]
    pub classes: Vec<String>,
    /// The noise levels that sampling runs between.
    pub noise: SigmaRange,
    /// How the network is wrapped.
    pub preconditioning: Preconditioning,
    /// The network and its options.
    pub backbone: Backbone,
    /// What it has beside the denoiser, where it draws texts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_to_image: Option<TextToImage>,
    /// Mean and standard deviation of the training data, in [-1, 1].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<DataStatistics>,
    /// By name: the SHA-256 of files beside it, which are refused if they have another.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sha256: BTreeMap<String, String>,
    /// How the model was made: commands, seeds, images seen, time.
    #[serde(default, skip_serializing_if = "toml::Table::is_empty")]
    pub made: toml::Table,
}

/// Whether files are held against their hashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verify {
    /// A file that differs in a bit is refused.
    Yes,
    /// They are taken as they are.
    No,
}

/// Statistics of the training data.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataStatistics {
    /// Mean of all values.
    pub mean: f64,
    /// Standard deviation of all values.
    pub std: f64,
}

/// `subnets.toml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SubnetTable {
    /// Version of the format.
    pub format: u32,
    /// What the ratios are of: `channels`, `macs` or `params`; `none` before allocation.
    pub target: String,
    /// The SHA-256 of the weights that they are subnets of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<String>,
    /// The subnets, from the narrowest to the widest; the last is `full`.
    #[serde(default, rename = "subnet")]
    pub subnets: Vec<Subnet>,
}

/// A loaded model directory.
#[derive(Debug)]
pub struct Model {
    /// `model.toml`.
    pub card: Card,
    /// The network.
    pub network: Network,
    /// The weights.
    pub supernet: Supernet,
    /// `subnets.toml`.
    pub table: SubnetTable,
    /// The directory with the files of its other parts ([`text_to_image::FILES`]).
    parts: Option<PathBuf>,
    /// Weights of parts that are not those of that directory, by file.
    trained: BTreeMap<&'static str, StateDict>,
}

impl Card {
    /// A card of the current format. Classes without names are called by their numbers.
    pub fn new(name: String, backbone: Backbone, preconditioning: Preconditioning, mut classes: Vec<String>) -> Self {
        if classes.is_empty() {
            classes = classes::numbers(backbone.classes());
        }
        Self {
            format: FORMAT,
            name,
            licence: None,
            classes,
            noise: SigmaRange::of(&preconditioning),
            preconditioning,
            backbone,
            text_to_image: None,
            data: None,
            sha256: BTreeMap::new(),
            made: toml::Table::new(),
        }
    }

    /// What the network was trained to undo, at the levels that it is sampled over.
    pub fn process(&self) -> Process {
        Process { preconditioning: self.preconditioning, range: self.noise }
    }

    /// Holds the files of `dir` against their hashes. One that is not there is missed by whoever wants it.
    fn verify(&self, dir: &Path) -> Result<()> {
        for (name, wanted) in &self.sha256 {
            let path = dir.join(name);
            if !path.exists() {
                continue;
            }
            let found = sha256(&path)?;
            if found != *wanted {
                let problem = format!(
                    "is not the file that {CARD} was written with: its SHA-256 is {found}, not {wanted}; copy the directory anew"
                );
                return Err(Error::input(path.display(), problem));
            }
        }
        Ok(())
    }

    /// Brings the class names into the form in which names are compared.
    ///
    /// # Errors
    /// What is wrong with `classes`: an empty name, one that stands twice, or another number of them than the network has.
    fn with_checked_classes(mut self, network: &Network) -> std::result::Result<Self, String> {
        if self.classes.len() != network.classes() {
            return Err(format!("{} names for a network of {} classes", self.classes.len(), network.classes()));
        }
        self.classes = classes::checked(&self.classes)?;
        Ok(self)
    }
}

impl SubnetTable {
    /// Checks what the types cannot say. The error is a place and what is wrong with it.
    fn check(&self, spec: &Spec) -> std::result::Result<(), (String, String)> {
        if self.subnets.last().is_none_or(|last| !last.name.is_full()) {
            return Err(("subnet".to_owned(), "the last subnet must be `full`".to_owned()));
        }
        for (index, subnet) in self.subnets.iter().enumerate() {
            let refuse = |problem: String| (format!("subnet {}", subnet.name), problem);
            let widths = widths_of(spec, subnet).map_err(refuse)?;
            let counts = (spec.parameters(&widths), spec.macs(&widths));
            if counts != (subnet.parameters, subnet.macs) {
                let (parameters, macs) = counts;
                return Err(refuse(format!(
                    "widths give {parameters} parameters and {macs} MACs, which the row denies"
                )));
            }
            if self.subnets[..index].iter().any(|earlier| earlier.name == subnet.name) {
                return Err(refuse("stands twice".to_owned()));
            }
        }
        Ok(())
    }
}

impl Model {
    /// A model in memory whose only subnet is `full`.
    ///
    /// # Errors
    /// As [`Network::new`].
    pub fn unallocated(card: Card, supernet: Supernet) -> Result<Self> {
        let network = Network::new(&card.backbone, card.preconditioning)?;
        let spec = network.spec();
        let full = Subnet::new(spec, 1.0, &spec.full());
        let table = SubnetTable { format: FORMAT, target: "none".into(), weights: None, subnets: vec![full] };
        Self::assemble(card, network, supernet, table)
    }

    /// The same model with another table of subnets: `rows` sorted by cost, `full` added last.
    ///
    /// # Errors
    /// As [`Model::open`], without a file.
    pub fn with_subnets(self, target: &str, mut rows: Vec<Subnet>) -> Result<Self> {
        let spec = self.network.spec();
        rows.retain(|row| !row.name.is_full());
        rows.sort_by_key(|row| row.macs);
        rows.push(Subnet::new(spec, 1.0, &spec.full()));
        let table = SubnetTable { format: FORMAT, target: target.into(), weights: None, subnets: rows };
        Ok(Self {
            parts: self.parts,
            trained: self.trained,
            ..Self::assemble(self.card, self.network, self.supernet, table)?
        })
    }

    /// The same model with the channels of every pipe sorted by `scores`, which are in its current order; its only subnet
    /// is `full`, since the subnets of another order keep other channels.
    ///
    /// # Errors
    /// [`Error::Tensor`] on a device fault.
    pub fn ranked(self, scores: &[Vec<f64>], order: Order) -> Result<Self> {
        let spec = self.network.spec();
        let orders = ranking::order(spec, &self.supernet, scores, order);
        let supernet = self.supernet.permuted(spec, &orders, order)?;
        Ok(Self { parts: self.parts, trained: self.trained, ..Self::unallocated(self.card, supernet)? })
    }

    /// The same model, the files of whose other parts are in `dir`.
    pub fn with_parts_in(self, dir: &Path) -> Self {
        Self { parts: Some(dir.to_owned()), ..self }
    }

    /// The same model, whose other parts are those of `other`.
    pub fn with_parts_of(self, other: &Self) -> Self {
        Self { parts: other.parts.clone(), trained: other.trained.clone(), ..self }
    }

    /// The same model with other values of weights of the part in this file, by their names there: it is for being written.
    ///
    /// # Errors
    /// [`Error::Input`] or [`Error::Io`] if the file cannot be read.
    ///
    /// # Panics
    /// For a name that the file has not, or another number of values.
    pub fn with_trained(mut self, file: &'static str, values: BTreeMap<String, Vec<f32>>) -> Result<Self> {
        if let Some(dir) = &self.parts {
            self.trained.insert(file, text_to_image::tensors(&dir.join(file))?.with_values(values));
        }
        Ok(self)
    }

    fn assemble(card: Card, network: Network, supernet: Supernet, table: SubnetTable) -> Result<Self> {
        // What is refused here is never written: a directory that was would be refused when it is read.
        let card = card.with_checked_classes(&network).map_err(|problem| Error::input("classes", problem))?;
        table.check(network.spec()).map_err(|(place, problem)| Error::input(place, problem))?;
        if let Some(parts) = &card.text_to_image {
            parts.check(&card.backbone)?;
        }
        Ok(Self { card, network, supernet, table, parts: None, trained: BTreeMap::new() })
    }

    /// Reads a model directory, whose files must be those that `model.toml` was written with, to the bit.
    ///
    /// # Errors
    /// One sentence with the file and the field that is missing, damaged, of another version or inconsistent.
    pub fn open(dir: &Path) -> Result<Self> {
        Self::open_with(dir, Verify::Yes)
    }

    /// As [`Self::open`]; the bits of files are read for nothing but this, which takes its time where they are large.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with(dir: &Path, verify: Verify) -> Result<Self> {
        let path = dir.join(CARD);
        let card: Card = read_toml(&path)?;
        check_format(&path, card.format)?;
        let network =
            Network::new(&card.backbone, card.preconditioning).map_err(|error| error.in_table(&path, "backbone."))?;
        let card = card.with_checked_classes(&network).map_err(|problem| Error::field(&path, "classes", problem))?;
        if let Some(parts) = &card.text_to_image {
            parts.check(&card.backbone).map_err(|error| error.in_file(&path))?;
        }
        let spec = network.spec();
        let supernet = Supernet::read(spec, &dir.join(WEIGHTS))?;
        let path = dir.join(SUBNETS);
        let table: SubnetTable = read_toml(&path)?;
        check_format(&path, table.format)?;
        table.check(spec).map_err(|(place, problem)| Error::field(&path, &place, problem))?;
        if let (Some(ours), Some(theirs)) = (card.sha256.get(WEIGHTS), &table.weights)
            && ours != theirs
        {
            let problem = format!("its subnets are of other weights than the {WEIGHTS} of this directory");
            return Err(Error::field(&path, "weights", problem));
        }
        // Last: of a file that is of another kind, or cut off, there is more to say than that its hash is another.
        if verify == Verify::Yes {
            card.verify(dir)?;
        }
        Ok(Self { card, network, supernet, table, parts: Some(dir.to_owned()), trained: BTreeMap::new() })
    }

    /// Writes the directory, file by file, each whole or not at all; weights in `dtype`, other parts as they are. `model.toml` comes
    /// last, with the hashes of the files that are there.
    pub fn write(&self, dir: &Path, dtype: DType) -> Result<()> {
        std::fs::create_dir_all(dir).map_err(Error::io(dir))?;
        self.supernet.write(self.network.spec(), &dir.join(WEIGHTS), dtype)?;
        self.copy_parts(dir)?;
        let card = self.hashed(dir)?;
        self.write_table(&card, dir)?;
        write_toml(&dir.join(CARD), &card)
    }

    /// Copies the files of its other parts, if they are not there.
    fn copy_parts(&self, dir: &Path) -> Result<()> {
        let from = self.parts.as_deref().filter(|from| self.card.text_to_image.is_some() && *from != dir);
        let Some(from) = from else { return Ok(()) };
        text_to_image::FILES.iter().try_for_each(|name| {
            let path = from.join(name);
            match self.trained.get(name) {
                Some(tensors) => tensors.write(&dir.join(name), ""),
                None => std::fs::copy(&path, dir.join(name)).map(drop).map_err(Error::io(&path)),
            }
        })
    }

    /// Writes `model.toml` alone, into the directory that the model was read from, with the hashes of the files that are
    /// there.
    pub fn write_card(&self, dir: &Path) -> Result<()> {
        write_toml(&dir.join(CARD), &self.hashed(dir)?)
    }

    /// The card with the hashes of the files of `dir`.
    fn hashed(&self, dir: &Path) -> Result<Card> {
        let names = [WEIGHTS, ranking::FILE, FEATURES].into_iter().chain(text_to_image::FILES);
        let names = names.filter(|name| dir.join(name).exists());
        let hashed = names.map(|name| Ok((name.to_owned(), sha256(&dir.join(name))?)));
        Ok(Card { sha256: hashed.collect::<Result<_>>()?, ..self.card.clone() })
    }

    /// Writes `subnets.toml` alone, into the directory that the model was read from.
    pub fn write_subnets(&self, dir: &Path) -> Result<()> {
        self.write_table(&self.card, dir)
    }

    fn write_table(&self, card: &Card, dir: &Path) -> Result<()> {
        let weights = card.sha256.get(WEIGHTS).cloned();
        write_toml(&dir.join(SUBNETS), &SubnetTable { weights, ..self.table.clone() })
    }

    /// The index of the subnet of this name; `0.5` is accepted for `0.500`.
    ///
    /// # Errors
    /// One sentence that lists the names.
    pub fn subnet(&self, name: &str) -> Result<usize> {
        let ratio = name.parse().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
        let known = ratio.map_or_else(|| name.parse().ok(), |ratio| Some(SubnetName::of(ratio)));
        self.table.subnets.iter().position(|subnet| known.as_ref() == Some(&subnet.name)).ok_or_else(|| {
            let names: Vec<&str> = self.table.subnets.iter().map(|subnet| &*subnet.name).collect();
            Error::input("subnet", format!("`{name}` is none of {}", names.join(", ")))
        })
    }

    /// The index of the class of this name, in any spelling that reads the same, or of this number.
    ///
    /// # Errors
    /// One sentence that lists the names.
    pub fn class(&self, name: &str) -> Result<usize> {
        labels::find(&self.card.classes, name).ok_or_else(|| {
            let accepted = match self.network.classes() {
                0 => "the model is unconditional".to_string(),
                _ => format!("it takes {}", self.card.classes.join(", ")),
            };
            Error::input("class", format!("`{name}` is not a class of the model: {accepted}"))
        })
    }

    /// The sizes of its pictures, the usual one first.
    pub fn canvases(&self) -> Vec<Canvas> {
        let Some(parts) = &self.card.text_to_image else { return vec![self.image().into()] };
        let canvas = |&size: &Size| {
            let ([rows, columns], Size { height, width }) = (parts.latent_size(size), size);
            let state = ImageShape { height: rows, width: columns, ..self.network.state() };
            Canvas { picture: ImageShape { height, width, channels: parts.vae.out_channels }, state }
        };
        parts.sizes.iter().map(canvas).collect()
    }

    /// The directory with the files of its other parts.
    pub(super) fn parts(&self) -> Option<&Path> {
        self.parts.as_deref()
    }

    /// What encodes its prompts; None for a model that draws no texts.
    ///
    /// # Errors
    /// As [`TextToImage::texts`].
    pub fn contexts(&self) -> Result<Option<Contexts>> {
        let (Some(parts), Some(dir)) = (&self.card.text_to_image, self.parts()) else { return Ok(None) };
        let (encoder, tokenizer) = parts.texts(dir)?;
        Ok(Some(Contexts::new(encoder, tokenizer)))
    }

    /// Its autoencoder; None for a model that draws no texts.
    ///
    /// # Errors
    /// As [`TextToImage::decoder`].
    pub fn autoencoder(&self) -> Result<Option<Autoencoder>> {
        let (Some(parts), Some(dir)) = (&self.card.text_to_image, self.parts()) else { return Ok(None) };
        Ok(Some(Autoencoder { encoder: parts.encoder_network(dir)?, decoder: parts.decoder_network(dir)? }))
    }

    /// Its encoder of texts on weights that gradients are wanted of; None for a model that draws no texts.
    ///
    /// # Errors
    /// As [`TextToImage::texts`].
    pub fn trainable_texts(&self) -> Result<Option<TrainableTexts>> {
        let (Some(parts), Some(dir)) = (&self.card.text_to_image, self.parts()) else { return Ok(None) };
        parts.trainable_texts(dir).map(Some)
    }

    /// Its weights, for a device that gives their memory back while it packs them. The model has none afterwards.
    pub fn take_supernet(&mut self) -> Supernet {
        let none = Supernet { params: Vec::new(), ..self.supernet.clone() };
        std::mem::replace(&mut self.supernet, none)
    }

    /// The size of its images, or of its latents.
    pub fn image(&self) -> ImageShape {
        self.network.image()
    }

    /// Its subnets, from the narrowest to the widest; the last is `full`.
    pub fn subnets(&self) -> &[Subnet] {
        &self.table.subnets
    }

    /// The widths of the subnet of this index.
    pub fn widths(&self, subnet: usize) -> Widths {
        widths_of(self.network.spec(), &self.table.subnets[subnet]).expect("checked when the table was taken")
    }
}

fn check_format(path: &Path, format: u32) -> Result<()> {
    if format == FORMAT {
        Ok(())
    } else {
        Err(Error::field(path, "format", format!("version {format} is not {FORMAT}")))
    }
}
