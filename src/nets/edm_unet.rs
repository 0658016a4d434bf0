//! The U-Net of NVlabs/edm that SongUNet and ADM are: an encoder, a decoder that reads what the encoder made, and residual
//! blocks with attention. What they differ in is a [`Style`].

use super::builder::{Builder, Draw, Weight};
use super::program::{Channels, Norm, Product, Resample, ValueId, View};
use crate::ops::cpu::conv::Places;
use crate::ops::cpu::resample::Direction;
use crate::supernet::spec::{Init, Pipe, PipeKind, Public};
use crate::{Error, Result};
use std::sync::Arc;

/// The size of a network.
#[derive(Clone, Copy, Debug)]
pub struct Size<'a> {
    /// Rows and columns of the image.
    pub side: usize,
    /// Channels at the first level.
    pub channels: usize,
    /// Channels of each level over `channels`.
    pub levels: &'a [usize],
    /// Residual blocks of each level of the encoder; the decoder has one more.
    pub blocks: usize,
}

/// How a network differs from others of its size.
#[derive(Clone, Debug)]
pub struct Style<'a> {
    /// Added to the variance in every norm.
    pub eps: f32,
    /// A factor on every residual sum.
    pub scale: f32,
    /// Whether a block's embedding scales and shifts what its second norm makes; else it is added to what its first convolution
    /// makes.
    pub film: bool,
    /// Channels of the embedding that blocks see.
    pub emb: usize,
    /// The 1-D filter of the resampling.
    pub filter: &'a [f32],
    /// Whether a resampling block has a convolution beside it, though it keeps its channels.
    pub resample_proj: bool,
    /// Whether a strided copy of the image is added at each resolution of the encoder (NCSN++).
    pub aux: bool,
    /// Heads of the attention after a block at this place, of so many outputs; 0 for none.
    pub heads: fn(Place, &[usize], usize) -> usize,
    /// Resolutions that are said to have attention.
    pub attn_resolutions: &'a [usize],
    /// Names of the last norm and the last convolution.
    pub last: [&'a str; 2],
    /// How weights are drawn: most, those of queries, keys and values, those that end a residual.
    pub draws: [Draw; 3],
}

/// Where a block is.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Rows of its output.
    pub res: usize,
    /// Which part of the network.
    pub side: Side,
    /// Which block of its level, and how many there are.
    pub index: (usize, usize),
}

/// A part of the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// On the way down.
    Encoder,
    /// At the bottom.
    Middle,
    /// On the way up.
    Decoder,
}

/// A residual block, by what is special about it.
struct Block<'a> {
    name: &'a str,
    c_out: usize,
    /// Rows of its output.
    res: usize,
    resample: Option<Resample>,
    /// The blocks that share a channel budget with it; a block without has no pipes.
    group: Option<&'a str>,
    /// Heads of its attention, if it has any.
    heads: usize,
}

/// Checks what the types do not.
///
/// # Errors
/// [`Error::Input`] with the field and what it accepts.
pub fn check(img_resolution: usize, img_channels: usize, model_channels: usize, channel_mult: &[usize]) -> Result<()> {
    let refuse = |field: &str, problem: String| Err(Error::input(field, problem));
    let levels = channel_mult.len();
    if levels == 0 || levels > 8 || channel_mult.contains(&0) {
        return refuse("channel_mult", "must have 1 to 8 positive entries".into());
    }
    let step = 1 << (levels - 1);
    if img_resolution == 0 || !img_resolution.is_multiple_of(step) {
        return refuse("img_resolution", format!("{img_resolution} is not a multiple of {step}"));
    }
    if !matches!(img_channels, 1 | 3) {
        return refuse("img_channels", format!("{img_channels} is neither 1 nor 3"));
    }
    if model_channels == 0 || !model_channels.is_multiple_of(4) {
        return refuse("model_channels", format!("{model_channels} is not a positive multiple of 4"));
    }
    Ok(())
}

