//! The U-Net of Stable Diffusion 1.x (Rombach et al. 2022) as diffusers has it, `UNet2DConditionModel`: what noise is in a latent, told a
//! time and a context.

use super::backbone::Architecture;
use super::builder::{Builder, Draw, Weight};
use super::program::{Channels, Embedding, Frequencies, PipeId, Product, Program, Resample, ValueId, View, Waves};
use crate::ImageShape;
use crate::ops::Act;
use crate::ops::cpu::conv::Places;
use crate::supernet::spec::{Pipe, PipeKind};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Added to the variance by the norm before a transformer, and by those inside.
const TRANSFORMER_EPS: [f32; 2] = [1e-6, 1e-5];
/// Tokens of a context.
pub const TOKENS: usize = 77;

/// The options of a U-Net, under the names of diffusers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// Channels of what it is given: a latent, and for inpainting a mask and the latent of the masked picture.
    #[serde(default = "four")]
    pub in_channels: usize,
    /// Channels of a latent.
    #[serde(default = "four")]
    pub out_channels: usize,
    /// Rows and columns of the latents that it was trained on.
    pub sample_size: usize,
    /// Channels of each level; each but the first has half of the rows and columns of the one before.
    pub block_out_channels: Vec<usize>,
    /// Blocks of each level of the encoder; the decoder has one more.
    #[serde(default = "two")]
    pub layers_per_block: usize,
    /// The kinds of the levels of the encoder: with a transformer after each block, or without.
    pub down_block_types: Vec<String>,
    /// Those of the decoder.
    pub up_block_types: Vec<String>,
    /// Heads of attention, in spite of its name; one number for all levels or one for each.
    #[serde(default = "eight")]
    pub attention_head_dim: Heads,
    /// Channels of a token of the context.
    pub cross_attention_dim: usize,
    /// Groups of every GroupNorm.
    #[serde(default = "groups")]
    pub norm_num_groups: usize,
    /// Added to the variance by the norms of residual blocks.
    #[serde(default = "eps")]
    pub norm_eps: f32,
    /// Widths of the pipes that are narrower than their block, by name: what an extracted subnet keeps.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub pipe_widths: BTreeMap<String, usize>,
}

/// Heads of attention.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Heads {
    /// As many at all levels.
    Same(usize),
    /// By level.
    ByLevel(Vec<usize>),
}

impl Heads {
    fn at(&self, level: usize) -> usize {
        match self {
            Self::Same(heads) => *heads,
            Self::ByLevel(heads) => heads.get(level).copied().unwrap_or(0),
        }
    }
}

fn four() -> usize {
    4
}

fn two() -> usize {
    2
}

fn eight() -> Heads {
    Heads::Same(8)
}

fn groups() -> usize {
    32
}

fn eps() -> f32 {
    1e-5
}

impl Architecture for Config {
    /// The latents that it was trained on.
    fn image(&self) -> ImageShape {
        ImageShape { height: self.sample_size, width: self.sample_size, channels: self.in_channels }
    }

    fn classes(&self) -> usize {
        0
    }

    fn pipe_widths(&self) -> &BTreeMap<String, usize> {
        &self.pipe_widths
    }

    fn pipe_widths_mut(&mut self) -> &mut BTreeMap<String, usize> {
        &mut self.pipe_widths
    }

