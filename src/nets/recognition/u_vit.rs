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
