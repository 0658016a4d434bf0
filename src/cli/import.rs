//! `accordion import`: a public checkpoint becomes a model directory.

use crate::checkpoint::lora::{self, Lora};
use crate::files::{check_vacant, write_directory};
use crate::nets::Model;
use crate::nets::backbone::Arch;
use crate::nets::model::Card;
use crate::nets::public_config::Kind;
use crate::nets::recognition::pipeline::{self, Pipeline};
use crate::nets::recognition::{Hints, find};
use crate::supernet::Supernet;
use crate::{Error, Result, checkpoint, classes, console};
use candle_core::DType;
use std::path::PathBuf;

/// Turn a public checkpoint into a model directory.
///
/// Read are safetensors, files of `torch.save` (.pt, .pth, .ckpt) and NVlabs' pickles (.pkl). No code in them is run.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The checkpoint, or a directory with one and maybe a JSON file as of --config; or a pipeline of Stable Diffusion 1.x, as
    /// diffusers lays one out or in one file.
    #[arg(value_name = "FILE_OR_DIR", env = "ACCORDION_CHECKPOINT")]
    checkpoint: PathBuf,
    /// The architecture, where it cannot be told.
    #[arg(long, env = "ACCORDION_ARCH")]
    arch: Option<Arch>,
    /// JSON file with `config`, the network's options, and `preconditioning` (edm, vp or ve), where these cannot be told. For a
    /// pipeline in one file: a directory with its tokenizer/ and, where they are not those of Stable Diffusion 1.5, the configs of
    /// its networks, as diffusers lays them out.
    #[arg(long, env = "ACCORDION_CONFIG")]
    config: Option<PathBuf>,
    /// The dictionary in the file that holds the network, such as `ema`; with dots between keys. For a file with several.
    #[arg(long, env = "ACCORDION_CHECKPOINT_KEY")]
    key: Option<String>,
    /// What stands before every name; without it any of `module.`, `model.` and `_orig_mod.`, or nothing. For a file with two
    /// networks.
    #[arg(long, env = "ACCORDION_PREFIX")]
    prefix: Option<String>,
    /// How the network was trained to see noise, where neither the file nor --config says it.
    #[arg(long, env = "ACCORDION_PRECONDITIONING")]
    preconditioning: Option<Kind>,
    /// A LoRA to add to a pipeline's weights, as FILE or FILE:SCALE; may be given several times. Names are those of kohya's scripts and
    /// of diffusers.
    #[arg(long, value_name = "FILE[:SCALE]")]
    lora: Vec<lora::Wanted>,
    /// The model directory to make.
    #[arg(long, env = "ACCORDION_OUT")]
    out: PathBuf,
    /// The model's name; the directory's without it.
    #[arg(long, env = "ACCORDION_NAME")]
    name: Option<String>,
    /// Class names in the order of the labels, separated by commas.
    #[arg(long, env = "ACCORDION_CLASSES", value_delimiter = ',')]
    classes: Vec<String>,
}

impl Args {
    /// Runs the subcommand.
    pub fn run(self) -> Result<()> {
        check_vacant(&self.out)?;
        if let Some(pipeline) = pipeline::open(&self.checkpoint, self.config.as_deref())? {
            return self.import_pipeline(pipeline);
        }
        let hints = Hints {
            arch: self.arch,
            config: self.config.as_deref(),
            key: self.key.as_deref(),
            prefix: self.prefix.as_deref(),
            preconditioning: self.preconditioning,
        };
        if let Some(lora) = self.lora.first() {
            let problem = format!("{} is added to pipelines of Stable Diffusion alone", lora.path.display());
            return Err(Error::input("--lora", problem));
        }
        let found = find(&checkpoint::open(&self.checkpoint)?, &hints)?;
        let refuse = |problem: String| Error::input("--classes", problem);
        let classes = classes::checked(&self.classes).map_err(refuse)?;
        let network = &found.network;
        if !classes.is_empty() && classes.len() != network.classes() {
            return Err(refuse(format!("{} names for a network of {} classes", classes.len(), network.classes())));
        }
        let params = found.params()?;
        console::note(format_args!("import: {found}"));
        let card = Card::new(self.name(), found.backbone, network.preconditioning(), classes);
        let model = Model::unallocated(card, Supernet::original(network.spec(), params))?;
        write_directory(&self.out, |dir| model.write(dir, DType::F32))
    }

    fn name(&self) -> String {
        let directory = || self.out.file_name().unwrap_or_default().to_string_lossy().into_owned();
        self.name.clone().unwrap_or_else(directory)
    }

    fn import_pipeline(&self, pipeline: Pipeline) -> Result<()> {
        let given = [
            ("--arch", self.arch.is_some()),
            ("--key", self.key.is_some()),
            ("--prefix", self.prefix.is_some()),
            ("--preconditioning", self.preconditioning.is_some()),
            ("--classes", !self.classes.is_empty()),
        ];
        if let Some((flag, _)) = given.into_iter().find(|(_, given)| *given) {
            return Err(Error::input(
                flag,
                format!("says nothing of a pipeline, which {} is", self.checkpoint.display()),
            ));
        }
        console::note(format_args!("import: {pipeline}"));
        let mut pipeline = pipeline;
        for wanted in &self.lora {
            let lora = Lora::open(wanted)?;
            pipeline = pipeline.with(&lora)?;
            let (path, layers, scale) = (lora.path().display(), lora.layers(), wanted.scale);
            console::note(format_args!("import: {path}: a LoRA of {layers} layers, added at scale {scale}"));
        }
        write_directory(&self.out, |dir| pipeline.into_model(self.name(), dir)?.write(dir, DType::F32))
    }
}
