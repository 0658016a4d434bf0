//! Feature maps on a machine, and what they hold.

use accordion::ops::cuda::{Accelerator, Map, Precision};
use accordion::philox::Stream;

/// A machine, and what is tried on it.
pub struct Lab<M: Accelerator> {
    pub machine: M,
    pub precision: Precision,
    seed: u64,
}

/// `[samples, height, width, channels]`, the values as the precision rounds them.
#[derive(Clone, Debug)]
pub struct Values {
    pub shape: [usize; 4],
    pub data: Vec<f64>,
}

impl Values {
    pub fn at(&self, sample: usize, y: isize, x: isize, channel: usize) -> f64 {
        let [_, height, width, channels] = self.shape;
        if y < 0 || x < 0 || y >= height as isize || x >= width as isize {
            return 0.0;
        }
        self.data[((sample * height + y as usize) * width + x as usize) * channels + channel]
    }

    /// Values by index: sample, row, column, channel.
    pub fn from_fn(shape: [usize; 4], value: impl Fn(usize, isize, isize, usize) -> f64) -> Self {
        let [samples, height, width, channels] = shape;
        let mut data = Vec::with_capacity(samples * height * width * channels);
        for b in 0..samples {
            for y in 0..height as isize {
                for x in 0..width as isize {
                    data.extend((0..channels).map(|c| value(b, y, x, c)));
                }
            }
        }
        Self { shape, data }
    }

    /// The channels of all of them side by side.
    pub fn beside(parts: &[&Self]) -> Self {
        let [samples, height, width, _] = parts[0].shape;
        let channels = parts.iter().map(|part| part.shape[3]).sum();
        Self::from_fn([samples, height, width, channels], |b, y, x, mut c| {
            for part in parts {
                if c < part.shape[3] {
                    return part.at(b, y, x, c);
                }
                c -= part.shape[3];
            }
            unreachable!("a channel of one of the parts")
        })
    }
}

impl<M: Accelerator> Lab<M> {
    pub fn new(machine: M, precision: Precision) -> Self {
        Self { machine, precision, seed: 0 }
    }

    /// What an f32 becomes in memory.
    pub fn round(&self, values: &[f32]) -> Vec<f64> {
        let mut bytes = Vec::new();
        self.precision.write(values.iter().copied(), &mut bytes);
        self.precision.read(&bytes).into_iter().map(f64::from).collect()
    }

    /// Standard normals, others at every call.
    pub fn normals(&mut self, count: usize) -> Vec<f32> {
        self.seed += 1;
        let mut values = vec![0.0; count];
        Stream::new(self.seed, 1, 0).fill_normals(&mut values);
        values
    }

    /// New memory with these bytes.
    pub fn hold(&mut self, bytes: &[u8]) -> u64 {
        let address = self.machine.allocate(bytes.len().max(1)).unwrap();
        self.machine.upload(address, bytes).unwrap();
        address
    }

    /// New memory with these values.
    pub fn floats(&mut self, values: &[f32]) -> u64 {
        self.hold(bytemuck::cast_slice(values))
    }

    /// New memory that holds no number.
    pub fn poison(&mut self, bytes: usize) -> u64 {
        self.hold(&vec![0xff; bytes])
    }

    /// `count` values from an address.
    pub fn read(&mut self, address: u64, count: usize) -> Vec<f32> {
        let mut bytes = vec![0; count * 4];
        self.machine.download(address, &mut bytes).unwrap();
        Precision::F32.read(&bytes)
    }

    /// A map of these values with zeros behind the channels.
    pub fn put(&mut self, shape: [usize; 4], values: &[f32]) -> (Map, Values) {
        let [samples, height, width, channels] = shape;
        let map = Map { address: 0, samples, height, width, channels };
        let mut bytes = Vec::new();
        for pixel in values.chunks_exact(channels) {
            self.precision.write(pixel.iter().copied(), &mut bytes);
            self.precision.write(vec![0.0; map.pitch() - channels], &mut bytes);
        }
        let data = self.round(values);
        (Map { address: self.hold(&bytes), ..map }, Values { shape, data })
    }

    /// A map of normals.
    pub fn random(&mut self, shape: [usize; 4]) -> (Map, Values) {
        let values = self.normals(shape.iter().product());
        self.put(shape, &values)
    }

    /// A map that holds no number.
    pub fn empty(&mut self, [samples, height, width, channels]: [usize; 4]) -> Map {
        let map = Map { address: 0, samples, height, width, channels };
        Map { address: self.poison(map.bytes(self.precision)), ..map }
    }

    /// What a map holds; its padding must be zeros.
    pub fn get(&mut self, map: &Map) -> Vec<f32> {
        let mut bytes = vec![0; map.bytes(self.precision)];
        self.machine.download(map.address, &mut bytes).unwrap();
        let values = self.precision.read(&bytes);
        let mut kept = Vec::new();
        for pixel in values.chunks_exact(map.pitch()) {
            kept.extend(&pixel[..map.channels]);
            assert!(pixel[map.channels..].iter().all(|&value| value == 0.0), "padding: {pixel:?}");
        }
        kept
    }
}
