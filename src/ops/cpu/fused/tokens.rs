//! From vectors and maps to tokens, and from tokens to images.

use super::Map;
use crate::ops::cpu::tokens::Patches;

/// `y = [front, x] + positions` by sample: each vector is a token, then each pixel of `x`. Vectors are maps of one sample whose
/// pixels are the batch's; `positions` is `[tokens, C]`.
pub fn tokens(front: &[&Map], x: &Map, positions: &[f32], y: &mut Map) {
    let (channels, pitch, tokens) = (y.channels, y.pitch(), y.height);
    let y = y.data_mut();
    for (index, y) in y.chunks_exact_mut(pitch).enumerate() {
        let (sample, token) = (index / tokens, index % tokens);
        let from = match token.checked_sub(front.len()) {
            None => &front[token].data()[sample * pitch..],
            Some(pixel) => &x.data()[sample * x.sample() + pixel * pitch..],
        };
        let positions = &positions[token * channels..][..channels];
        y.iter_mut().zip(from).zip(positions).for_each(|((y, from), position)| *y = from + position);
    }
}

/// The last tokens as an image: see [`Patches::unpatch`].
pub fn unpatch(x: &Map, patches: Patches, y: &mut Map) {
    let (x_pitch, y_pitch, channels) = (x.pitch(), y.pitch(), y.channels);
    let (height, width) = (y.height, y.width);
    for (pixel, to) in y.data_mut().chunks_exact_mut(y_pitch).enumerate() {
        let (sample, place) = (pixel / (height * width), pixel % (height * width));
        let (token, place) = patches.place(place / width, place % width);
        let from = sample * x.sample() + token * x_pitch + place * channels;
        to[..channels].copy_from_slice(&x.data()[from..from + channels]);
    }
}
