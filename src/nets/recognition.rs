//! Which network a checkpoint holds, and where: told by a config, by the file itself, or by names and shapes.

pub(super) mod edm;
pub mod pipeline;
pub(super) mod u_vit;

use super::backbone::{Arch, Backbone};
use super::network::Network;
use super::program::Program;
use super::public;
use super::public_config::{Kind, PublicConfig, SIGMA_DATA};
use crate::ImageShape;
use crate::checkpoint::{Checkpoint, Described, Part, StateDict};
use crate::diffusion::preconditioning::Preconditioning;
use crate::files::listed;
use crate::{Error, Result};
use candle_core::Tensor;
use std::fmt;
use std::path::Path;

/// What whoever gives a checkpoint says about it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hints<'a> {
    /// The architecture.
    pub arch: Option<Arch>,
    /// A JSON file with the network's options.
    pub config: Option<&'a Path>,
    /// The dictionary that holds the network.
    pub key: Option<&'a str>,
    /// What stands before every name of the network.
    pub prefix: Option<&'a str>,
    /// The preconditioning.
    pub preconditioning: Option<Kind>,
}

/// A network that was found in a checkpoint.
#[derive(Debug)]
pub struct Found {
    /// The network.
    pub network: Network,
    /// Its backbone.
    pub backbone: Backbone,
    /// Its tensors, under the public names. Whether all are there, and no others, is not checked.
    pub tensors: StateDict,
    key: String,
    told_by: ToldBy,
}

/// What says which network it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ToldBy {
    Config,
    Pickle,
    Shapes,
}

/// Tensors that may be those of a network.
struct Candidate<'a> {
    part: &'a Part,
    tensors: StateDict,
}

/// The network that a candidate may hold.
struct Guess<'a> {
    candidate: &'a Candidate<'a>,
    backbone: Backbone,
    preconditioning: Option<Preconditioning>,
    told_by: ToldBy,
    /// How many of the network's tensors are there.
    matches: usize,
    /// Whether so many that it is held to be that network.
    holds: bool,
}

/// The network in a checkpoint.
///
/// # Errors
/// [`Error::Input`] where none is recognised, or several are; where nothing says how it is preconditioned; where options do not
/// fit.
pub fn find(checkpoint: &Checkpoint, hints: &Hints) -> Result<Found> {
    let path = &checkpoint.path;
    let refuse = |problem: String| Error::input(path.display(), problem);
    let candidates = candidates(checkpoint, hints)?;
    let mut guesses = match hints.config.or(checkpoint.config.as_deref()) {
        Some(config) => by_config(config, path, &candidates, hints)?,
        None => by_content(path, &candidates, hints)?,
    };
    if guesses.iter().any(|guess| guess.holds) {
        guesses.retain(|guess| guess.holds);
    } else {
        // What comes nearest is refused for its own reasons.
        guesses.sort_by_key(|guess| guess.matches);
        guesses.drain(..guesses.len().saturating_sub(1));
    }
    let guess = match &guesses[..] {
        [] => return Err(refuse(unknown(&candidates))),
        [guess] => guess,
        several => return Err(refuse(ambiguous(several))),
    };
    let arch = guess.backbone.arch();
    let preconditioning = match (guess.preconditioning.or(arch.preconditioning()), hints.preconditioning) {
        (Some(said), Some(asked)) if Kind::of(said) != asked => {
            let problem = format!("{} is not {}, which the checkpoint says", asked.as_str(), Kind::of(said).as_str());
            return Err(Error::input("--preconditioning", problem));
        }
        (Some(said), _) => said,
        (None, Some(asked)) => asked.with(SIGMA_DATA),
        (None, None) => {
            return Err(refuse(format!(
                "is a network of {}, whose preconditioning cannot be told from its tensors: give --preconditioning edm, vp or ve, or \
                 --config with it",
                arch.as_str()
            )));
        }
    };
    let Guess { candidate: Candidate { part, tensors }, backbone, told_by, .. } = guess;
    let network = Network::new(backbone, preconditioning)?;
    let (key, tensors) = (part.key.clone(), tensors.clone());
    Ok(Found { network, backbone: backbone.clone(), tensors, key, told_by: *told_by })
}

impl Found {
    /// The network's parameters.
    ///
    /// # Errors
    /// As [`public::read`]; and where a filter among the tensors is not that of the network.
    pub fn params(&self) -> Result<Vec<Tensor>> {
        let params = public::read(self.network.spec(), &self.tensors)?;
        edm::check_filters(&self.backbone, &self.tensors)?;
        Ok(params)
    }
}

