//! Small random networks of every kind, with random weights.

use accordion::diffusion::preconditioning::Preconditioning;
use accordion::nets::Model;
use accordion::nets::model::Card;
use accordion::nets::{Backbone, Condition, Network};
use accordion::philox::Stream;
use accordion::supernet::{Order, Param, Spec, Subnet, Supernet, Widths, ranking};
use candle_core::{Device, Tensor};
use proptest::prelude::*;
use serde_json::{Value, json};

/// Samples of a batch.
const BATCH: usize = 3;

/// A network without weights.
#[derive(Clone, Debug)]
pub struct Shape {
    backbone: Backbone,
    preconditioning: Preconditioning,
    seed: u64,
}

/// Networks of every family, of every kind that a config can name.
pub fn shapes() -> impl Strategy<Value = Shape> {
    let preconditioning =
        prop::sample::select(vec![Preconditioning::Vp, Preconditioning::Ve, Preconditioning::Edm { sigma_data: 0.4 }]);
    let backbones = prop_oneof![2 => song_unets(), 1 => adms(), 2 => u_vits()];
    (backbones, preconditioning, any::<u64>()).prop_map(|(config, preconditioning, seed)| {
        let backbone = serde_json::from_value(config).unwrap();
        Shape { backbone, preconditioning, seed }
    })
}

/// These, and those that read texts.
#[allow(dead_code, reason = "not every test runs them")]
pub fn all_shapes() -> impl Strategy<Value = Shape> {
    prop_oneof![5 => shapes().boxed(), 2 => unets().boxed()]
}

fn unets() -> impl Strategy<Value = Shape> {
    let widths = (prop::collection::vec(1usize..=2, 1..=3), prop::sample::select(vec![1usize, 2, 4]), 1usize..=2);
    let attends = prop::collection::vec(any::<bool>(), 3);
    let options = (prop::sample::select(vec![5usize, 8]), any::<bool>(), any::<u64>());
    (widths, attends, options).prop_map(|((multiples, heads, layers), attends, (texts, by_level, seed))| {
        let levels = multiples.len();
        let kinds = |plain: &str, with: &str| -> Vec<String> {
            attends[..levels].iter().map(|&attends| if attends { with } else { plain }.to_owned()).collect()
        };
        let mut up = kinds("UpBlock2D", "CrossAttnUpBlock2D");
        up.reverse();
        let config = json!({
            "arch": "unet", "in_channels": 4, "out_channels": 4, "sample_size": 8, "layers_per_block": layers,
            "block_out_channels": multiples.iter().map(|multiple| 8 * multiple).collect::<Vec<_>>(),
            "down_block_types": kinds("DownBlock2D", "CrossAttnDownBlock2D"), "up_block_types": up,
            "attention_head_dim": if by_level { json!(vec![heads; levels]) } else { json!(heads) },
            "cross_attention_dim": texts, "norm_num_groups": 4,
        });
        let backbone = serde_json::from_value(config).unwrap();
        Shape { backbone, preconditioning: Preconditioning::STABLE_DIFFUSION, seed }
    })
}

fn song_unets() -> impl Strategy<Value = Value> {
    let widths = (2usize..=4, prop::collection::vec(1usize..=2, 1..=2), 1usize..=2);
    let options = (prop::sample::select(vec![0, 3]), prop::sample::select(vec![1, 3]), any::<[bool; 4]>());
    (widths, options).prop_map(|((quarters, channel_mult, num_blocks), options)| {
        let (label_dim, img_channels, [fourier, residual, long_filter, attention]) = options;
        json!({
            "arch": "song-unet", "img_resolution": 8, "img_channels": img_channels, "label_dim": label_dim,
            "model_channels": 4 * quarters, "channel_mult": channel_mult, "num_blocks": num_blocks,
            "attn_resolutions": if attention { vec![8, 4] } else { vec![] },
            "embedding_type": if fourier { "fourier" } else { "positional" },
            "encoder_type": if residual { "residual" } else { "standard" }, "decoder_type": "standard",
            "channel_mult_noise": 1, "channel_mult_emb": 2,
            "resample_filter": if long_filter { vec![1, 3, 3, 1] } else { vec![1, 1] },
        })
    })
}

/// Some wide enough for several heads of attention.
fn adms() -> impl Strategy<Value = Value> {
    let widths = (prop::sample::select(vec![8, 12, 64, 96]), prop::collection::vec(1usize..=2, 1..=2));
    let options = (prop::sample::select(vec![0, 3]), prop::sample::select(vec![1, 3]), any::<bool>());
    (widths, options).prop_map(|((model_channels, channel_mult), (label_dim, img_channels, attention))| {
        json!({
            "arch": "adm", "img_resolution": if model_channels < 64 { 8 } else { 4 }, "img_channels": img_channels,
            "label_dim": label_dim, "model_channels": model_channels, "channel_mult": channel_mult, "num_blocks": 1,
            "attn_resolutions": if attention { vec![8, 4, 2] } else { vec![] }, "channel_mult_emb": 2,
        })
    })
}