/// Attention at resolutions that no level has, in words.
pub fn warning(img_resolution: usize, channel_mult: &[usize], attn_resolutions: &[usize]) -> Option<String> {
    let levels: Vec<usize> = (0..channel_mult.len()).map(|level| img_resolution >> level).collect();
    let list = |sides: Vec<&usize>| sides.into_iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
    let missed: Vec<&usize> = attn_resolutions.iter().filter(|side| !levels.contains(side)).collect();
    let says = |missed| {
        format!("attn_resolutions: no level of the network has {missed}; it has {}", list(levels.iter().collect()))
    };
    (!missed.is_empty()).then(|| says(list(missed)))
}

/// Whether training does all that the options ask for.
///
/// # Errors
/// A field, and what of it is not supported.
pub fn check_trainable(dropout: f64, augment_dim: usize) -> std::result::Result<(), (&'static str, &'static str)> {
    match augment_dim {
        _ if dropout != 0.0 => Err(("dropout", "training with dropout is not supported; set it to 0")),
        1.. => Err(("augment_dim", "training with augmentation labels is not supported; set it to 0")),
        0 => Ok(()),
    }
}

/// The layer of the augmentation label of an imported network, which is kept but never used: the label is always absent.
pub fn augmentation(b: &mut Builder, augment_dim: usize, channels: usize) {
    if augment_dim > 0 {
        let public = Public(vec![vec![1], vec![0]]);
        b.buffer("map_augment.weight", &[augment_dim, channels], public, Init::Constant(0.0));
    }
}

/// The network, after the embedding that its branches read.
///
/// # Errors
/// [`Error::Input`] if a norm's channels do not divide into its groups.
pub fn build(b: &mut Builder, size: &Size, style: &Style) -> Result<()> {
    let Size { side, channels, levels, blocks } = *size;
    let image = b.stream(&[b.image()]);
    let filter: Arc<[f32]> = style.filter.into();
    let pad = (filter.len() - 1) / 2;
    let resample = |direction, pad| Some(Resample { direction, filter: filter.clone(), pad });
    let heads = |c_out, res, side, index| (style.heads)(Place { res, side, index }, style.attn_resolutions, c_out);

    let mut x = b.image();
    let mut aux = x;
    let mut skips = Vec::new();
    for (level, mult) in levels.iter().enumerate() {
        let res = side >> level;
        if level == 0 {
            let (from, to) = (Channels::Fixed(image), Channels::Fixed(channels));
            let conv =
                b.conv(&format!("enc.{res}x{res}_conv"), [3; 2], from, to, Weight::new(style.draws[0]).at(res * res));
            x = b.product(Product::new(x, conv, [3; 2]));
        } else {
            let (name, c_out) = (format!("enc.{res}x{res}_down"), b.stream(&[x]));
            let down = resample(Direction::Down, pad);
            let block = Block { name: &name, c_out, res, resample: down, group: None, heads: 0 };
            x = residual(b, style, &[x], &block)?;
            if style.aux {
                // EDM's fused form: the convolution goes first and leaves the border that the filter will consume.
                let name = format!("enc.{res}x{res}_aux_residual");
                let (from, wide) = (b.stream(&[aux]), 2 * res + filter.len() - 2);
                let weight = Weight::new(style.draws[0]).at(wide * wide);
                let conv = b.conv(&name, [3; 2], Channels::Fixed(from), Channels::Fixed(c_out), weight);
                let wide =
                    b.product(Product { places: Places::square(3, 1, 1 + pad), ..Product::new(aux, conv, [3; 2]) });
                let small = View::from(wide).resampled(resample(Direction::Down, 0));
                x = b.write(format!("{name}.down"), small, Some(x), style.scale);
                aux = x;
            }
        }
        skips.push(x);
        let (group, c_out) = (format!("enc_{res}x{res}"), channels * mult);
        for index in 0..blocks {
            let name = format!("enc.{res}x{res}_block{index}");
            let heads = heads(c_out, res, Side::Encoder, (index, blocks));
            let block = Block { name: &name, c_out, res, resample: None, group: Some(&group), heads };
            x = residual(b, style, &[x], &block)?;
            skips.push(x);
        }
    }
    for (level, mult) in levels.iter().enumerate().rev() {
        let res = side >> level;
        let c_out = b.stream(&[x]);
        if level + 1 == levels.len() {
            let group = format!("mid_{res}x{res}");
            for index in 0..2 {
                let name = format!("dec.{res}x{res}_in{index}");
                let heads = heads(c_out, res, Side::Middle, (index, 2));
                let block = Block { name: &name, c_out, res, resample: None, group: Some(&group), heads };
                x = residual(b, style, &[x], &block)?;
            }
        } else {
            let (name, up) = (format!("dec.{res}x{res}_up"), resample(Direction::Up, pad));
            let block = Block { name: &name, c_out, res, resample: up, group: None, heads: 0 };
            x = residual(b, style, &[x], &block)?;
        }
        let (group, c_out) = (format!("dec_{res}x{res}"), channels * mult);
        for index in 0..=blocks {
            let name = format!("dec.{res}x{res}_block{index}");
            let heads = heads(c_out, res, Side::Decoder, (index, blocks + 1));
            let skip = skips.pop().expect("as many skips as decoder blocks");
            let block = Block { name: &name, c_out, res, resample: None, group: Some(&group), heads };
            x = residual(b, style, &[x, skip], &block)?;
        }
    }
    let [norm, conv] = style.last;
    let c_in = b.stream(&[x]);
    let norm = group_norm(b, norm, c_in, style.eps)?;
    let weight = Weight::new(style.draws[2]).at(side * side);
    let conv = b.conv(conv, [3; 2], Channels::Fixed(c_in), Channels::Fixed(image), weight);
    b.product(Product::new(View::from(x).norm(norm).silu(), conv, [3; 2]));
    Ok(())
}

