//! A model ready to denoise: weights packed once for all subnets, threads, buffers.

use super::network::Network;
use super::on_cpu::{Packed, SubnetView};
use super::program::Inputs;
use super::rows::drawn_anew;
use super::{About, Denoiser, Model, Rows};
use crate::ImageShape;
use crate::Result;
use crate::diffusion::preconditioning::Coefficients;
use crate::ops::cpu::fused::{Kind, Layer, Recorder, Team, Workspace};
use crate::supernet::Supernet;

/// The threads that compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Threads {
    /// How many, the caller's own included; `None` is one for each core that the process may use.
    pub count: Option<usize>,
    /// Whether each of the others is bound to a core of its own.
    pub pin: bool,
}

impl Threads {
    /// The most that can be asked for: a mistyped number shall not start thousands.
    pub const MOST: usize = 1024;

    /// One for each core, wherever the system puts them.
    pub const ALL: Self = Self { count: None, pin: false };

    /// So many, wherever the system puts them.
    pub fn new(count: usize) -> Self {
        Self { count: Some(count), pin: false }
    }

    /// How many there are.
    pub fn number(self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        self.count.unwrap_or_else(cores)
    }

    pub(crate) fn team(self) -> Team {
        Team::new(self.number(), self.pin)
    }
}

/// A network of a model directory in the host's memory, at all of its widths.
#[derive(Debug)]
pub struct HostRunner {
    network: Network,
    packed: Packed,
    views: Vec<SubnetView>,
    about: About,
    workspace: Workspace,
}

impl HostRunner {
    /// Packs the model's weights. The model itself is not needed afterwards.
    ///
    /// # Errors
    /// [`crate::Error::Tensor`] on a device fault.
    pub fn new(model: &Model, threads: Threads) -> Result<Self> {
        Self::consuming(model, model.supernet.clone(), threads, None)
    }

    /// The same of the model's `supernet`, whose memory is given back on the way where nobody else holds it. The packed weights shall
    /// take at most `limit` bytes, where there is a limit; they take more if those of the definition do.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn consuming(model: &Model, supernet: Supernet, threads: Threads, limit: Option<usize>) -> Result<Self> {
        let network = model.network.clone();
        let views = (0..model.table.subnets.len())
            .map(|subnet| SubnetView::new(network.spec(), &supernet, model.widths(subnet)));
        let views: Vec<SubnetView> = views.collect();
        let packed = network.pack(supernet, limit)?;
        let bytes = packed.bytes() + views.iter().map(SubnetView::bytes).sum::<usize>();
        Ok(Self { about: About::of(model, bytes), packed, views, network, workspace: Workspace::new(threads.team()) })
    }

    /// Memory in the buffers of activations.
    pub fn activation_bytes(&self) -> usize {
        self.workspace.arena.bytes()
    }

    /// The threads that compute, the caller's own included.
    pub fn threads(&self) -> usize {
        self.workspace.team.threads()
    }

    /// The threads themselves.
    pub fn team(&mut self) -> &mut Team {
        &mut self.workspace.team
    }

    /// Lets other threads compute from now on. No result changes.
    pub fn set_threads(&mut self, threads: Threads) {
        self.workspace.team = threads.team();
    }

    /// The network.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// As [`Denoiser::denoise`], which cannot fail on the host.
    pub fn call(&mut self, subnet: usize, rows: &Rows) -> Vec<f32> {
        self.run(subnet, rows, Coefficients::denoised)
    }

    /// The raw network's output F for the same: the predicted noise of a variance preserving network.
    pub fn raw(&mut self, subnet: usize, rows: &Rows) -> Vec<f32> {
        self.run(subnet, rows, |_, _, raw| raw)
    }

    fn run(&mut self, subnet: usize, rows: &Rows, output: impl Fn(&Coefficients, f32, f32) -> f32) -> Vec<f32> {
        let (Rows { image, x, beside, levels, conditions }, batch) = (*rows, rows.count());
        assert!(x.len() == batch * image.elements() && conditions.len() == batch, "size of the batch");
        if batch == 0 {
            return Vec::new();
        }
        let ImageShape { height, width, channels } = image;
        let preconditioning = self.network.preconditioning();
        let coefficients: Vec<_> = levels.iter().map(|&level| preconditioning.at(level)).collect();
        let noise: Vec<f32> = coefficients.iter().map(|c| c.c_noise as f32).collect();
        let more = self.network.beside();
        let given = channels + more;
        let mut input = self.workspace.arena.map([batch, height, width, given]);
        let (sample, pitch) = (input.sample(), input.pitch());
        let mut beside = beside.chunks_exact(more.max(1));
        let samples = input.data_mut().chunks_exact_mut(sample).zip(x.chunks_exact(image.elements()));
        for ((pixels, x), c) in samples.zip(&coefficients) {
            for (pixel, x) in pixels.chunks_exact_mut(pitch).zip(x.chunks_exact(channels)) {
                pixel.iter_mut().zip(x).for_each(|(value, &x)| *value = c.input(x));
                if more > 0 {
                    let place = &mut pixel[channels..given];
                    match beside.next() {
                        Some(beside) => place.copy_from_slice(beside),
                        None => place.iter_mut().enumerate().for_each(|(at, value)| *value = drawn_anew(at)),
                    }
                }
            }
        }
        let shape = [height, width, channels, channels];
        self.workspace.ended(format_args!("input"), Kind::Elementwise, shape, 0);
        let (class, context) = (rows.classes(), rows.texts(self.network.program().context_elements()));
        let inputs = Inputs { noise: &noise, class: &class, context: &context };
        let raw = self.packed.forward(&mut self.workspace, &self.views[subnet], &input, inputs);
        let mut denoised = x.to_vec();
        let samples = denoised.chunks_exact_mut(image.elements()).zip(raw.data().chunks_exact(raw.sample()));
        for ((x, raw), c) in samples.zip(&coefficients) {
            let raw = raw.chunks_exact(raw.len() / (height * width)).flat_map(|pixel| &pixel[..channels]);
            x.iter_mut().zip(raw).for_each(|(x, &raw)| *x = output(c, *x, raw));
        }
        self.workspace.arena.put(input);
        self.workspace.arena.put(raw);
        self.workspace.ended(format_args!("output"), Kind::Elementwise, shape, 0);
        denoised
    }

    /// As [`Self::call`], and what each layer of it took, in the order in which they ran.
    pub fn timed_call(&mut self, subnet: usize, rows: &Rows) -> (Vec<f32>, Vec<Layer>) {
        self.workspace.recorder = Some(Recorder::new());
        let denoised = self.call(subnet, rows);
        let recorder = self.workspace.recorder.take();
        (denoised, recorder.map_or_else(Vec::new, Recorder::layers))
    }
}

