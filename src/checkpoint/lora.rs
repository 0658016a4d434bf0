//! Low-rank changes of a network's weights (LoRA, Hu et al. 2022), under the names that kohya's scripts and diffusers give them.

use super::{StateDict, open};
use crate::files::{listed, sha256};
use crate::{Error, Result};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The accepted scales; a negative one takes the change away.
const SCALE: f64 = 100.0;

/// Names of the two factors, the one that the input meets first and then the other: kohya's, PEFT's, and those of diffusers before.
const FACTORS: [[&str; 2]; 4] = [
    [".lora_down.weight", ".lora_up.weight"],
    [".lora_A.weight", ".lora_B.weight"],
    [".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"],
    ["_lora.down.weight", "_lora.up.weight"],
];
/// What only other kinds of changes have.
const OTHERS: [(&str, &str); 6] = [
    ("hada_w", "LoHa"),
    ("lokr_w", "LoKr"),
    ("lora_mid", "a LoCon with a factor between its two"),
    ("dora_scale", "DoRA"),
    ("lora_magnitude_vector", "DoRA"),
    ("diff", "full differences of weights"),
];

/// A file and how much of it is added: `FILE` or `FILE:0.7`.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// The file.
    pub path: PathBuf,
    /// Of its change.
    pub scale: f64,
}

impl FromStr for Wanted {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let number = text.rsplit_once(':').and_then(|(path, scale)| Some((path, scale.parse::<f64>().ok()?)));
        let (path, scale) = number.unwrap_or((text, 1.0));
        match path.is_empty() || !(-SCALE..=SCALE).contains(&scale) {
            true => Err(format!("`{text}` is not FILE or FILE:SCALE, with a scale from -{SCALE} to {SCALE}")),
            false => Ok(Self { path: path.into(), scale }),
        }
    }
}

/// What a model card says of one that was merged.
#[derive(Clone, Debug, Serialize)]
pub struct Merged {
    /// The file's name.
    file: String,
    /// The SHA-256 of the file.
    sha256: String,
    scale: f64,
}

/// The change of one layer.
#[derive(Debug)]
struct Layer {
    /// What it is called in the file.
    name: String,
    /// `[rank, inputs ...]`
    down: String,
    /// `[outputs, rank ...]`
    up: String,
    /// `[]`: the change is `alpha / rank` of the factors' product; of `rank` where there is none.
    alpha: Option<String>,
}

/// A file of changes.
#[derive(Debug)]
pub struct Lora {
    tensors: StateDict,
    layers: Vec<Layer>,
    wanted: Wanted,
}

impl Lora {
    /// Reads the file.
    ///
    /// # Errors
    /// [`Error::Input`] for a file that is none, is of another kind, or lacks one factor of a layer.
    pub fn open(wanted: &Wanted) -> Result<Self> {
        let path = &wanted.path;
        let refuse = |problem: String| Err(Error::input(path.display(), problem));
        let tensors = open(path)?.parts.swap_remove(0).tensors;
        // What PEFT puts before all names when it writes a file by itself.
        let bare = tensors.under("base_model.model.");
        let tensors = if bare.is_empty() { tensors } else { bare };
        let kind = |name: &str| {
            OTHERS.iter().find(|(part, _)| {
                name.split(['.', '_']).any(|word| word == *part) || (part.contains('_') && name.contains(part))
            })
        };
        if let Some((_, kind)) = tensors.names().find_map(kind) {
            return refuse(format!("is {kind}; LoRAs of two factors a layer are merged"));
        }
        let mut layers = Vec::new();
        let mut unpaired = Vec::new();
        for [down, up] in FACTORS {
            let ends = |end: &'static str| tensors.names().filter_map(move |name| name.strip_suffix(end));
            unpaired
                .extend(ends(up).filter(|name| tensors.shape(&format!("{name}{down}")).is_none()).map(str::to_owned));
            for name in ends(down) {
                let [down, up] = [down, up].map(|end| format!("{name}{end}"));
                if tensors.shape(&up).is_none() {
                    unpaired.push(name.to_owned());
                }
                let alpha = Some(format!("{name}.alpha")).filter(|alpha| tensors.shape(alpha).is_some());
                layers.push(Layer { name: name.to_owned(), down, up, alpha });
            }
        }
        if !unpaired.is_empty() {
            return refuse(format!("lacks a factor of {}", listed(&unpaired)));
        }
        match layers.is_empty() {
            true => refuse("is no LoRA: no name in it ends as those of kohya's scripts and diffusers do".to_owned()),
            false => Ok(Self { tensors, layers, wanted: wanted.clone() }),
        }
    }