/// Groups of a GroupNorm: at most 32, of at least 4 channels.
fn groups(channels: usize) -> usize {
    (channels / 4).min(32)
}

fn group_norm(b: &mut Builder, name: &str, channels: usize, eps: f32) -> Result<Norm> {
    let groups = groups(channels);
    if !channels.is_multiple_of(groups) {
        let problem = format!("{channels} channels do not divide into the {groups} groups of GroupNorm");
        return Err(Error::input("model_channels", problem));
    }
    Ok(b.group_norm(name, channels, groups, eps))
}

/// A residual block on these values side by side.
fn residual(b: &mut Builder, style: &Style, parts: &[ValueId], block: &Block) -> Result<ValueId> {
    let Block { name, c_out, res, ref resample, group, heads } = *block;
    let n = |part: &str| format!("{name}.{part}");
    let [most, _, last] = style.draws.map(|draw| Weight::new(draw).at(res * res));
    let (c_in, out) = (b.stream(parts), Channels::Fixed(c_out));
    let norm_groups = Some(groups(c_out));
    let pipe = group.map(|group| b.pipe(Pipe { norm_groups, ..pipe(name, PipeKind::Conv, c_out, group) }));
    let inner = pipe.map_or(out, Channels::of);
    let norm0 = group_norm(b, &n("norm0"), c_in, style.eps)?;
    let conv0 = b.conv(&n("conv0"), [3; 2], Channels::Fixed(c_in), inner, most);
    let affine_to = match pipe {
        _ if !style.film => inner,
        Some(pipe) => Channels::Pipe { pipe, parts: 2 },
        None => Channels::Fixed(2 * c_out),
    };
    let affine = b.affine(&n("affine"), style.emb, affine_to, style.draws[0]);
    let mut norm1 = match pipe {
        Some(pipe) => b.pipe_norm(&n("norm1"), pipe, style.eps),
        None => group_norm(b, &n("norm1"), c_out, style.eps)?,
    };
    let conv1 = b.conv(&n("conv1"), [3; 2], inner, out, last);
    let is_convolved = c_in != c_out || resample.is_some() && style.resample_proj;
    let skip = is_convolved.then(|| b.conv(&n("skip"), [1; 2], Channels::Fixed(c_in), out, most));

    let x = View::of(parts).norm(norm0).silu().resampled(resample.clone());
    let hidden = if style.film {
        norm1.film = Some(b.branch(affine, 2, None));
        Product::new(x, conv0, [3; 2])
    } else {
        // conv0's output is only ever seen with the embedding added: one bias a sample holds both.
        let sample_bias = Some(b.branch(affine, 1, conv0.bias));
        Product { bias: vec![], sample_bias, ..Product::new(x, conv0, [3; 2]) }
    };
    let hidden = b.product(hidden);
    let residual = match (skip, resample) {
        (None, None) if parts.len() == 1 => parts[0],
        // Without a convolution the parts have the channels of the output together.
        (None, None) => b.write(n("concat"), View::of(parts), None, 1.0),
        (None, Some(_)) => b.write(n("skip"), View::of(parts).resampled(resample.clone()), None, 1.0),
        // A 1x1 convolution commutes with the filter: it goes where the map is small.
        (Some(conv), Some(Resample { direction: Direction::Up, .. })) => {
            let small = b.product(Product { bias: vec![], ..Product::new(View::of(parts), conv, [1; 2]) });
            b.write(n("skip.up"), View::from(small).resampled(resample.clone()), None, 1.0)
        }
        (Some(conv), _) => {
            let x = View::of(parts).resampled(resample.clone());
            b.product(Product { bias: vec![], ..Product::new(x, conv, [1; 2]) })
        }
    };
    let x = View::from(hidden).norm(norm1).silu();
    // Its bias and the skip's are only ever seen together.
    let bias = conv1.bias.into_iter().chain(skip.and_then(|skip| skip.bias)).collect();
    let (residual, scale) = (Some(residual), style.scale);
    let x = b.product(Product { bias, residual, scale, ..Product::new(x, conv1, [3; 2]) });
    match group {
        Some(group) if heads > 0 => self_attention(b, style, x, block, group),
        _ => Ok(x),
    }
}