fn u_vits() -> impl Strategy<Value = Value> {
    let widths = (1usize..=3, prop::sample::select(vec![4, 6, 10, 18]), prop::sample::select(vec![0, 2, 4]));
    let image = (prop::sample::select(vec![1, 2, 4]), prop::sample::select(vec![1, 3]));
    let options = (prop::sample::select(vec![-1, 3, 4]), any::<[bool; 3]>());
    (widths, image, options).prop_map(|((num_heads, head, depth), (patch_size, in_chans), (num_classes, flags))| {
        let [qkv_bias, mlp_time_embed, conv] = flags;
        json!({
            "arch": "u-vit", "img_size": 8, "patch_size": patch_size, "in_chans": in_chans,
            "embed_dim": num_heads * head, "depth": depth, "num_heads": num_heads, "mlp_ratio": 2.5,
            "qkv_bias": qkv_bias, "mlp_time_embed": mlp_time_embed, "num_classes": num_classes,
            "null_class": num_classes == 4, "conv": conv,
        })
    })
}

impl Shape {
    /// The same with so many channels at its first level, or a multiple of them in a token.
    #[allow(dead_code, reason = "not every test needs a width that a GPU takes")]
    pub fn of_channels(mut self, channels: usize) -> Self {
        match &mut self.backbone {
            Backbone::SongUnet(config) => config.model_channels = channels,
            Backbone::Adm(config) => config.model_channels = config.model_channels.next_multiple_of(channels),
            Backbone::UVit(config) => config.embed_dim = config.num_heads * channels,
            Backbone::Unet(config) => {
                let widths = config.block_out_channels.iter_mut();
                widths.for_each(|width| *width = width.next_multiple_of(channels));
            }
        }
        self
    }

    pub fn model(&self) -> Model {
        let backbone = self.backbone.clone();
        let network = Network::new(&backbone, self.preconditioning).unwrap();
        let spec = network.spec();
        let params = spec.params.iter().enumerate().map(|(index, param)| self.param(index, param)).collect();
        let supernet = Supernet::original(spec, params);
        let card = Card::new("random".into(), backbone, self.preconditioning, vec![]);
        Model::unallocated(card, supernet).unwrap()
    }

    /// Random values everywhere, so that a wrong channel, group, scale or order shows.
    fn param(&self, index: usize, param: &Param) -> Tensor {
        let stream = Stream::new(self.seed, 1, index as u64);
        let len: usize = param.shape.iter().product();
        let outputs = param.shape.last().copied().unwrap_or(1);
        let scale = if param.shape.len() > 1 { (outputs as f64 / len as f64).sqrt() } else { 0.3 };
        let shift = if param.name.contains("norm") && param.name.ends_with("weight") { 1.0 } else { 0.0 };
        let values: Vec<f32> = (0..len as u64).map(|i| (shift + scale * stream.normal(i)) as f32).collect();
        Tensor::from_vec(values, param.shape.as_slice(), &Device::Cpu).unwrap()
    }

    /// Scores of random order.
    fn scores(&self, spec: &Spec) -> Vec<Vec<f64>> {
        ranking::random(spec, self.seed)
    }

    /// Two random tables of widths, 0 among them, the first of which nests in the second.
    fn widths(&self, spec: &Spec) -> [Widths; 2] {
        let stream = Stream::new(self.seed, 2, 0);
        let below = |element: usize, n: usize| stream.below(element as u64, n as u32) as usize;
        let wide: Vec<usize> = spec.pipes.iter().enumerate().map(|(i, pipe)| below(2 * i, pipe.width + 1)).collect();
        let narrow = wide.iter().enumerate().map(|(i, &width)| below(2 * i + 1, width + 1)).collect();
        [Widths(narrow), Widths(wide)]
    }

    /// The ranked model with the subnets of [`Self::widths`], 0.400 and 0.600.
    pub fn allocated(&self, order: Order) -> Model {
        let model = self.model();
        let scores = self.scores(model.network.spec());
        let model = model.ranked(&scores, order).unwrap();
        let [narrow, wide] = self.widths(model.network.spec());
        let spec = model.network.spec();
        let rows = vec![Subnet::new(spec, 0.4, &narrow), Subnet::new(spec, 0.6, &wide)];
        model.with_subnets("channels", rows).unwrap()
    }

    /// The same with texts, where it reads some.
    #[allow(dead_code, reason = "not every test runs those that do")]
    pub fn conditions(&self, model: &Model) -> Vec<Condition> {
        let (_, _, classes) = self.batch(model);
        let of = |(index, class): (usize, Option<usize>)| {
            let mut text = vec![0.0; model.network.program().context_elements()];
            Stream::new(self.seed, 4, index as u64).fill_normals(&mut text);
            if text.is_empty() { class.into() } else { Condition::Text(text.into()) }
        };
        classes.into_iter().enumerate().map(of).collect()
    }

    /// A batch of noisy images, noise levels and classes.
    pub fn batch(&self, model: &Model) -> (Vec<f32>, Vec<f64>, Vec<Option<usize>>) {
        let mut x = vec![0.0; BATCH * model.image().elements()];
        Stream::new(self.seed, 3, 0).fill_normals(&mut x);
        let classes = if model.network.classes() > 0 { vec![Some(1), None, Some(2)] } else { vec![None; BATCH] };
        (x, vec![0.05, 1.0, 20.0], classes)
    }
}
