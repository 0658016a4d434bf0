//! What holds for every SongUNet, whatever its shape: tried on random networks with random weights.

use accordion::diffusion::Stream;
use accordion::diffusion::preconditioning::Preconditioning;
use accordion::nets::model::Card;
use accordion::nets::network::{Backbone, Network};
use accordion::nets::sliced::Sliced;
use accordion::nets::song_unet::{Config, Decoder, Embedding, Encoder};
use accordion::nets::{Denoiser, Model, Runner, Threads, public, public_config};
use accordion::ops::Tape;
use accordion::supernet::{Order, Param, Spec, Subnet, Supernet, Widths, ranking};
use candle_core::{DType, Device, Tensor};
use proptest::prelude::*;

/// Samples of a batch.
const BATCH: usize = 3;
/// Float32 sums in another order, as a share of the largest value.
const TOLERANCE: f64 = 1e-5;

/// A network without weights.
#[derive(Clone, Debug)]
struct Shape {
    config: Config,
    preconditioning: Preconditioning,
    seed: u64,
}

fn shapes() -> impl Strategy<Value = Shape> {
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
            embedding_type: if fourier { Embedding::Fourier } else { Embedding::Positional },
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
    fn model(&self) -> Model {
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

    /// Two random tables of widths, the first of which nests in the second.
    fn widths(&self, spec: &Spec) -> [Widths; 2] {
        let stream = Stream::new(self.seed, 2, 0);
        let below = |element: usize, n: usize| stream.below(element as u64, n as u32) as usize;
        let wide: Vec<usize> = spec.pipes.iter().enumerate().map(|(i, pipe)| 1 + below(2 * i, pipe.width)).collect();
        let narrow = wide.iter().enumerate().map(|(i, &width)| 1 + below(2 * i + 1, width)).collect();
        [Widths(narrow), Widths(wide)]
    }

    /// The ranked model with the subnets of [`Self::widths`], 0.400 and 0.600.
    fn allocated(&self, order: Order) -> Model {
        let model = self.model();
        let scores = self.scores(model.network.spec());
        let model = model.ranked(&scores, order).unwrap();
        let [narrow, wide] = self.widths(model.network.spec());
        let spec = model.network.spec();
        let rows = vec![Subnet::new(spec, 0.4, &narrow), Subnet::new(spec, 0.6, &wide)];
        model.with_subnets("channels", rows).unwrap()
    }

    /// A batch of noisy images, noise levels and classes.
    fn batch(&self, model: &Model) -> (Vec<f32>, Vec<f64>, Vec<Option<usize>>) {
        let mut x = vec![0.0; BATCH * model.image().elements()];
        Stream::new(self.seed, 3, 0).fill_normals(&mut x);
        let classes = if model.network.classes() > 0 { vec![Some(1), None, Some(2)] } else { vec![None; BATCH] };
        (x, vec![0.05, 1.0, 20.0], classes)
    }
}

fn denoise(model: &Model, subnet: usize, x: &[f32], sigma: &[f64], classes: &[Option<usize>]) -> Vec<f32> {
    Runner::new(model, Threads::ALL).unwrap().denoise(subnet, x, sigma, classes).unwrap()
}

fn sliced(model: &Model, subnet: usize) -> Sliced {
    Sliced::new(model.network.spec(), &model.supernet, &model.widths(subnet)).unwrap()
}

/// The largest error as a share of the largest wanted magnitude.
fn relative_error(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let range = want.iter().fold(0f64, |max, value| max.max(value.abs() as f64));
    got.iter().zip(want).map(|(g, w)| (g - w).abs() as f64 / range).fold(0.0, f64::max)
}

const ORDERS: [Order; 2] = [Order::Global, Order::WithinGroup];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn a_full_width_subnet_reproduces_the_imported_network(shape in shapes()) {
        let imported = shape.model();
        let (x, sigma, classes) = shape.batch(&imported);
        let want = denoise(&imported, 0, &x, &sigma, &classes);
        for order in ORDERS {
            let ranked = shape.allocated(order);
            let full = ranked.subnet("full").unwrap();
            let error = relative_error(&denoise(&ranked, full, &x, &sigma, &classes), &want);
            prop_assert!(error < TOLERANCE, "{order:?}: {error:.1e}");
        }
    }

    #[test]
    fn a_subnet_reproduces_its_extraction_in_both_formats(shape in shapes()) {
        let dir = tempfile::tempdir().unwrap();
        for order in ORDERS {
            let model = shape.allocated(order);
            let (x, sigma, classes) = shape.batch(&model);
            for subnet in 0..model.subnets().len() {
                let want = denoise(&model, subnet, &x, &sigma, &classes);
                let extracted = model.extract(subnet).unwrap();
                prop_assert_eq!(extracted.subnets()[0].parameters, model.subnets()[subnet].parameters);
                prop_assert_eq!(extracted.subnets()[0].macs, model.subnets()[subnet].macs);

                extracted.write(dir.path(), DType::F32).unwrap();
                let loaded = Model::open(dir.path()).unwrap();
                let error = relative_error(&denoise(&loaded, 0, &x, &sigma, &classes), &want);
                prop_assert!(error < TOLERANCE, "{order:?}, subnet {subnet}: {error:.1e}");

                let (json, weights) = (dir.path().join("config.json"), dir.path().join("weights.safetensors"));
                let params = extracted.in_original_order().unwrap();
                public::write(extracted.network.spec(), &params, &weights).unwrap();
                public_config::write_song_unet(&extracted.card.backbone, &extracted.network, &json).unwrap();
                let (backbone, preconditioning) = public_config::read_song_unet(&json).unwrap();
                let network = Network::new(&backbone, preconditioning).unwrap();
                let params = public::read(network.spec(), &weights).unwrap();
                let card = Card::new("public".into(), backbone, preconditioning, vec![]);
                let public = Model::unallocated(card, Supernet::original(network.spec(), params)).unwrap();
                let error = relative_error(&denoise(&public, 0, &x, &sigma, &classes), &want);
                prop_assert!(error < TOLERANCE, "{order:?}, subnet {subnet} under public names: {error:.1e}");
            }
        }
    }

    #[test]
    fn an_extraction_can_be_cut_like_the_supernet(shape in shapes()) {
        for order in ORDERS {
            let model = shape.allocated(order);
            let (x, sigma, classes) = shape.batch(&model);
            let [narrow, wide] = [model.subnet("0.4").unwrap(), model.subnet("0.6").unwrap()];
            let want = denoise(&model, narrow, &x, &sigma, &classes);
            let extracted = model.extract(wide).unwrap();
            let row = Subnet::new(extracted.network.spec(), 0.4, &model.widths(narrow));
            let extracted = extracted.with_subnets("channels", vec![row]).unwrap();
            let again = extracted.extract(extracted.subnet("0.4").unwrap()).unwrap();
            let error = relative_error(&denoise(&again, 0, &x, &sigma, &classes), &want);
            prop_assert!(error < TOLERANCE, "{order:?}: {error:.1e}");
        }
    }

    #[test]
    fn smaller_subnets_are_prefixes_of_larger_ones(shape in shapes()) {
        let model = shape.allocated(Order::Global);
        let spec = model.network.spec();
        let [narrow, wide] = [model.subnet("0.4").unwrap(), model.subnet("0.6").unwrap()];
        let widths = model.widths(narrow);
        prop_assert!(widths.nests_in(&model.widths(wide)));
        let (small, large) = (sliced(&model, narrow), sliced(&model, wide));
        let pairs = small.leaves().iter().zip(large.leaves());
        for (param, (small, large)) in spec.params.iter().zip(pairs) {
            let mut prefix = large.clone();
            for slice in &param.slices {
                prefix = prefix.narrow(slice.axis, 0, widths.0[slice.pipe]).unwrap();
            }
            let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            prop_assert_eq!(values(&prefix), values(small), "{}", &param.name);
        }
    }

    #[test]
    fn inference_computes_what_the_network_that_is_trained_computes(shape in shapes()) {
        for order in ORDERS {
            let model = shape.allocated(order);
            let (x, sigma, classes) = shape.batch(&model);
            let labels = model.network.labels(&classes);
            for subnet in 0..model.subnets().len() {
                let call = model.network.call(&Tape::off(), &sliced(&model, subnet), &x, &sigma, &labels).unwrap();
                let error = relative_error(&denoise(&model, subnet, &x, &sigma, &classes), &call.denoised);
                prop_assert!(error < TOLERANCE, "{order:?}, subnet {subnet}: {error:.1e}");
            }
        }
    }

    #[test]
    fn a_sample_is_the_same_alone_and_in_a_batch(shape in shapes()) {
        let model = shape.allocated(Order::Global);
        let (x, sigma, classes) = shape.batch(&model);
        let elements = model.image().elements();
        for subnet in 0..model.subnets().len() {
            let together = denoise(&model, subnet, &x, &sigma, &classes);
            for i in 0..BATCH {
                let x = &x[i * elements..][..elements];
                let alone = denoise(&model, subnet, x, &sigma[i..=i], &classes[i..=i]);
                prop_assert_eq!(&alone[..], &together[i * elements..][..elements], "subnet {}, sample {}", subnet, i);
            }
        }
    }
}
