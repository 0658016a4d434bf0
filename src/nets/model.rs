//! A model directory: `model.toml`, `supernet.safetensors` and `subnets.toml`, read together or refused together.

use super::about::Canvas;
use super::backbone::Backbone;
use super::host_runner::Threads;
use super::network::Network;
use super::program::Program;
use super::runner::Runner;
use super::subnet_table::{FORMAT, SubnetTable, check_format, find};
use super::text_to_image::{self, DECODER, DECODER_SUBNETS, TextToImage, TrainableTexts, VAE};
use crate::checkpoint::StateDict;
use crate::classes;
use crate::diffusion::Plan;
use crate::diffusion::plan::NO_DECODER;
use crate::diffusion::preconditioning::Preconditioning;
use crate::diffusion::schedule::{Process, SigmaRange};
use crate::files::{read_toml, sha256, write_toml};
use crate::labels;
use crate::supernet::{Order, Subnet, Supernet, Widths, ranking};
use crate::text::Contexts;
use crate::{Error, Result};
use crate::{ImageShape, Size};
use candle_core::DType;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What the model is; the last file of a directory to be written.
pub const CARD: &str = "model.toml";
/// The weights.
pub const WEIGHTS: &str = "supernet.safetensors";
/// Its subnets.
pub const SUBNETS: &str = "subnets.toml";
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
    /// Its other parts.
    parts: Option<Parts>,
}

/// What a model has beside its denoiser, where it draws texts.
#[derive(Clone, Debug)]
struct Parts {
    /// The directory with their files, [`text_to_image::FILES`] and [`text_to_image::DECODER_FILES`].
    dir: PathBuf,
    /// The subnets of its decoder, where that has files of its own.
    decoder: Option<SubnetTable>,
    /// Weights that are not those of that directory, by file.
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

