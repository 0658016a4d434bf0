//! U-ViT (Bao et al. 2023), as baofff/U-ViT defines it: a transformer on patches whose last blocks read what the first made.

use super::backbone::Architecture;
use super::builder::{Builder, Draw, Weight};
use super::program::{Channels, ClassRows, Embedding, Frequencies, Product, ValueId, View, Waves};
use crate::ImageShape;
use crate::ops::Act;
use crate::ops::cpu::conv::Places;
use crate::supernet::spec::{Pipe, PipeKind};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Added to the variance in every norm.
const EPS: f32 = 1e-5;
/// Standard deviation of weights before training.
const DRAW: Draw = Draw::Normal(0.02);
/// The largest patch that the kernels take.
const LARGEST_PATCH: usize = 8;

/// The options of a U-ViT, under the names of baofff/U-ViT.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Rows and columns of the image.
    pub img_size: usize,
    /// Pixels along a side of a patch.
    pub patch_size: usize,
    /// Colour channels.
    pub in_chans: usize,
    /// Channels of a token.
    pub embed_dim: usize,
    /// Blocks, but for the one in the middle.
    pub depth: usize,
    /// Heads of attention.
    pub num_heads: usize,
    /// Neurons of a block's MLP over `embed_dim`.
    pub mlp_ratio: f64,
    /// Whether queries, keys and values have a bias.
    #[serde(default)]
    pub qkv_bias: bool,
    /// Whether two linear layers follow the waves of the noise level.
    #[serde(default)]
    pub mlp_time_embed: bool,
    /// Rows of the table of classes; -1 for an unconditional network.
    #[serde(default = "none")]
    pub num_classes: i64,
    /// Whether the last row of that table stands for no class, as networks trained for guidance have it.
    #[serde(default)]
    pub null_class: bool,
    /// Whether a convolution ends the network.
    #[serde(default = "yes")]
    pub conv: bool,
    /// Widths of the pipes that are narrower than their block, by name: what an extracted subnet keeps.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub pipe_widths: BTreeMap<String, usize>,
}

fn none() -> i64 {
    -1
}

fn yes() -> bool {
    true
}

impl Config {
    /// Rows of the table of classes.
    fn rows(&self) -> usize {
        self.num_classes.max(0) as usize
    }

    /// Neurons of a block's MLP.
    fn hidden(&self) -> usize {
        (self.embed_dim as f64 * self.mlp_ratio) as usize
    }
}

impl Architecture for Config {
    fn image(&self) -> ImageShape {
        ImageShape { height: self.img_size, width: self.img_size, channels: self.in_chans }
    }

    fn classes(&self) -> usize {
        self.rows() - usize::from(self.null_class)
    }

    fn pipe_widths(&self) -> &BTreeMap<String, usize> {
        &self.pipe_widths
    }

    fn pipe_widths_mut(&mut self) -> &mut BTreeMap<String, usize> {
        &mut self.pipe_widths
    }

    fn check(&self) -> Result<()> {
        let refuse = |field: &str, problem: String| Err(Error::input(field, problem));
        if !(1..=LARGEST_PATCH).contains(&self.patch_size) {
            return refuse("patch_size", format!("{} is not from 1 to {LARGEST_PATCH}", self.patch_size));
        }
        if self.img_size == 0 || !self.img_size.is_multiple_of(self.patch_size) {
            return refuse("img_size", format!("{} is not a positive multiple of patch_size", self.img_size));
        }
        if !matches!(self.in_chans, 1 | 3) {
            return refuse("in_chans", format!("{} is neither 1 nor 3", self.in_chans));
        }
        if self.num_heads == 0 || self.embed_dim == 0 || !self.embed_dim.is_multiple_of(2 * self.num_heads) {
            let problem = format!("{} does not divide into {} heads of even width", self.embed_dim, self.num_heads);
            return refuse("embed_dim", problem);
        }
        if !self.depth.is_multiple_of(2) {
            return refuse("depth", format!("{} is not even", self.depth));
        }
        if !(self.mlp_ratio.is_finite() && self.hidden() > 0) {
            return refuse("mlp_ratio", format!("{} is not positive", self.mlp_ratio));
        }
        if self.null_class && self.rows() < 2 {
            return refuse("null_class", "needs a class beside it in num_classes".into());
        }
        Ok(())
    }