/// The tensors that may be a network's: all that lie together and are wrapped in the same way.
fn candidates<'a>(checkpoint: &'a Checkpoint, hints: &Hints) -> Result<Vec<Candidate<'a>>> {
    let path = &checkpoint.path;
    let parts: Vec<&Part> = match hints.key {
        None => checkpoint.parts.iter().collect(),
        Some(key) => checkpoint.parts.iter().filter(|part| part.key == key).collect(),
    };
    if let ([], Some(key)) = (&parts[..], hints.key) {
        let keys: Vec<String> = checkpoint.parts.iter().map(|part| quoted(&part.key)).collect();
        let problem = format!("{} has no tensors under `{key}`, but under {}", path.display(), listed(&keys));
        return Err(Error::input("--key", problem));
    }
    let named = |part: &'a Part| match hints.prefix {
        None => part.tensors.unwrapped(),
        Some(prefix) => vec![part.tensors.under(prefix)],
    };
    let each = parts.iter().flat_map(|part| named(part).into_iter().map(|tensors| Candidate { part, tensors }));
    let candidates: Vec<_> = each.filter(|candidate| !candidate.tensors.is_empty()).collect();
    match (&candidates[..], hints.prefix) {
        ([], Some(prefix)) => {
            let names: Vec<&str> = parts.iter().flat_map(|part| part.tensors.names()).collect();
            let problem =
                format!("no tensor of {} has a name that begins so; it has {}", path.display(), listed(&names));
            Err(Error::input(format!("--prefix {prefix}"), problem))
        }
        _ => Ok(candidates),
    }
}

/// Each candidate as the network of a config.
fn by_config<'a>(config: &Path, path: &Path, candidates: &'a [Candidate], hints: &Hints) -> Result<Vec<Guess<'a>>> {
    let file = PublicConfig::open(config)?;
    let is = |arch: &Arch| candidates.iter().any(|candidate| arch.recognise(&candidate.tensors).is_some());
    let arch = hints.arch.or_else(|| file.arch()).or_else(|| Arch::all().find(is));
    let missing =
        || Error::field(config, "arch", format!("is missing; give one of {}, or --arch", names(Arch::as_str)));
    let backbone = file.backbone(arch.ok_or_else(missing)?)?;
    let program = backbone.program().map_err(|error| error.in_table(config, "config."))?;
    let said = file.preconditioning()?;
    let guess = |candidate: &'a Candidate| {
        let described = candidate.part.described.as_ref().filter(|_| said.is_none());
        let wrapped = described.map(|described| preconditioning(path, described)).transpose()?.flatten();
        Ok(Guess::new(candidate, &program, backbone.clone(), said.or(wrapped), ToldBy::Config))
    };
    candidates.iter().map(guess).collect()
}

/// The networks that candidates are by what the file says of them, or by the names and shapes of their tensors.
fn by_content<'a>(path: &Path, candidates: &'a [Candidate], hints: &Hints) -> Result<Vec<Guess<'a>>> {
    let mut guesses = Vec::new();
    for candidate in candidates {
        let (backbone, preconditioning, told_by) = match &candidate.part.described {
            None => {
                let possible = Arch::all().filter(|arch| hints.arch.is_none_or(|asked| asked == *arch));
                let recognised = possible.filter_map(|arch| arch.recognise(&candidate.tensors)).next().transpose();
                (recognised.map_err(|problem| Error::input(path.display(), problem))?, None, ToldBy::Shapes)
            }
            Some(described) => {
                let Some(inner) = network(described) else { continue };
                let backbone = inner.1.of_arguments(&inner.0.arguments);
                let refuse = |problem| Error::input(path.display(), format!("{}: {problem}", inner.0.class));
                (Some(backbone.map_err(refuse)?), preconditioning(path, described)?, ToldBy::Pickle)
            }
        };
        let Some(backbone) = backbone else { continue };
        let program = backbone.program().map_err(|error| error.in_file(path))?;
        guesses.push(Guess::new(candidate, &program, backbone, preconditioning, told_by));
    }
    Ok(guesses)
}

impl<'a> Guess<'a> {
    fn new(
        candidate: &'a Candidate,
        program: &Program,
        backbone: Backbone,
        preconditioning: Option<Preconditioning>,
        told_by: ToldBy,
    ) -> Self {
        let matches = public::matches(&program.spec, &candidate.tensors);
        let holds = 2 * matches >= program.spec.params.len();
        Self { candidate, backbone, preconditioning, told_by, matches, holds }
    }
}