impl Denoiser for HostRunner {
    fn about(&self) -> &About {
        &self.about
    }

    fn activation_bytes(&self) -> usize {
        self.activation_bytes()
    }

    fn denoise(&mut self, subnet: usize, rows: &Rows) -> Result<Vec<f32>> {
        Ok(self.call(subnet, rows))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::preconditioning::Preconditioning;
    use crate::nets::Backbone;
    use crate::nets::model::Card;
    use crate::ops::cpu::simd::narrowed::on_every_instruction_set;
    use crate::philox::Stream;
    use crate::supernet::{Subnet, Widths};
    use candle_core::{Device, Tensor};

    /// Networks with every kind of layer, the subnet `0.500` of each, and `full`.
    fn models() -> [Model; 3] {
        [
            serde_json::json!({
                "arch": "song-unet", "img_resolution": 12, "img_channels": 3, "label_dim": 3, "model_channels": 20,
                "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [6], "embedding_type": "fourier",
                "encoder_type": "residual", "decoder_type": "standard", "resample_filter": [1.0, 3.0, 3.0, 1.0],
            }),
            serde_json::json!({
                "arch": "adm", "img_resolution": 12, "img_channels": 3, "label_dim": 3, "model_channels": 64,
                "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [6],
            }),
            serde_json::json!({
                "arch": "u-vit", "img_size": 12, "patch_size": 3, "in_chans": 3, "embed_dim": 60, "depth": 2,
                "num_heads": 3, "mlp_ratio": 3, "mlp_time_embed": true, "num_classes": 3,
            }),
        ]
        .map(model)
    }

    fn model(config: serde_json::Value) -> Model {
        let backbone: Backbone = serde_json::from_value(config).unwrap();
        let network = Network::new(&backbone, Preconditioning::Vp).unwrap();
        let spec = network.spec();
        let param = |(index, shape): (usize, &Vec<usize>)| {
            let mut values = vec![0.0; shape.iter().product()];
            Stream::new(1, 1, index as u64).fill_normals(&mut values);
            values.iter_mut().for_each(|value| *value *= 0.2);
            Tensor::from_vec(values, shape.as_slice(), &Device::Cpu).unwrap()
        };
        let params = spec.params.iter().map(|param| &param.shape).enumerate().map(param).collect();
        let half = Subnet::new(spec, 0.5, &Widths(spec.pipes.iter().map(|pipe| pipe.width / 2).collect()));
        let supernet = Supernet::original(spec, params);
        let card = Card::new("every-layer".into(), backbone, Preconditioning::Vp, vec![]);
        Model::unallocated(card, supernet).unwrap().with_subnets("channels", vec![half]).unwrap()
    }

    #[test]
    fn every_instruction_set_computes_the_same_bits() {
        for model in models() {
            let mut x = vec![0.0; 2 * 12 * 12 * 3];
            Stream::new(2, 1, 0).fill_normals(&mut x);
            for subnet in 0..2 {
                let [scalar, narrower, widest] = on_every_instruction_set(|| {
                    let mut runner = HostRunner::new(&model, Threads::new(2)).unwrap();
                    runner.denoise_classes(subnet, &x, &[0.3, 4.0], &[Some(1), None]).unwrap()
                });
                assert!(widest.iter().all(|value| value.is_finite()));
                assert_eq!(scalar, widest, "without vectors, subnet {subnet}");
                assert_eq!(narrower, widest, "with narrower vectors, subnet {subnet}");
            }
        }
    }
}