    fn build(&self, b: &mut Builder) -> Result<()> {
        let (dim, patch, side) = (self.embed_dim, self.patch_size, self.img_size);
        let (stream, grid) = (Channels::Fixed(dim), side / patch * (side / patch));
        let weight = |uses| Weight::new(DRAW).at(uses);
        let of_conv = |uses| Weight::new(Draw::PYTORCH).at(uses);

        let embed = b.conv("patch_embed.proj", [patch; 2], Channels::Fixed(self.in_chans), stream, of_conv(grid));
        let x = b
            .product(Product { places: Places::square(patch, patch, 0), ..Product::new(b.image(), embed, [patch; 2]) });
        let half = dim / 2;
        let frequencies = (0..half).map(|i| (-(1e4f32.ln()) * i as f32 / half as f32).exp()).collect();
        let waves = Some(Waves { frequencies: Frequencies::Fixed(frequencies), cosines_first: true });
        let mut time = b.embedding("time_embed", Embedding { waves, class: None }, dim);
        if self.mlp_time_embed {
            let wide = Channels::Fixed(4 * dim);
            let layer = b.linear("time_embed.0", stream, wide, weight(1));
            time = b.product(Product { act: Some(Act::Silu), ..Product::new(time, layer, [1; 2]) });
            let layer = b.linear("time_embed.2", wide, stream, weight(1));
            time = b.product(Product::new(time, layer, [1; 2]));
        }
        let class = (self.rows() > 0).then(|| {
            let class = Some(ClassRows { weight: b.table("label_emb", self.rows(), dim, 1.0), bias: None, scale: 1.0 });
            b.embedding("label_emb", Embedding { waves: None, class }, dim)
        });
        let front: Vec<ValueId> = class.into_iter().chain([time]).collect();
        let tokens = front.len() + grid;
        let mut x = b.tokens("pos_embed", front, x, 0.02);

        let mut skips = Vec::new();
        for index in 0..self.depth / 2 {
            x = self.block(b, &format!("in_blocks.{index}"), "in_blocks", x, None, tokens);
            skips.push(x);
        }
        x = self.block(b, "mid_block", "mid_block", x, None, tokens);
        for index in 0..self.depth / 2 {
            x = self.block(b, &format!("out_blocks.{index}"), "out_blocks", x, skips.pop(), tokens);
        }
        let norm = b.layer_norm("norm", dim, EPS);
        let pixels = Channels::Fixed(patch * patch * self.in_chans);
        let decode = b.linear("decoder_pred", stream, pixels, weight(tokens));
        let x = b.product(Product::new(View::from(x).norm(norm), decode, [1; 2]));
        let x = b.unpatch(x, patch, side, side);
        if self.conv {
            let image = Channels::Fixed(self.in_chans);
            let last = b.conv("final_layer", [3; 2], image, image, of_conv(side * side));
            b.product(Product::new(x, last, [3; 2]));
        }
        Ok(())
    }
}

impl Config {
    /// A transformer block; one of the last blocks reads a `skip` of the first beside its input.
    fn block(
        &self,
        b: &mut Builder,
        name: &str,
        group: &str,
        x: ValueId,
        skip: Option<ValueId>,
        tokens: usize,
    ) -> ValueId {
        let n = |part: &str| format!("{name}.{part}");
        let (dim, heads) = (self.embed_dim, self.num_heads);
        let (stream, weight) = (Channels::Fixed(dim), Weight::new(DRAW).at(tokens));
        let mut pipe = |kind: PipeKind, width: usize, macs_per_channel: usize| {
            b.pipe(Pipe {
                name: n(kind.as_str()),
                block: name.into(),
                kind,
                width,
                block_width: dim,
                allocation_group: group.into(),
                norm_groups: None,
                macs_per_channel: macs_per_channel as u64,
            })
        };
        // Scores, then the mixing of values.
        let attn = pipe(PipeKind::Attn, dim / heads, 2 * tokens * tokens * heads);
        let ffn = Channels::of(pipe(PipeKind::Ffn, self.hidden(), 0));
        let of_heads = |parts| Channels::Heads { pipe: attn, parts, heads };

        let x = match skip {
            None => x,
            Some(skip) => {
                let layer = b.linear(&n("skip_linear"), Channels::Fixed(2 * dim), stream, weight);
                b.product(Product::new(View::of(&[x, skip]), layer, [1; 2]))
            }
        };
        let norm = b.layer_norm(&n("norm1"), dim, EPS);
        let qkv = if self.qkv_bias { weight } else { weight.without_bias() };
        let qkv = b.linear(&n("attn.qkv"), stream, of_heads(3), qkv);
        let qkv = b.product(Product::new(View::from(x).norm(norm), qkv, [1; 2]));
        let mixed = b.attention(&n("attn"), qkv, qkv);
        let proj = b.linear(&n("attn.proj"), of_heads(1), stream, weight);
        let x = b.product(Product { residual: Some(x), ..Product::new(mixed, proj, [1; 2]) });
        let norm = b.layer_norm(&n("norm2"), dim, EPS);
        let fc1 = b.linear(&n("mlp.fc1"), stream, ffn, weight);
        let fc2 = b.linear(&n("mlp.fc2"), ffn, stream, weight);
        let hidden = b.product(Product { act: Some(Act::Gelu), ..Product::new(View::from(x).norm(norm), fc1, [1; 2]) });
        b.product(Product { residual: Some(x), ..Product::new(hidden, fc2, [1; 2]) })
    }
}
