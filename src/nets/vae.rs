//! The autoencoder of latent diffusion (Rombach et al. 2022) as diffusers has it, `AutoencoderKL`: pictures to latents and back.

use super::builder::{Builder, Draw, Weight};
use super::program::{Channels, Product, Program, Resample, ValueId, View};
use super::public;
use crate::ImageShape;
use crate::checkpoint::StateDict;
use crate::files::listed;
use crate::ops::cpu::conv::Places;
use crate::supernet::spec::{Pipe, PipeKind};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};

/// Added to the variance in every norm.
const EPS: f32 = 1e-6;

/// The logarithm of the variance of a value of a latent, as it is taken (diffusers' `DiagonalGaussianDistribution`).
pub fn bounded(logarithm: f32) -> f32 {
    logarithm.clamp(-30.0, 20.0)
}

/// The options of an autoencoder, under the names of diffusers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// Colour channels.
    #[serde(default = "colours")]
    pub in_channels: usize,
    /// The same.
    #[serde(default = "colours")]
    pub out_channels: usize,
    /// Channels of a latent.
    #[serde(default = "four")]
    pub latent_channels: usize,
    /// Channels of each level; each but the first has half of the rows and columns of the one before.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks of each level of the encoder; the decoder has one more.
    #[serde(default = "one")]
    pub layers_per_block: usize,
    /// Groups of every GroupNorm.
    #[serde(default = "groups")]
    pub norm_num_groups: usize,
    /// What latents are multiplied with after the encoder, and divided by before the decoder.
    #[serde(default = "scaling_factor")]
    pub scaling_factor: f64,
}

fn colours() -> usize {
    3
}

fn four() -> usize {
    4
}

fn one() -> usize {
    1
}

fn groups() -> usize {
    32
}

fn scaling_factor() -> f64 {
    0.18215
}

impl Config {
    /// Rows and columns of a picture over those of its latent.
    pub fn factor(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }

    /// The size of the latents of pictures of this size.
    ///
    /// # Errors
    /// [`Error::Input`] about `data` for pictures that the autoencoder does not take.
    pub fn latent_of(&self, picture: ImageShape) -> Result<ImageShape> {
        let ImageShape { height, width, channels } = picture;
        let factor = self.factor();
        if channels != self.in_channels || !height.is_multiple_of(factor) || !width.is_multiple_of(factor) {
            let problem = format!(
                "pictures are {height}x{width}x{channels}, but the autoencoder takes multiples of {factor} with {} channels",
                self.in_channels
            );
            return Err(Error::input("data", problem));
        }
        Ok(ImageShape { height: height / factor, width: width / factor, channels: self.latent_channels })
    }

    /// Checks what the types do not.
    ///
    /// # Errors
    /// [`Error::Input`] with the field and what it accepts.
    pub fn check(&self) -> Result<()> {
        let refuse = |field: &str, problem: String| Err(Error::input(field, problem));
        let levels = self.block_out_channels.len();
        if !(1..=8).contains(&levels) {
            return refuse("block_out_channels", format!("has {levels} levels, but 1 to 8 are accepted"));
        }
        let groups = self.norm_num_groups;
        if let Some(channels) =
            self.block_out_channels.iter().find(|&&channels| channels == 0 || groups == 0 || channels % groups != 0)
        {
            return refuse("block_out_channels", format!("{channels} does not divide into {groups} groups"));
        }
        if self.in_channels != self.out_channels || !matches!(self.in_channels, 1 | 3) {
            return refuse("in_channels", format!("{} and out_channels are not both 1 or 3", self.in_channels));
        }
        if !(1..=64).contains(&self.latent_channels) {
            return refuse("latent_channels", format!("{} is not from 1 to 64", self.latent_channels));
        }
        if !(self.scaling_factor.is_finite() && self.scaling_factor > 0.0) {
            return refuse("scaling_factor", format!("{} is not positive", self.scaling_factor));
        }
        Ok(())
    }