    fn check(&self) -> Result<()> {
        let refuse = |field: &str, problem: String| Err(Error::input(field, problem));
        let levels = self.block_out_channels.len();
        if !(1..=8).contains(&levels) {
            return refuse("block_out_channels", format!("has {levels} levels, but 1 to 8 are accepted"));
        }
        for (field, kinds, side) in [
            ("down_block_types", &self.down_block_types, ["DownBlock2D", "CrossAttnDownBlock2D"]),
            ("up_block_types", &self.up_block_types, ["UpBlock2D", "CrossAttnUpBlock2D"]),
        ] {
            if kinds.len() != levels {
                return refuse(field, format!("has {} levels, but block_out_channels has {levels}", kinds.len()));
            }
            if let Some(kind) = kinds.iter().find(|kind| !side.contains(&kind.as_str())) {
                return refuse(field, format!("`{kind}` is neither {} nor {}", side[0], side[1]));
            }
        }
        let groups = self.norm_num_groups;
        for (level, &channels) in self.block_out_channels.iter().enumerate() {
            if channels == 0 || groups == 0 || channels % groups != 0 || channels % 2 != 0 {
                return refuse("block_out_channels", format!("{channels} is not even or not in {groups} groups"));
            }
            let heads = self.attention_head_dim.at(level);
            if heads == 0 || channels % heads != 0 {
                return refuse("attention_head_dim", format!("{channels} channels do not divide into {heads} heads"));
            }
        }
        if self.cross_attention_dim == 0 {
            return refuse("cross_attention_dim", "0 is no number of channels".into());
        }
        if !(1..=64).contains(&self.in_channels) || !(1..=64).contains(&self.out_channels) {
            return refuse("in_channels", "and out_channels are not both from 1 to 64".into());
        }
        if self.sample_size == 0 || !self.sample_size.is_multiple_of(self.factor()) {
            let problem =
                format!("{} is not a multiple of {}, which {levels} levels need", self.sample_size, self.factor());
            return refuse("sample_size", problem);
        }
        Ok(())
    }

    /// From a latent, c_noise the time from 0 to 999 and a context `[77, cross_attention_dim]` to the noise.
    fn build(&self, b: &mut Builder) -> Result<()> {
        Net { b, config: self, context: 0 }.build();
        Ok(())
    }
}

impl Config {
    /// What the rows and columns of a latent are multiples of.
    pub fn factor(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }

    /// The network on latents of so many rows and columns, multiples of [`Self::factor`].
    pub fn program(&self, height: usize, width: usize) -> Program {
        let image = ImageShape { height, width, channels: self.in_channels };
        let mut b = Builder::new(image, 0, self.pipe_widths.clone());
        Net { b: &mut b, config: self, context: 0 }.build();
        b.build()
    }

    /// Heads of the transformers of a level that has some.
    fn heads(&self, kind: &str, level: usize) -> Option<usize> {
        kind.starts_with("CrossAttn").then(|| self.attention_head_dim.at(level))
    }
}

/// A network under way.
struct Net<'a> {
    b: &'a mut Builder,
    config: &'a Config,
    context: ValueId,
}

/// A residual block, perhaps with a transformer after it.
struct Block<'a> {
    /// The level or the middle, such as `down_blocks.0`: those of one share a channel budget.
    group: &'a str,
    index: usize,
    channels: usize,
    /// Heads of its transformer, and which it is of its level.
    transformer: Option<(usize, usize)>,
}