/// Attention between the pixels of `x`, which is added to it.
fn self_attention(b: &mut Builder, style: &Style, x: ValueId, block: &Block, group: &str) -> Result<ValueId> {
    let Block { name, c_out, res, heads, .. } = *block;
    let [_, qkv, last] = style.draws.map(|draw| Weight::new(draw).at(res * res));
    // Scores, then the mixing of values.
    let macs_per_channel = (2 * res.pow(4) * heads) as u64;
    let whole = pipe(name, PipeKind::Attn, c_out, group);
    let pipe = b.pipe(Pipe { width: c_out / heads, macs_per_channel, ..whole });
    let of_heads = |parts| Channels::Heads { pipe, parts, heads };
    let norm = group_norm(b, &format!("{name}.norm2"), c_out, style.eps)?;
    let qkv = b.conv(&format!("{name}.qkv"), [1; 2], Channels::Fixed(c_out), of_heads(3), qkv);
    let proj = b.conv(&format!("{name}.proj"), [1; 2], of_heads(1), Channels::Fixed(c_out), last);
    let qkv = b.product(Product::new(View::from(x).norm(norm), qkv, [1; 2]));
    let mixed = b.attention(&format!("{name}.attn"), qkv, qkv);
    Ok(b.product(Product { residual: Some(x), scale: style.scale, ..Product::new(mixed, proj, [1; 2]) }))
}

/// A pipe of a block of so many outputs, as wide as these.
fn pipe(block: &str, kind: PipeKind, width: usize, group: &str) -> Pipe {
    Pipe {
        name: format!("{block}.{}", kind.as_str()),
        block: block.into(),
        kind,
        width,
        block_width: width,
        allocation_group: group.into(),
        norm_groups: None,
        macs_per_channel: 0,
    }
}