    /// From pictures `[height, width, in_channels]` in [-1, 1] to the means and then the logarithms of the variances of their latents,
    /// `[height / f, width / f, 2 latent_channels]`, with f of [`Self::factor`]. The size is a multiple of it.
    pub fn encoder(&self, height: usize, width: usize) -> Program {
        let mut net = Net::new(self, ImageShape { height, width, channels: self.in_channels });
        let levels = &self.block_out_channels;
        let mut x = net.0.image();
        x = net.conv("encoder.conv_in", x, levels[0], Places::same([3, 3]));
        for (level, &channels) in levels.iter().enumerate() {
            for index in 0..self.layers_per_block {
                x = net.resnet(&format!("encoder.down_blocks.{level}"), index, x, channels);
            }
            if level + 1 < levels.len() {
                // With zeros below and right of the map alone.
                let half = Places { after: 1, ..Places::square(3, 2, 0) };
                x = net.conv(&format!("encoder.down_blocks.{level}.downsamplers.0.conv"), x, channels, half);
            }
        }
        x = net.middle("encoder.mid_block", x);
        x = net.last("encoder", x, 2 * self.latent_channels);
        net.conv("quant_conv", x, 2 * self.latent_channels, Places::same([1, 1]));
        net.0.build()
    }

    /// From latents `[height, width, latent_channels]`, divided by [`Self::scaling_factor`], to pictures
    /// `[f height, f width, out_channels]` in [-1, 1].
    pub fn decoder(&self, height: usize, width: usize) -> Program {
        let mut net = Net::new(self, ImageShape { height, width, channels: self.latent_channels });
        let levels = &self.block_out_channels;
        let mut x = net.0.image();
        x = net.conv("post_quant_conv", x, self.latent_channels, Places::same([1, 1]));
        x = net.conv("decoder.conv_in", x, levels[levels.len() - 1], Places::same([3, 3]));
        x = net.middle("decoder.mid_block", x);
        for (level, &channels) in levels.iter().rev().enumerate() {
            for index in 0..=self.layers_per_block {
                x = net.resnet(&format!("decoder.up_blocks.{level}"), index, x, channels);
            }
            if level + 1 < levels.len() {
                let up = View::from(x).resampled(Some(Resample::nearest_up()));
                let name = format!("decoder.up_blocks.{level}.upsamplers.0.conv");
                x = net.conv(&name, up, channels, Places::same([3, 3]));
            }
        }
        net.last("decoder", x, self.out_channels);
        net.0.build()
    }
}

impl Config {
    /// Checks that both halves find their tensors, and that there are no others.
    ///
    /// # Errors
    /// [`Error::Input`] with the file and what is missing, of another shape or too many.
    pub fn check_tensors(&self, tensors: &StateDict) -> Result<()> {
        let side = self.factor();
        let halves = [self.encoder(side, side), self.decoder(1, 1)];
        halves.iter().try_for_each(|half| public::check_among(&half.spec, tensors))?;
        let known: HashSet<&str> = halves.iter().flat_map(|half| public::all_names(&half.spec)).collect();
        let surplus: Vec<&str> = tensors.names().filter(|name| !known.contains(name)).collect();
        if surplus.is_empty() {
            return Ok(());
        }
        let problem = format!("has tensors that the autoencoder does not have: {}", listed(&surplus));
        Err(Error::input(tensors.path().display(), problem))
    }
}

/// The tensors of an autoencoder under the names of today: those of its attention were others in the files of 2022.
pub fn named_as_today(tensors: &StateDict) -> StateDict {
    const OLDER: [(&str, &str); 4] =
        [(".query.", ".to_q."), (".key.", ".to_k."), (".value.", ".to_v."), (".proj_attn.", ".to_out.0.")];
    let named = |name: &str| OLDER.iter().fold(name.to_owned(), |name, (older, today)| name.replace(older, today));
    // Before, they were convolutions of one pixel.
    tensors.renamed(named).squeezed(|name| OLDER.iter().any(|(_, today)| name.contains(today)))
}

/// A network under way, and the groups of its norms.
struct Net(Builder, usize);

impl Net {
    fn new(config: &Config, image: ImageShape) -> Self {
        Self(Builder::new(image, 0, BTreeMap::new()), config.norm_num_groups)
    }

    /// How the weight of a layer at these places is drawn, which is used at every one of them.
    fn weight(&self, x: &View, places: Places) -> Weight {
        Weight::new(Draw::PYTORCH).at(self.0.extent(x).at(places).pixels())
    }