impl Net<'_> {
    fn build(&mut self) {
        let config = self.config;
        let levels = &config.block_out_channels;
        let (first, wide) = (levels[0], 4 * levels[0]);
        let half = first / 2;
        let frequencies = (0..half).map(|i| (-(1e4f32.ln()) * i as f32 / half as f32).exp()).collect();
        let waves = Some(Waves { frequencies: Frequencies::Fixed(frequencies), cosines_first: true });
        let time = self.b.embedding("time", Embedding { waves, class: None }, first);
        let linear = |b: &mut Builder, name, x, from, to| {
            let layer = b.linear(name, Channels::Fixed(from), Channels::Fixed(to), Weight::new(Draw::PYTORCH));
            // Whoever reads the embedding reads its activation.
            b.product(Product { act: Some(Act::Silu), ..Product::new(x, layer, [1; 2]) })
        };
        let time = linear(self.b, "time_embedding.linear_1", time, first, wide);
        let time = linear(self.b, "time_embedding.linear_2", time, wide, wide);
        self.b.branches(time);
        self.context = self.b.context(TOKENS, config.cross_attention_dim);

        let same = Places::same([3, 3]);
        let image = self.b.image();
        let mut x = self.conv("conv_in", image, first, same);
        let mut skips = vec![x];
        for (level, (&channels, kind)) in levels.iter().zip(&config.down_block_types).enumerate() {
            let group = format!("down_blocks.{level}");
            for index in 0..config.layers_per_block {
                let transformer = config.heads(kind, level).map(|heads| (heads, index));
                x = self.block(&[x], &Block { group: &group, index, channels, transformer });
                skips.push(x);
            }
            if level + 1 < levels.len() {
                x = self.conv(&format!("{group}.downsamplers.0.conv"), x, channels, Places::square(3, 2, 1));
                skips.push(x);
            }
        }
        let (last, channels) = (levels.len() - 1, levels[levels.len() - 1]);
        for index in 0..2 {
            let transformer = (index == 0).then(|| (config.attention_head_dim.at(last), 0));
            x = self.block(&[x], &Block { group: "mid_block", index, channels, transformer });
        }
        for (level, (&channels, kind)) in levels.iter().rev().zip(&config.up_block_types).enumerate() {
            let group = format!("up_blocks.{level}");
            for index in 0..=config.layers_per_block {
                let transformer = config.heads(kind, last - level).map(|heads| (heads, index));
                let skip = skips.pop().expect("as many skips as blocks of the decoder");
                x = self.block(&[x, skip], &Block { group: &group, index, channels, transformer });
            }
            if level < last {
                let up = View::from(x).resampled(Some(Resample::nearest_up()));
                x = self.conv(&format!("{group}.upsamplers.0.conv"), up, channels, same);
            }
        }
        let view = self.norm("conv_norm_out", &[x], config.norm_eps).silu();
        self.conv("conv_out", view, config.out_channels, same);
    }

    fn pixels(&self, x: &View) -> usize {
        self.b.extent(x).pixels()
    }

    fn conv(&mut self, name: &str, x: impl Into<View>, channels: usize, places: Places) -> ValueId {
        self.b.whole_conv(name, x, channels, places, Draw::PYTORCH)
    }

    /// These values side by side, normalised.
    fn norm(&mut self, name: &str, parts: &[ValueId], eps: f32) -> View {
        let channels = self.b.stream(parts);
        View::of(parts).norm(self.b.group_norm(name, channels, self.config.norm_num_groups, eps))
    }

    /// A residual block on these values side by side, and its transformer.
    fn block(&mut self, parts: &[ValueId], block: &Block) -> ValueId {
        let Block { group, index, channels, transformer } = *block;
        let name = format!("{group}.resnets.{index}");
        let n = |part: &str| format!("{name}.{part}");
        let (from, to) = (Channels::Fixed(self.b.stream(parts)), Channels::Fixed(channels));
        let pipe = |kind: PipeKind, width, norm_groups, macs_per_channel| Pipe {
            name: n(kind.as_str()),
            block: name.clone(),
            kind,
            width,
            block_width: channels,
            allocation_group: group.into(),
            norm_groups,
            macs_per_channel,
        };
        let groups = self.config.norm_num_groups;
        let conv = self.b.pipe(pipe(PipeKind::Conv, channels, Some(groups), 0));
        let (inner, eps) = (Channels::of(conv), self.config.norm_eps);
        let view = self.norm(&n("norm1"), parts, eps).silu();
        let pixels = self.pixels(&view);
        let weight = Weight::new(Draw::PYTORCH).at(pixels);
        let conv1 = self.b.conv(&n("conv1"), [3; 2], from, inner, weight);
        let emb = 4 * self.config.block_out_channels[0];
        let time = self.b.affine(&n("time_emb_proj"), emb, inner, Draw::PYTORCH);
        // What the first convolution makes is only ever seen with the time added: one bias a sample holds both.
        let sample_bias = Some(self.b.branch(time, 1, conv1.bias));
        let hidden = self.b.product(Product { bias: vec![], sample_bias, ..Product::new(view, conv1, [3; 2]) });
        let norm2 = self.b.pipe_norm(&n("norm2"), conv, eps);
        let conv2 = self.b.conv(&n("conv2"), [3; 2], inner, to, weight);
        let mut bias = Vec::from_iter(conv2.bias);
        let residual = match from == to {
            true => parts[0],
            false => {
                let skip = self.b.conv(&n("conv_shortcut"), [1; 2], from, to, weight);
                bias.extend(skip.bias);
                self.b.product(Product { bias: vec![], ..Product::new(View::of(parts), skip, [1; 2]) })
            }
        };
        let view = View::from(hidden).norm(norm2).silu();
        let x = self.b.product(Product { bias, residual: Some(residual), ..Product::new(view, conv2, [3; 2]) });
        let Some((heads, index)) = transformer else { return x };
        // The two products of both attentions.
        let macs = (2 * pixels * heads * (pixels + TOKENS)) as u64;
        let attn = self.b.pipe(pipe(PipeKind::Attn, channels / heads, None, macs));
        let ffn = self.b.pipe(pipe(PipeKind::Ffn, 4 * channels, None, 0));
        self.transformer(&format!("{group}.attentions.{index}"), x, channels, heads, [attn, ffn])
    }

    /// A transformer of one block between the pixels of `x`, which is added to it.
    fn transformer(
        &mut self,
        name: &str,
        x: ValueId,
        channels: usize,
        heads: usize,
        [attn, ffn]: [PipeId; 2],
    ) -> ValueId {
        let (stream, [outer, inner]) = (Channels::Fixed(channels), TRANSFORMER_EPS);
        let of_heads = |parts| Channels::Heads { pipe: attn, parts, heads };
        let block = format!("{name}.transformer_blocks.0");
        let n = |part: &str| format!("{block}.{part}");
        let view = self.norm(&format!("{name}.norm"), &[x], outer);
        let weight = Weight::new(Draw::PYTORCH).at(self.pixels(&view));
        let bare = weight.without_bias();
        let b = &mut *self.b;
        let enter = b.conv(&format!("{name}.proj_in"), [1; 2], stream, stream, weight);
        let mut h = b.product(Product::new(view, enter, [1; 2]));

        let norm = b.layer_norm(&n("norm1"), channels, inner);
        let qkv = b.projections(&n("attn1"), &["to_q", "to_k", "to_v"], stream, of_heads(3), bare);
        let qkv = b.product(Product::new(View::from(h).norm(norm), qkv, [1; 2]));
        let mixed = b.attention(&n("attn1"), qkv, qkv);
        let out = b.linear(&n("attn1.to_out.0"), of_heads(1), stream, weight);
        h = b.product(Product { residual: Some(h), ..Product::new(mixed, out, [1; 2]) });

        let norm = b.layer_norm(&n("norm2"), channels, inner);
        let q = b.linear(&n("attn2.to_q"), stream, of_heads(1), bare);
        let context = Channels::Fixed(self.config.cross_attention_dim);
        let kv = b.projections(&n("attn2"), &["to_k", "to_v"], context, of_heads(2), bare.at(TOKENS));
        let q = b.product(Product::new(View::from(h).norm(norm), q, [1; 2]));
        let kv = b.product(Product::new(self.context, kv, [1; 2]));
        let mixed = b.attention(&n("attn2"), q, kv);
        let out = b.linear(&n("attn2.to_out.0"), of_heads(1), stream, weight);
        h = b.product(Product { residual: Some(h), ..Product::new(mixed, out, [1; 2]) });

        let norm = b.layer_norm(&n("norm3"), channels, inner);
        let wide = b.linear(&n("ff.net.0.proj"), stream, Channels::Pipe { pipe: ffn, parts: 2 }, weight);
        let gated = b.product(Product::new(View::from(h).norm(norm), wide, [1; 2]));
        let gated = b.gate(&n("ff.net.0"), gated);
        let narrow = b.linear(&n("ff.net.2"), Channels::of(ffn), stream, weight);
        h = b.product(Product { residual: Some(h), ..Product::new(gated, narrow, [1; 2]) });

        let leave = b.conv(&format!("{name}.proj_out"), [1; 2], stream, stream, weight);
        b.product(Product { residual: Some(x), ..Product::new(h, leave, [1; 2]) })
    }
}
