//! The networks of baofff/U-ViT, by the tensors of their class `UViT`.

use crate::checkpoint::StateDict;
use crate::nets::u_vit::Config;
use std::collections::BTreeMap;

/// Channels of a token and heads of the published networks (S, M, L, H): the tensors do not show the heads.
const PUBLISHED: [(usize, usize); 4] = [(512, 8), (768, 12), (1024, 16), (1152, 16)];
/// Rows of the table of classes of networks for ImageNet that were trained for guidance: one for no class.
const WITH_NULL: usize = 1001;

/// The options of a U-ViT with these tensors.
///
/// # Errors
/// That its heads cannot be told.
pub fn recognise(tensors: &StateDict) -> Option<Result<Config, String>> {
    let &[embed_dim @ 1..=usize::MAX, in_chans, patch_size, _] = tensors.shape("patch_embed.proj.weight")? else {
        return None;
    };
    let &[1, tokens, _] = tensors.shape("pos_embed")? else { return None };
    let has = |name: &str| tensors.shape(name).is_some();
    let rows = tensors.shape("label_emb.weight").and_then(|shape| shape.first().copied());
    let side = tokens.checked_sub(1 + usize::from(rows.is_some()))?.isqrt();
    let hidden = *tensors.shape("mid_block.mlp.fc1.weight")?.first()?;
    let Some((_, num_heads)) = PUBLISHED.into_iter().find(|(width, _)| *width == embed_dim) else {
        return Some(Err(format!(
            "is a U-ViT of {embed_dim} channels, whose number of heads cannot be told from its tensors: give --config with \
             num_heads"
        )));
    };
    Some(Ok(Config {
        img_size: side.checked_mul(patch_size)?,
        patch_size,
        in_chans,
        embed_dim,
        depth: 2 * (0..).take_while(|index| has(&format!("in_blocks.{index}.norm1.weight"))).count(),
        num_heads,
        mlp_ratio: hidden as f64 / embed_dim as f64,
        qkv_bias: has("mid_block.attn.qkv.bias"),
        mlp_time_embed: has("time_embed.0.weight"),
        num_classes: rows.map_or(-1, |rows| rows as i64),
        null_class: rows == Some(WITH_NULL),
        conv: has("final_layer.weight"),
        pipe_widths: BTreeMap::new(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device, Tensor};
    use std::sync::Arc;

    fn recognised(width: usize, classes: Option<usize>) -> Result<Config, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("net");
        let mut tensors = vec![
            ("patch_embed.proj.weight".to_owned(), vec![width, 3, 4, 4]),
            ("pos_embed".to_owned(), vec![1, 256 + 1 + usize::from(classes.is_some()), width]),
            ("mid_block.mlp.fc1.weight".to_owned(), vec![4 * width, width]),
        ];
        tensors.extend((0..6).map(|index| (format!("in_blocks.{index}.norm1.weight"), vec![width])));
        tensors.extend(classes.map(|rows| ("label_emb.weight".to_owned(), vec![rows, width])));
        let zeros = |shape: Vec<usize>| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
        let tensors = tensors.into_iter().map(|(name, shape)| (name, zeros(shape)));
        crate::files::write_tensors(&path, tensors, None).unwrap();
        let file = Arc::new(std::fs::read(&path).unwrap());
        recognise(&StateDict::of_safetensors(&path, file).unwrap()).unwrap()
    }

    #[test]
    fn published_widths_tell_the_heads_and_tables_of_1001_rows_the_null_class() {
        let config = recognised(512, Some(1001)).unwrap();
        assert_eq!((config.img_size, config.patch_size, config.in_chans), (64, 4, 3));
        assert_eq!((config.depth, config.num_heads, config.mlp_ratio), (12, 8, 4.0));
        assert_eq!((config.num_classes, config.null_class, config.conv, config.qkv_bias), (1001, true, false, false));
        let config = recognised(768, None).unwrap();
        assert_eq!((config.num_classes, config.null_class, config.num_heads, config.img_size), (-1, false, 12, 64));
        assert!(recognised(64, None).unwrap_err().contains("is a U-ViT of 64 channels"));
    }
}
