//! Instructions of a whole warp.

use super::instruction::{MmaType, Shuffle};
use half::{bf16, f16};

pub(super) const WARP: usize = 32;

/// The lane that `lane` reads, and whether it is one that the instruction's clamp allows (else the lane reads itself).
pub(super) fn source(what: Shuffle, lane: u32, by: u32, clamp: u32) -> (u32, bool) {
    let (segment, limit, by) = (clamp >> 8 & 31, clamp & 31, by & 31);
    let (first, last) = (lane & segment, lane & segment | limit & !segment);
    let (from, inside) = match what {
        Shuffle::Butterfly => (lane ^ by, lane ^ by <= last),
        Shuffle::Index => (first | by & !segment, first | by & !segment <= last),
        // Its clamp is a lower bound.
        Shuffle::Up => (lane.wrapping_sub(by), lane >= by && lane - by >= last),
        Shuffle::Down => (lane + by, lane + by <= last),
    };
    if inside { (from, true) } else { (lane, false) }
}

/// What a lane brings to a matrix product: registers of a, b and c.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Fragments {
    pub(super) a: [u32; 4],
    pub(super) b: [u32; 2],
    pub(super) c: [f32; 4],
}

/// What an mma leaves in each lane (layouts: PTX ISA, "Matrix Fragments for mma.m16n8k16" and "mma.m16n8k8"). Products are
/// exact in f32; they are added one by one, in the order of k.
pub(super) fn mma(what: MmaType, lanes: &[Fragments; WARP]) -> [[f32; 4]; WARP] {
    let element = |bits: u32| match what {
        MmaType::F16 => f16::from_bits(bits as u16).to_f32(),
        MmaType::Bf16 => bf16::from_bits(bits as u16).to_f32(),
        // The unit does not see the last bits.
        MmaType::Tf32 => f32::from_bits(bits & 0xffff_e000),
    };
    let (mut a, mut b, mut d) = ([[0.0f32; 16]; 16], [[0.0f32; 8]; 16], [[0.0f32; 8]; 16]);
    for (lane, from) in lanes.iter().enumerate() {
        let (g, t) = (lane / 4, lane % 4);
        for i in 0..4 {
            let row = g + 8 * (i % 2);
            if what == MmaType::Tf32 {
                a[row][t + 4 * (i / 2)] = element(from.a[i]);
            } else {
                let k = 2 * t + 8 * (i / 2);
                [a[row][k], a[row][k + 1]] = [element(from.a[i]), element(from.a[i] >> 16)];
            }
            d[g + 8 * (i / 2)][2 * t + i % 2] = from.c[i];
        }
        for i in 0..2 {
            if what == MmaType::Tf32 {
                b[t + 4 * i][g] = element(from.b[i]);
            } else {
                let k = 2 * t + 8 * i;
                [b[k][g], b[k + 1][g]] = [element(from.b[i]), element(from.b[i] >> 16)];
            }
        }
    }
    let depth = if what == MmaType::Tf32 { 8 } else { 16 };
    for (a, d) in a.iter().zip(&mut d) {
        for (a, b) in a[..depth].iter().zip(&b) {
            d.iter_mut().zip(b).for_each(|(d, b)| *d += a * b);
        }
    }
    std::array::from_fn(|lane| std::array::from_fn(|i| d[lane / 4 + 8 * (i / 2)][2 * (lane % 4) + i % 2]))
}