    fn conv(&mut self, name: &str, x: impl Into<View>, channels: usize, places: Places) -> ValueId {
        self.0.whole_conv(name, x, channels, places, Draw::PYTORCH)
    }

    /// `x`, normalised.
    fn norm(&mut self, name: &str, x: ValueId) -> View {
        let channels = self.0.stream(&[x]);
        View::from(x).norm(self.0.group_norm(name, channels, self.1, EPS))
    }

    /// A residual block of a level or the middle, which that is called `group`: two convolutions, with a pipe between them.
    fn resnet(&mut self, group: &str, index: usize, x: ValueId, channels: usize) -> ValueId {
        let name = format!("{group}.resnets.{index}");
        let n = |part: &str| format!("{name}.{part}");
        let (from, same) = (self.0.stream(&[x]), Places::same([3, 3]));
        let pipe = self.0.pipe(Pipe {
            name: n("conv"),
            block: name.clone(),
            kind: PipeKind::Conv,
            width: channels,
            block_width: channels,
            allocation_group: group.into(),
            norm_groups: Some(self.1),
            macs_per_channel: 0,
        });
        let (inner, to) = (Channels::of(pipe), Channels::Fixed(channels));
        let view = self.norm(&n("norm1"), x).silu();
        let weight = self.weight(&view, same);
        let conv1 = self.0.conv(&n("conv1"), [3, 3], Channels::Fixed(from), inner, weight);
        let hidden = self.0.product(Product::new(view, conv1, [3, 3]));
        let norm2 = self.0.pipe_norm(&n("norm2"), pipe, EPS);
        let conv2 = self.0.conv(&n("conv2"), [3, 3], inner, to, weight);
        let (mut bias, mut residual) = (Vec::from_iter(conv2.bias), x);
        if from != channels {
            let skip = self.0.conv(&n("conv_shortcut"), [1, 1], Channels::Fixed(from), to, weight);
            // Its bias is only ever seen with that of the second convolution.
            bias.extend(skip.bias);
            residual = self.0.product(Product { bias: vec![], ..Product::new(x, skip, [1, 1]) });
        }
        let view = View::from(hidden).norm(norm2).silu();
        self.0.product(Product { bias, residual: Some(residual), ..Product::new(view, conv2, [3, 3]) })
    }

    /// Two residual blocks with attention of one head between the pixels.
    fn middle(&mut self, name: &str, x: ValueId) -> ValueId {
        let channels = self.0.stream(&[x]);
        let x = self.resnet(name, 0, x, channels);
        let attention = format!("{name}.attentions.0");
        let view = self.norm(&format!("{attention}.group_norm"), x);
        let weight = self.weight(&view, Places::same([1, 1]));
        let pixels = weight.uses;
        let pipe = self.0.pipe(Pipe {
            name: format!("{attention}.attn"),
            block: attention.clone(),
            kind: PipeKind::Attn,
            width: channels,
            block_width: channels,
            allocation_group: name.into(),
            norm_groups: None,
            // Scores, then the mixing of values.
            macs_per_channel: 2 * (pixels * pixels) as u64,
        });
        let (stream, of_heads) = (Channels::Fixed(channels), |parts| Channels::Heads { pipe, parts, heads: 1 });
        let qkv = self.0.projections(&attention, &["to_q", "to_k", "to_v"], stream, of_heads(3), weight);
        let qkv = self.0.product(Product::new(view, qkv, [1, 1]));
        let mixed = self.0.attention(&attention, qkv, qkv);
        let out = self.0.linear(&format!("{attention}.to_out.0"), of_heads(1), stream, weight);
        let x = self.0.product(Product { residual: Some(x), ..Product::new(mixed, out, [1, 1]) });
        self.resnet(name, 1, x, channels)
    }

    /// The last norm and convolution of a side.
    fn last(&mut self, side: &str, x: ValueId, channels: usize) -> ValueId {
        let view = self.norm(&format!("{side}.conv_norm_out"), x).silu();
        self.conv(&format!("{side}.conv_out"), view, channels, Places::same([3, 3]))
    }
}