/// The module of a known class that a module is, or wraps, and its architecture.
fn network(described: &Described) -> Option<(&Described, Arch)> {
    let known = |module: &'_ Described| Arch::named(&module.class);
    match known(described) {
        Some(arch) => Some((described, arch)),
        None => described.model.as_deref().and_then(|inner| Some((inner, known(inner)?))),
    }
}

/// The preconditioning that a module of NVlabs/edm wraps its network in; None where it is the network itself.
fn preconditioning(path: &Path, described: &Described) -> Result<Option<Preconditioning>> {
    let refuse = |problem: String| Err(Error::input(path.display(), problem));
    if described.model.is_none() {
        return Ok(None);
    }
    let class = described.class.as_str();
    let kind = match class {
        "EDMPrecond" => Kind::Edm,
        "VPPrecond" => Kind::Vp,
        "VEPrecond" => Kind::Ve,
        _ => return refuse(format!("is wrapped in {class}, which is none of EDMPrecond, VPPrecond, VEPrecond")),
    };
    let number = |name: &str| described.attributes.get(name).and_then(serde_json::Value::as_f64);
    for (name, ours) in [
        ("beta_d", Preconditioning::VP_BETA_D),
        ("beta_min", Preconditioning::VP_BETA_MIN),
        ("M", Preconditioning::VP_STEPS),
    ] {
        if let Some(value) = number(name).filter(|&value| kind == Kind::Vp && value != ours) {
            return refuse(format!("is wrapped in {class} with {name} = {value}; {ours} is supported"));
        }
    }
    match number("sigma_data").unwrap_or(SIGMA_DATA) {
        sigma_data if sigma_data > 0.0 => Ok(Some(kind.with(sigma_data))),
        sigma_data => refuse(format!("is wrapped in {class} with sigma_data = {sigma_data}, which is not positive")),
    }
}

/// That no candidate is a network, and what they are.
fn unknown(candidates: &[Candidate]) -> String {
    let classes: Vec<&str> = candidates
        .iter()
        .filter_map(|candidate| candidate.part.described.as_ref())
        .map(|module| module.model.as_ref().map_or(module.class.as_str(), |inner| &inner.class))
        .collect();
    let known = names(Arch::class);
    if !classes.is_empty() {
        return format!("holds no network that is known: its modules are {}; known is {known}", listed(&classes));
    }
    let full = |candidate: &Candidate| {
        candidate.tensors.names().map(|name| format!("{}{name}", candidate.tensors.prefix())).collect::<Vec<_>>()
    };
    let names: Vec<String> = candidates.iter().flat_map(full).collect();
    format!("holds no network that is known, which is {known}; its tensors are {}", listed(&names))
}

/// That several candidates are networks, and how to say which is meant.
fn ambiguous(guesses: &[Guess]) -> String {
    let mut keys: Vec<String> = guesses.iter().map(|guess| quoted(&guess.candidate.part.key)).collect();
    keys.dedup();
    if keys.len() > 1 {
        return format!("holds several networks, under {}: say which with --key", listed(&keys));
    }
    let prefixes: Vec<String> = guesses.iter().map(|guess| format!("'{}'", guess.candidate.tensors.prefix())).collect();
    format!("holds several networks, whose names begin with {}: say which with --prefix", listed(&prefixes))
}

/// A key as a message has it.
fn quoted(key: &str) -> String {
    if key.is_empty() { "no key".into() } else { format!("`{key}`") }
}

/// A name of every architecture.
fn names(of: fn(Arch) -> &'static str) -> String {
    Arch::all().map(of).collect::<Vec<_>>().join(", ")
}

