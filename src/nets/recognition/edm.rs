//! The networks of NVlabs/edm, by the arguments or by the tensors of their classes `SongUNet` and `DhariwalUNet`.

use crate::checkpoint::StateDict;
use crate::nets::public::RESAMPLE_FILTER;
use crate::nets::song_unet::{Decoder, EmbeddingType, Encoder};
use crate::nets::{Backbone, adm, song_unet};
use crate::{Error, Result};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Rows of the largest image that is looked for.
const LARGEST: usize = 1 << 13;

/// What `SongUNet` takes for arguments that are not given.
pub fn song_unet_defaults() -> Value {
    json!({
        "model_channels": 128, "channel_mult": [1, 2, 2, 2], "num_blocks": 4, "attn_resolutions": [16], "dropout": 0.1,
        "embedding_type": "positional", "encoder_type": "standard", "decoder_type": "standard", "resample_filter": [1, 1],
    })
}

/// What `DhariwalUNet` takes for arguments that are not given.
pub fn adm_defaults() -> Value {
    json!({
        "model_channels": 192, "channel_mult": [1, 2, 3, 4], "num_blocks": 3, "attn_resolutions": [32, 16, 8], "dropout": 0.1,
    })
}

/// The options that follow from named arguments.
pub fn options(defaults: Value, arguments: &Map<String, Value>) -> std::result::Result<Map<String, Value>, String> {
    let Value::Object(mut options) = defaults else { unreachable!("defaults are an object") };
    for (name, value) in arguments {
        let name = match name.as_str() {
            "in_channels" => "img_channels",
            // Only training drops labels.
            "out_channels" | "label_dropout" => continue,
            other => other,
        };
        options.insert(name.to_owned(), value.clone());
    }
    match (arguments.get("in_channels"), arguments.get("out_channels")) {
        (from, to) if from != to => Err("in_channels and out_channels are not the same".into()),
        _ => Ok(options),
    }
}

/// What the names and shapes of both networks say alike.
struct Shapes<'a> {
    tensors: &'a StateDict,
    side: usize,
    img_channels: usize,
    model_channels: usize,
    channel_mult: Vec<usize>,
    num_blocks: usize,
    attn_resolutions: Vec<usize>,
}

impl<'a> Shapes<'a> {
    fn of(tensors: &'a StateDict) -> Option<Self> {
        let first = tensors.names().find_map(|name| name.strip_prefix("enc.")?.strip_suffix("_conv.weight"))?;
        let side: usize = first.split_once('x')?.0.parse().ok().filter(|&side| side <= LARGEST)?;
        let &[model_channels @ 1..=usize::MAX, img_channels, ..] =
            tensors.shape(&format!("enc.{side}x{side}_conv.weight"))?
        else {
            return None;
        };
        // Where one tensor of a layer is missing, it is to be missed, not the layer.
        let rows = |res: usize, block: usize, layer: &str| {
            let shape = |part| tensors.shape(&format!("enc.{res}x{res}_block{block}.{layer}.{part}"));
            shape("weight").or_else(|| shape("bias"))?.first().copied()
        };
        let levels = (0..).map(|level| side >> level).take_while(|&res| res > 0);
        // A level's width is that of conv1's output: conv0's may be a subnet's.
        let widths: Vec<(usize, usize)> = levels.map_while(|res| Some((res, rows(res, 0, "conv1")?))).collect();
        let attended = widths.iter().filter(|(res, _)| rows(*res, 0, "qkv").is_some());
        Some(Self {
            tensors,
            side,
            img_channels,
            model_channels,
            channel_mult: widths.iter().map(|(_, width)| width / model_channels).collect(),
            num_blocks: (0..).take_while(|&index| rows(side, index, "conv1").is_some()).count(),
            attn_resolutions: attended.map(|&(res, _)| res).collect(),
        })
    }

    fn axis(&self, name: &str, axis: usize) -> Option<usize> {
        self.tensors.shape(name)?.get(axis).copied()
    }
}