    /// The weights of the parts of a pipeline with the changes added: each part with what its names begin with in such files.
    ///
    /// # Errors
    /// [`Error::Input`] with the layers that no part has, and with those of another shape.
    pub fn merge<const N: usize>(&self, parts: [(&Prefixes, StateDict); N]) -> Result<[StateDict; N]> {
        let mut known: BTreeMap<String, (usize, String)> = BTreeMap::new();
        for (index, (prefixes, tensors)) in parts.iter().enumerate() {
            for weight in tensors.names().filter(|name| name.ends_with(".weight")) {
                let layer = weight.trim_end_matches(".weight");
                known.extend(prefixes.names(layer).map(|name| (name, (index, weight.to_owned()))));
            }
        }
        let (mut changed, mut strangers, mut misshapen) = ([const { BTreeMap::new() }; N], Vec::new(), Vec::new());
        for layer in &self.layers {
            let Some((index, weight)) = known.get(&as_today(&layer.name)) else {
                strangers.push(layer.name.clone());
                continue;
            };
            let (changes, tensors): (&mut BTreeMap<String, Vec<f32>>, _) = (&mut changed[*index], &parts[*index].1);
            let shape = tensors.shape(weight).expect("one of its names");
            let Some((outputs, rank, inputs)) = self.sizes(layer, shape) else {
                let [down, up] = [&layer.down, &layer.up].map(|name| self.tensors.shape(name).unwrap_or_default());
                misshapen.push(format!("{} ({up:?} times {down:?} for {shape:?})", layer.name));
                continue;
            };
            let values = match changes.remove(weight) {
                Some(values) => values,
                None => tensors.values([weight.as_str()])?.concat(),
            };
            changes.insert(weight.clone(), self.added(layer, values, [outputs, rank, inputs])?);
        }
        let refuse = |problem| Err(Error::input(self.wanted.path.display(), problem));
        if !strangers.is_empty() {
            let count = strangers.len();
            return refuse(format!(
                "is of another network: it changes {count} layers that this has not: {}",
                listed(&strangers)
            ));
        }
        if !misshapen.is_empty() {
            return refuse(format!("is of another network, with layers of other sizes: {}", listed(&misshapen)));
        }
        let mut changed = changed.into_iter();
        Ok(parts.map(|(_, tensors)| tensors.with_values(changed.next().expect("one of each part"))))
    }

    /// Outputs, rank and inputs of a layer, where they fit a weight of this shape.
    fn sizes(&self, layer: &Layer, shape: &[usize]) -> Option<(usize, usize, usize)> {
        let [down, up] = [&layer.down, &layer.up].map(|name| self.tensors.shape(name).unwrap_or_default());
        let (&rank, &outputs) = (down.first()?, up.first()?);
        let [inputs, ranks] = [down, up].map(|shape| shape[1..].iter().product::<usize>());
        let fits = rank > 0
            && ranks == rank
            && shape.first() == Some(&outputs)
            && shape[1..].iter().product::<usize>() == inputs;
        fits.then_some((outputs, rank, inputs))
    }

    /// A weight `[outputs, inputs]` with the change of a layer, `scale alpha / rank up down`.
    fn added(&self, layer: &Layer, mut weight: Vec<f32>, [outputs, rank, inputs]: [usize; 3]) -> Result<Vec<f32>> {
        let alpha = layer.alpha.as_deref().map(|alpha| Ok::<_, Error>(self.tensors.values([alpha])?.concat()));
        let alpha = alpha.transpose()?.and_then(|alpha| alpha.first().copied()).map_or(rank as f64, f64::from);
        let scale = self.wanted.scale * alpha / rank as f64;
        let factors = self.tensors.values([layer.down.as_str(), layer.up.as_str()])?;
        let (down, up) = (&factors[0], &factors[1]);
        for output in 0..outputs {
            let row = &mut weight[output * inputs..][..inputs];
            for (input, value) in row.iter_mut().enumerate() {
                let product = |at: usize| f64::from(up[output * rank + at]) * f64::from(down[at * inputs + input]);
                *value = (f64::from(*value) + scale * (0..rank).map(product).sum::<f64>()) as f32;
            }
        }
        Ok(weight)
    }

    /// What a card says of it.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read again.
    pub fn merged(&self) -> Result<Merged> {
        let Wanted { path, scale } = &self.wanted;
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Merged { file, sha256: sha256(path)?, scale: *scale })
    }

    /// The layers that it changes.
    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.wanted.path
    }
}

/// What stands before the names of a part's layers in such files, those of kohya and those of diffusers.
#[derive(Debug)]
pub struct Prefixes {
    /// Before names whose dots are underscores.
    pub kohya: &'static [&'static str],
    /// Before names as they are.
    pub diffusers: &'static [&'static str],
}

impl Prefixes {
    /// Those of a U-Net.
    pub const UNET: Self = Self { kohya: &["lora_unet_"], diffusers: &["unet."] };
    /// Those of an encoder of texts.
    pub const TEXT_ENCODER: Self =
        Self { kohya: &["lora_te_text_model_", "lora_te_"], diffusers: &["text_encoder.text_model.", "text_encoder."] };

    /// All names of a layer.
    fn names(&self, layer: &str) -> impl Iterator<Item = String> {
        let kohya = self.kohya.iter().map(move |prefix| format!("{prefix}{}", layer.replace('.', "_")));
        kohya.chain(self.diffusers.iter().map(move |prefix| format!("{prefix}{layer}")))
    }
}

/// A name as diffusers has it today: before, what changed an attention was a processor of it.
fn as_today(name: &str) -> String {
    let named = name.replace(".processor.", ".");
    match named.strip_suffix(".to_out") {
        Some(attention) => format!("{attention}.to_out.0"),
        None => named,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_may_have_a_scale() {
        let wanted = |text: &str| text.parse::<Wanted>();
        let is = |path: &str, scale| Ok(Wanted { path: path.into(), scale });
        assert_eq!(wanted("a.safetensors"), is("a.safetensors", 1.0));
        assert_eq!(wanted("a.safetensors:0.7"), is("a.safetensors", 0.7));
        assert_eq!(wanted("C:/a:-1"), is("C:/a", -1.0));
        assert_eq!(wanted("a:b"), is("a:b", 1.0));
        for text in ["", ":2", "a:1e9", "a:nan"] {
            assert!(wanted(text).unwrap_err().contains("is not FILE or FILE:SCALE"), "{text}");
        }
    }

    #[test]
    fn names_of_three_times_are_those_of_today() {
        let today = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0";
        let older = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_out";
        assert_eq!([today, older].map(as_today), [today, today]);
        let names: Vec<String> = Prefixes::TEXT_ENCODER.names("encoder.layers.0.mlp.fc1").collect();
        assert!(names.contains(&"lora_te_text_model_encoder_layers_0_mlp_fc1".to_owned()), "{names:?}");
    }
}