/// What was found, and what told it.
impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let ImageShape { height, width, channels } = self.network.image();
        let arch = self.backbone.arch().as_str();
        let parameters = self.network.spec().parameters(&self.network.spec().full());
        write!(f, "{}", self.tensors.path().display())?;
        if !self.key.is_empty() {
            write!(f, ", `{}`", self.key)?;
        }
        if !self.tensors.prefix().is_empty() {
            write!(f, ", names after `{}`", self.tensors.prefix())?;
        }
        write!(f, ": {arch} for images of {width}x{height}x{channels}, ")?;
        match self.network.classes() {
            0 => write!(f, "unconditional")?,
            classes => write!(f, "{classes} classes")?,
        }
        let preconditioning = Kind::of(self.network.preconditioning()).as_str();
        let told_by = match self.told_by {
            ToldBy::Config => "the config",
            ToldBy::Pickle => "the file",
            ToldBy::Shapes => "names and shapes",
        };
        write!(f, ", {:.1} M parameters, {preconditioning}; told by {told_by}", parameters as f64 / 1e6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nets::{adm, song_unet};
    use serde_json::{Value, json};

    fn module(class: &str, attributes: Value, model: Option<Described>) -> Described {
        let Value::Object(attributes) = attributes else { panic!("attributes are an object") };
        Described { class: class.into(), arguments: Default::default(), attributes, model: model.map(Box::new) }
    }

    #[test]
    fn a_module_says_how_its_network_is_preconditioned() {
        let path = Path::new("net.pkl");
        let inner = || Some(module("SongUNet", json!({}), None));
        let of = |class, attributes| preconditioning(path, &module(class, attributes, inner()));
        assert_eq!(of("VEPrecond", json!({ "sigma_min": 0.02 })).unwrap(), Some(Preconditioning::Ve));
        let constants = json!({ "beta_d": 19.9, "beta_min": 0.1, "M": 1000 });
        assert_eq!(of("VPPrecond", constants).unwrap(), Some(Preconditioning::Vp));
        let sigma_data = Preconditioning::Edm { sigma_data: 0.25 };
        assert_eq!(of("EDMPrecond", json!({ "sigma_data": 0.25 })).unwrap(), Some(sigma_data));
        assert_eq!(preconditioning(path, &inner().unwrap()).unwrap(), None);
        let refusal = |class, attributes| of(class, attributes).unwrap_err().to_string();
        assert_eq!(
            refusal("VPPrecond", json!({ "M": 100 })),
            "net.pkl: is wrapped in VPPrecond with M = 100; 1000 is supported"
        );
        let says = "net.pkl: is wrapped in iDDPMPrecond, which is none of EDMPrecond, VPPrecond, VEPrecond";
        assert_eq!(refusal("iDDPMPrecond", json!({})), says);
        assert!(refusal("EDMPrecond", json!({ "sigma_data": -1 })).ends_with("which is not positive"));
    }

    fn named(name: &str) -> Arch {
        Arch::named(name).unwrap()
    }

    #[test]
    fn arguments_of_public_classes_are_options_where_they_are_given() {
        let arguments = |json: Value| if let Value::Object(map) = json { map } else { panic!("an object") };
        let adm = json!({
            "img_resolution": 64, "in_channels": 3, "out_channels": 3, "label_dim": 1000, "model_channels": 192,
            "channel_mult": [1, 2, 3, 4], "label_dropout": 0,
        });
        let Ok(Backbone::Adm(adm::Config { num_blocks, attn_resolutions, label_dim, channel_mult_emb, .. })) =
            named("adm").of_arguments(&arguments(adm))
        else {
            panic!("an ADM")
        };
        assert_eq!((num_blocks, &attn_resolutions[..], label_dim, channel_mult_emb), (3, &[32, 16, 8][..], 1000, 4));
        let song = json!({
            "img_resolution": 64, "in_channels": 3, "out_channels": 3, "model_channels": 128, "channel_mult": [1, 2, 2, 2],
            "embedding_type": "fourier", "encoder_type": "residual", "decoder_type": "standard", "channel_mult_noise": 2,
            "resample_filter": [1, 3, 3, 1], "dropout": 0.25,
        });
        let Ok(Backbone::SongUnet(song_unet::Config {
            num_blocks, attn_resolutions, resample_filter, dropout, ..
        })) = named("song-unet").of_arguments(&arguments(song))
        else {
            panic!("a SongUNet")
        };
        assert_eq!((num_blocks, &attn_resolutions[..], dropout), (4, &[16][..], 0.25));
        assert_eq!(resample_filter, [1.0, 3.0, 3.0, 1.0]);
        let refusal = |json| named("song-unet").of_arguments(&arguments(json)).unwrap_err();
        assert!(refusal(json!({ "in_channels": 3 })).starts_with("in_channels and out_channels"));
        let skip = json!({ "img_resolution": 64, "decoder_type": "skip" });
        assert!(refusal(skip).contains("unknown variant `skip`"));
    }

    #[test]
    fn architectures_have_our_names_and_those_of_public_classes() {
        assert_eq!(Arch::named("SongUNet-ncsnpp"), Some(named("song-unet")));
        assert_eq!(Arch::named("u-vit"), Some(named("u-vit")));
        assert_eq!(Arch::named("dit"), None);
        for arch in Arch::all() {
            assert_eq!(Arch::named(arch.as_str()), Some(arch));
            assert_eq!(Arch::named(arch.class()), Some(arch));
        }
    }
}
