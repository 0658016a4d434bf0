//! Small random networks of every kind, with random weights.

use accordion::diffusion::Stream;
use accordion::diffusion::preconditioning::Preconditioning;
use accordion::nets::Model;
use accordion::nets::model::Card;
use accordion::nets::song_unet::{Config, Decoder, EmbeddingType, Encoder};
use accordion::nets::{Backbone, Network};
use accordion::supernet::{Order, Param, Spec, Subnet, Supernet, Widths, ranking};
use candle_core::{Device, Tensor};
use proptest::prelude::*;

/// Samples of a batch.
const BATCH: usize = 3;

/// A network without weights.
#[derive(Clone, Debug)]
pub struct Shape {
    config: Config,
    preconditioning: Preconditioning,
    seed: u64,
}

/// Every kind of network that a config can name.
pub fn shapes() -> impl Strategy<Value = Shape> {
    let widths = (2usize..=4, prop::collection::vec(1usize..=2, 1..=2), 1usize..=2);
    let options = (prop::sample::select(vec![0usize, 3]), prop::sample::select(vec![1usize, 3]), any::<[bool; 4]>());
    let preconditioning =
        prop::sample::select(vec![Preconditioning::Vp, Preconditioning::Ve, Preconditioning::Edm { sigma_data: 0.4 }]);
    (widths, options, preconditioning, any::<u64>()).prop_map(|(widths, options, preconditioning, seed)| {
        let (quarters, channel_mult, num_blocks) = widths;
        let (label_dim, img_channels, [fourier, residual, long_filter, attention]) = options;
        let config = Config {
            img_resolution: 8,
            img_channels,
            label_dim,
            model_channels: 4 * quarters,
            channel_mult,
            num_blocks,
            attn_resolutions: if attention { vec![8, 4] } else { vec![] },
            dropout: 0.0,
            augment_dim: 0,
            embedding_type: if fourier { EmbeddingType::Fourier } else { EmbeddingType::Positional },
            encoder_type: if residual { Encoder::Residual } else { Encoder::Standard },
            decoder_type: Decoder::Standard,
            channel_mult_noise: 1,
            channel_mult_emb: 2,
            resample_filter: if long_filter { vec![1.0, 3.0, 3.0, 1.0] } else { vec![1.0, 1.0] },
            pipe_widths: Default::default(),
        };
        Shape { config, preconditioning, seed }
    })
}

impl Shape {
    /// The same with so many channels at its first level.
    #[allow(dead_code, reason = "not every test needs a width that a GPU takes")]
    pub fn of_channels(mut self, channels: usize) -> Self {
        self.config.model_channels = channels;
        self
    }

    pub fn model(&self) -> Model {
        let backbone = Backbone::SongUnet(self.config.clone());
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

    /// A batch of noisy images, noise levels and classes.
    pub fn batch(&self, model: &Model) -> (Vec<f32>, Vec<f64>, Vec<Option<usize>>) {
        let mut x = vec![0.0; BATCH * model.image().elements()];
        Stream::new(self.seed, 3, 0).fill_normals(&mut x);
        let classes = if model.network.classes() > 0 { vec![Some(1), None, Some(2)] } else { vec![None; BATCH] };
        (x, vec![0.05, 1.0, 20.0], classes)
    }
}