/// The options of a SongUNet with these tensors.
pub fn song_unet(tensors: &StateDict) -> Option<song_unet::Config> {
    let shapes = Shapes::of(tensors).filter(|_| tensors.shape("out_conv.weight").is_none())?;
    let has_aux = tensors.names().any(|name| name.ends_with("_aux_residual.weight"));
    let encoder_type = if has_aux { Encoder::Residual } else { Encoder::Standard };
    let published = match encoder_type {
        Encoder::Standard => vec![1.0, 1.0],
        Encoder::Residual => vec![1.0, 3.0, 3.0, 1.0],
    };
    let buffer = tensors.names().find(|name| name.ends_with(RESAMPLE_FILTER));
    Some(song_unet::Config {
        img_resolution: shapes.side,
        img_channels: shapes.img_channels,
        label_dim: shapes.axis("map_label.weight", 1).unwrap_or(0),
        model_channels: shapes.model_channels,
        dropout: 0.0,
        augment_dim: shapes.axis("map_augment.weight", 1).unwrap_or(0),
        embedding_type: match tensors.shape("map_noise.freqs") {
            Some(_) => EmbeddingType::Fourier,
            None => EmbeddingType::Positional,
        },
        encoder_type,
        decoder_type: Decoder::Standard,
        channel_mult_noise: shapes.axis("map_layer0.weight", 1)? / shapes.model_channels,
        channel_mult_emb: shapes.axis("map_layer0.weight", 0)? / shapes.model_channels,
        resample_filter: buffer.and_then(|name| filter(tensors, name)).unwrap_or(published),
        channel_mult: shapes.channel_mult,
        num_blocks: shapes.num_blocks,
        attn_resolutions: shapes.attn_resolutions,
        pipe_widths: BTreeMap::new(),
    })
}

/// The options of an ADM with these tensors. Resolutions whose levels are too narrow for a head cannot be told, and do not
/// matter.
pub fn adm(tensors: &StateDict) -> Option<adm::Config> {
    let shapes = Shapes::of(tensors).filter(|_| tensors.shape("out_conv.weight").is_some())?;
    Some(adm::Config {
        img_resolution: shapes.side,
        img_channels: shapes.img_channels,
        label_dim: shapes.axis("map_label.weight", 1).unwrap_or(0),
        model_channels: shapes.model_channels,
        dropout: 0.0,
        augment_dim: shapes.axis("map_augment.weight", 1).unwrap_or(0),
        channel_mult_emb: shapes.axis("map_layer0.weight", 0)? / shapes.model_channels,
        channel_mult: shapes.channel_mult,
        num_blocks: shapes.num_blocks,
        attn_resolutions: shapes.attn_resolutions,
        pipe_widths: BTreeMap::new(),
    })
}

/// Refuses `resample_filter` buffers of another filter than a network's.
///
/// # Errors
/// [`Error::Input`] with the file and the buffer.
pub fn check_filters(backbone: &Backbone, tensors: &StateDict) -> Result<()> {
    let ours = backbone.resample_filter();
    let scaled = |taps: &[f32]| taps.iter().map(|tap| tap / taps.iter().sum::<f32>()).collect::<Vec<_>>();
    let wanted = scaled(ours);
    for name in tensors.names().filter(|name| name.ends_with(RESAMPLE_FILTER)) {
        let taps = scaled(&filter(tensors, name).unwrap_or_default());
        if taps.len() != wanted.len() || taps.iter().zip(&wanted).any(|(tap, wanted)| (tap - wanted).abs() > 1e-3) {
            let problem = format!("is not the filter of the network, {ours:?}");
            return Err(Error::field(tensors.path(), &format!("{}{name}", tensors.prefix()), problem));
        }
    }
    Ok(())
}

/// The 1-D filter f of a buffer `f f^T / (sum f)^2`: its rows' sums, scaled so that the first is 1, as in published filters.
fn filter(tensors: &StateDict, name: &str) -> Option<Vec<f32>> {
    let taps = *tensors.shape(name)?.last().filter(|&&taps| taps > 0)?;
    let values = tensors.values([name]).ok()?.pop()?;
    let sums: Vec<f32> = values.chunks_exact(taps).map(|row| row.iter().sum()).collect();
    let rounded = |sum: &f32| {
        let tap = sum / sums[0];
        if (tap - tap.round()).abs() < 1e-3 { tap.round() } else { tap }
    };
    Some(sums.iter().map(rounded).collect())
}