    /// The network of its decoder, from latents of the denoiser's own size; None where it draws pictures itself.
    pub(super) fn decoder(&self) -> Option<Program> {
        // Not of the size of pictures that comes first: what subnets cost would change with the order of the sizes.
        let ImageShape { height, width, .. } = self.backbone.image();
        Some(self.text_to_image.as_ref()?.vae.decoder(height, width))
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

impl Model {
    /// A model in memory whose only subnet is `full`.
    ///
    /// # Errors
    /// As [`Network::new`].
    pub fn unallocated(card: Card, supernet: Supernet) -> Result<Self> {
        let network = Network::new(&card.backbone, card.preconditioning)?;
        let table = SubnetTable::unallocated(network.spec());
        Self::assemble(card, network, supernet, table)
    }

    /// The same model with another table of subnets: `rows` sorted by cost, `full` added last.
    ///
    /// # Errors
    /// As [`Model::open`], without a file.
    pub fn with_subnets(self, target: &str, rows: Vec<Subnet>) -> Result<Self> {
        let table = SubnetTable::new(self.network.spec(), target, rows);
        Ok(Self { parts: self.parts, ..Self::assemble(self.card, self.network, self.supernet, table)? })
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
        Ok(Self { parts: self.parts, ..Self::unallocated(self.card, supernet)? })
    }

    /// The same model, the files of whose other parts are in `dir`, its decoder's in that of its autoencoder.
    pub fn with_parts_in(self, dir: &Path) -> Self {
        let parts = Parts { dir: dir.to_owned(), decoder: None, trained: BTreeMap::new() };
        Self { parts: Some(parts), ..self }
    }

    /// The same model, whose other parts are those of `other`.
    pub fn with_parts_of(self, other: &Self) -> Self {
        Self { parts: other.parts.clone(), ..self }
    }

    /// The same model with other values of weights of the part in this file, by their names there: it is for being written.
    ///
    /// # Errors
    /// [`Error::Input`] or [`Error::Io`] if the file cannot be read.
    ///
    /// # Panics
    /// For a name that the file has not, or another number of values.
    pub fn with_trained(mut self, file: &'static str, values: BTreeMap<String, Vec<f32>>) -> Result<Self> {
        if let Some(parts) = &mut self.parts {
            parts.trained.insert(file, text_to_image::tensors(&parts.dir.join(file))?.with_values(values));
            // A decoder with files of its own is that of another autoencoder.
            parts.decoder = parts.decoder.take().filter(|_| file != VAE);
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
        Ok(Self { card, network, supernet, table, parts: None })
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
        let table = SubnetTable::read(spec, &dir.join(SUBNETS), card.sha256.get(WEIGHTS), WEIGHTS)?;
        let decoder = match card.decoder() {
            Some(program) if text_to_image::DECODER_FILES.iter().any(|name| dir.join(name).exists()) => {
                let path = dir.join(DECODER_SUBNETS);
                Some(SubnetTable::read(&program.spec, &path, card.sha256.get(DECODER), DECODER)?)
            }
            _ => None,
        };
        // Last: of a file that is of another kind, or cut off, there is more to say than that its hash is another.
        if verify == Verify::Yes {
            card.verify(dir)?;
        }
        let parts = Some(Parts { dir: dir.to_owned(), decoder, trained: BTreeMap::new() });
        Ok(Self { card, network, supernet, table, parts })
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
        let from = self.parts().filter(|from| self.card.text_to_image.is_some() && *from != dir);
        let Some(from) = from else { return Ok(()) };
        let parts = self.parts.iter();
        let trained = |name: &str| parts.clone().find_map(|parts| parts.trained.get(name));
        // Of another autoencoder, the decoder is another too.
        let of_decoder = text_to_image::DECODER_FILES.into_iter().filter(|name| from.join(name).exists());
        let of_decoder = of_decoder.filter(|_| self.decoder_table().is_some());
        text_to_image::FILES.into_iter().chain(of_decoder).try_for_each(|name| match trained(name) {
            Some(tensors) => tensors.write(&dir.join(name), ""),
            None => copy_file(name, from, dir),
        })
    }

    /// Copies the directory `from` that it was read from, but its profile and the files of its decoder, which is to be another;
    /// `model.toml` has to be written after that.
    ///
    /// # Errors
    /// [`Error::Io`] if a file cannot be read or written.
    pub fn copy_but_decoder(&self, from: &Path, dir: &Path) -> Result<()> {
        let own = [WEIGHTS, SUBNETS, ranking::FILE, FEATURES].into_iter().chain(text_to_image::FILES);
        own.filter(|name| from.join(name).exists()).try_for_each(|name| copy_file(name, from, dir))
    }

    /// Writes `model.toml` alone, into the directory that the model was read from, with the hashes of the files that are
    /// there.
    pub fn write_card(&self, dir: &Path) -> Result<()> {
        write_toml(&dir.join(CARD), &self.hashed(dir)?)
    }

    /// The card with the hashes of the files of `dir`.
    fn hashed(&self, dir: &Path) -> Result<Card> {
        let names = [WEIGHTS, ranking::FILE, FEATURES].into_iter().chain(text_to_image::FILES);
        let names = names.chain([DECODER, text_to_image::DECODER_IMPORTANCE]);
        let names = names.filter(|name| dir.join(name).exists());
        let hashed = names.map(|name| Ok((name.to_owned(), sha256(&dir.join(name))?)));
        Ok(Card { sha256: hashed.collect::<Result<_>>()?, ..self.card.clone() })
    }

    /// Writes `subnets.toml` alone, into the directory that the model was read from.
    pub fn write_subnets(&self, dir: &Path) -> Result<()> {
        self.write_table(&self.card, dir)
    }

    fn write_table(&self, card: &Card, dir: &Path) -> Result<()> {
        self.table.write(&dir.join(SUBNETS), card.sha256.get(WEIGHTS))
    }

    /// The index of the subnet of this name; `0.5` is accepted for `0.500`.
    ///
    /// # Errors
    /// One sentence that lists the names.
    pub fn subnet(&self, name: &str) -> Result<usize> {
        find(&self.table.subnets, name, "subnet")
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
        self.parts.as_ref().map(|parts| &*parts.dir)
    }

    /// The subnets of its decoder as they stand in its directory, where its decoder has files of its own.
    pub(super) fn decoder_table(&self) -> Option<&SubnetTable> {
        self.parts.as_ref()?.decoder.as_ref()
    }

    /// The subnets of its decoder, from the narrowest to the widest, the last `full`; none where it draws pictures itself.
    pub fn decoders(&self) -> Vec<Subnet> {
        let table = || Some(SubnetTable::unallocated(&self.card.decoder()?.spec));
        self.decoder_table().cloned().or_else(table).map_or_else(Vec::new, |table| table.subnets)
    }

    /// Checks that a plan's subnets, and its decoder's, are of this model.
    ///
    /// # Errors
    /// One sentence with the one that is not, and those that are.
    pub fn check_plan(&self, plan: &Plan) -> Result<()> {
        plan.subnets().try_for_each(|subnet| self.subnet(subnet).map(drop))?;
        match (plan.decode.is_full(), self.decoders()) {
            (true, _) => Ok(()),
            (false, decoders) if decoders.is_empty() => Err(Error::input("plan", NO_DECODER)),
            (false, decoders) => find(&decoders, &plan.decode, "decoder").map(drop),
        }
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

    /// Its encoder of texts on weights that gradients are wanted of; None for a model that draws no texts.
    ///
    /// # Errors
    /// As [`TextToImage::texts`].
    pub fn trainable_texts(&self) -> Result<Option<TrainableTexts>> {
        let (Some(parts), Some(dir)) = (&self.card.text_to_image, self.parts()) else { return Ok(None) };
        parts.trainable_texts(dir).map(Some)
    }

    /// The network that does this, and its weights; None where it draws pictures itself.
    ///
    /// # Errors
    /// As [`TextToImage::encoder`].
    pub fn encoder_network(&self) -> Result<Option<(Program, Supernet)>> {
        let (Some(parts), Some(dir)) = (&self.card.text_to_image, self.parts()) else { return Ok(None) };
        parts.encoder_network(dir).map(Some)
    }

    /// What makes the means and logarithms of variances of latents of its pictures; None where it draws pictures itself.
    ///
    /// # Errors
    /// As [`TextToImage::encoder`].
    pub fn encoder(&self, threads: Threads) -> Result<Option<Runner>> {
        let (Some(parts), Some(dir)) = (&self.card.text_to_image, self.parts()) else { return Ok(None) };
        parts.encoder(dir, threads).map(Some)
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
        self.table.widths(self.network.spec()).swap_remove(subnet)
    }
}

fn copy_file(name: &str, from: &Path, to: &Path) -> Result<()> {
    let path = from.join(name);
    std::fs::copy(&path, to.join(name)).map(drop).map_err(Error::io(&path))
}
