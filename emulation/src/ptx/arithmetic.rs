//! What instructions compute, on the bits of registers.

use super::instruction::{Binary, Comparison, Rounding, Type, Unary};
use half::{bf16, f16};
use std::cmp::Ordering;

fn f32_of(bits: u64) -> f32 {
    f32::from_bits(bits as u32)
}

fn bits32(value: f32) -> u64 {
    // A GPU has one NaN.
    u64::from(if value.is_nan() { 0x7fff_ffff } else { value.to_bits() })
}

fn f64_of(bits: u64) -> f64 {
    f64::from_bits(bits)
}

fn bits64(value: f64) -> u64 {
    value.to_bits()
}

/// The value of an integer register.
fn integer(kind: Type, bits: u64) -> i128 {
    let bits = kind.truncate(bits);
    match kind {
        Type::Signed(bytes) => {
            let unused = 64 - 8 * bytes;
            i128::from((bits << unused) as i64 >> unused)
        }
        _ => i128::from(bits),
    }
}

pub(super) fn unary(what: Unary, kind: Type, a: u64) -> Result<u64, String> {
    Ok(match (kind, what) {
        (Type::F32, _) => {
            let x = f32_of(a);
            match what {
                // On the bits: NaN too.
                Unary::Negate => a ^ 0x8000_0000,
                Unary::Absolute => a & 0x7fff_ffff,
                Unary::Sqrt => bits32(x.sqrt()),
                Unary::Reciprocal => bits32(1.0 / x),
                Unary::ReciprocalSqrt => bits32((1.0 / f64::from(x).sqrt()) as f32),
                Unary::Exp2 => bits32(flush(f64::from(x).exp2() as f32)),
                Unary::Log2 => bits32(f64::from(x).log2() as f32),
                Unary::Not => return unknown(what, kind),
            }
        }
        (Type::F64, _) => match what {
            Unary::Negate => a ^ 1 << 63,
            Unary::Absolute => a & !(1 << 63),
            Unary::Sqrt => bits64(f64_of(a).sqrt()),
            // The GPU's gives the upper half only; what uses it goes on from there.
            Unary::Reciprocal => bits64(1.0 / f64_of(a)) & !0xffff_ffff,
            Unary::ReciprocalSqrt => bits64(1.0 / f64_of(a).sqrt()) & !0xffff_ffff,
            _ => return unknown(what, kind),
        },
        (Type::Predicate, Unary::Not) => kind.truncate(!a),
        (Type::Unsigned(_) | Type::Signed(_), Unary::Not) => kind.truncate(!a),
        (Type::Signed(_), Unary::Negate) => kind.truncate(a.wrapping_neg()),
        (Type::Signed(_), Unary::Absolute) => kind.truncate(integer(kind, a).unsigned_abs() as u64),
        _ => return unknown(what, kind),
    })
}

/// ex2.approx.ftz gives zero instead of subnormal numbers.
fn flush(value: f32) -> f32 {
    if value.is_subnormal() { 0.0 } else { value }
}

fn unknown<T>(what: impl std::fmt::Debug, kind: Type) -> Result<T, String> {
    Err(format!("{what:?} of {kind:?} is not known"))
}

pub(super) fn binary(what: Binary, kind: Type, rounding: Rounding, a: u64, b: u64) -> Result<u64, String> {
    match kind {
        Type::F32 => float32(what, rounding, a, b),
        Type::F64 => float64(what, rounding, a, b),
        Type::F16 | Type::Bf16 => unknown(what, kind),
        _ => {
            let bits = 8 * kind.bytes();
            let (x, y) = (integer(kind, a), integer(kind, b));
            let result = match what {
                Binary::Add => x + y,
                Binary::Subtract => x - y,
                Binary::Multiply | Binary::MultiplyWide => x.wrapping_mul(y),
                Binary::MultiplyHigh if kind == Type::Unsigned(8) => ((x as u128 * y as u128) >> 64) as i128,
                Binary::MultiplyHigh => (x * y) >> bits,
                Binary::Divide | Binary::Remainder if y == 0 => return Err("an integer is divided by zero".to_owned()),
                Binary::Divide => x / y,
                Binary::Remainder => x % y,
                Binary::Minimum => x.min(y),
                Binary::Maximum => x.max(y),
                Binary::And => x & y,
                Binary::Or => x | y,
                Binary::Xor => x ^ y,
                // The distance is 32 bits in every type, and is clamped.
                Binary::ShiftLeft => x.wrapping_shl((b as u32).min(64)),
                Binary::ShiftRight => x >> (b as u32).min(bits),
                Binary::CopySign => return unknown(what, kind),
            };
            Ok(match (what, kind) {
                (Binary::MultiplyWide, Type::Unsigned(4) | Type::Signed(4)) => result as u64,
                (Binary::MultiplyWide, _) => result as u64 & 0xffff_ffff,
                _ => kind.truncate(result as u64),
            })
        }
    }
}

fn float32(what: Binary, rounding: Rounding, a: u64, b: u64) -> Result<u64, String> {
    let (x, y) = (f32_of(a), f32_of(b));
    // One operation of two f32 in f64 and one rounding more is the operation in f32 (Figueroa 1995).
    if rounding != Rounding::Nearest {
        return match what {
            Binary::Add => Ok(bits32(round32(f64::from(x) + f64::from(y), two_sum(x.into(), y.into()), rounding))),
            Binary::Multiply => Ok(bits32(round32(f64::from(x) * f64::from(y), 0.0, rounding))),
            _ => unknown(what, Type::F32),
        };
    }
    Ok(match what {
        Binary::Add => bits32(x + y),
        Binary::Subtract => bits32(x - y),
        Binary::Multiply => bits32(x * y),
        Binary::Divide => bits32(x / y),
        // A number before NaN, as on a GPU.
        Binary::Minimum => bits32(x.min(y)),
        Binary::Maximum => bits32(x.max(y)),
        // PTX takes the sign from the first operand.
        Binary::CopySign => a & 0x8000_0000 | b & 0x7fff_ffff,
        _ => return unknown(what, Type::F32),
    })
}

fn float64(what: Binary, rounding: Rounding, a: u64, b: u64) -> Result<u64, String> {
    let (x, y) = (f64_of(a), f64_of(b));
    if rounding != Rounding::Nearest {
        return match what {
            Binary::Add => Ok(bits64(directed64(x + y, two_sum(x, y), rounding))),
            _ => unknown(what, Type::F64),
        };
    }
    Ok(match what {
        Binary::Add => bits64(x + y),
        Binary::Subtract => bits64(x - y),
        Binary::Multiply => bits64(x * y),
        Binary::Divide => bits64(x / y),
        Binary::Minimum => bits64(x.min(y)),
        Binary::Maximum => bits64(x.max(y)),
        Binary::CopySign => a & 1 << 63 | b & !(1 << 63),
        _ => return unknown(what, Type::F64),
    })
}

/// What x + y in f64 leaves out (Knuth 1969).
fn two_sum(x: f64, y: f64) -> f64 {
    let sum = x + y;
    let part = sum - x;
    let rest = (x - (sum - part)) + (y - part);
    if rest.is_finite() { rest } else { 0.0 }
}

/// The number `nearest + rest` in f64, `rest` being less than half a unit.
fn directed64(nearest: f64, rest: f64, rounding: Rounding) -> f64 {
    let down = match rounding {
        Rounding::Nearest => return nearest,
        Rounding::Down => true,
        Rounding::Up => false,
        Rounding::Zero => nearest > 0.0,
    };
    match (down, rest.partial_cmp(&0.0)) {
        (true, Some(Ordering::Less)) => nearest.next_down(),
        (false, Some(Ordering::Greater)) => nearest.next_up(),
        _ => nearest,
    }
}

/// The number `value + rest` in f32, `rest` being less than half a unit of the f64.
fn round32(value: f64, rest: f64, rounding: Rounding) -> f32 {
    let nearest = value as f32;
    let down = match rounding {
        Rounding::Nearest => return nearest,
        Rounding::Down => true,
        Rounding::Up => false,
        Rounding::Zero => value > 0.0,
    };
    let (exact, rounded) = ((value, rest), (f64::from(nearest), 0.0));
    match (down, exact.partial_cmp(&rounded)) {
        (true, Some(Ordering::Less)) => nearest.next_down(),
        (false, Some(Ordering::Greater)) => nearest.next_up(),
        _ => nearest,
    }
}

pub(super) fn fused(kind: Type, rounding: Rounding, saturate: bool, [a, b, c]: [u64; 3]) -> Result<u64, String> {
    let result = match (kind, rounding) {
        (Type::F32, Rounding::Nearest) => bits32(f32_of(a).mul_add(f32_of(b), f32_of(c))),
        (Type::F32, _) => {
            // The product of two f32 is exact in f64.
            let (product, sum) = (f64::from(f32_of(a)) * f64::from(f32_of(b)), f64::from(f32_of(c)));
            bits32(round32(product + sum, two_sum(product, sum), rounding))
        }
        (Type::F64, Rounding::Nearest) => bits64(f64_of(a).mul_add(f64_of(b), f64_of(c))),
        _ => return unknown("a fused multiply-add with a direction", kind),
    };
    Ok(if saturate && kind == Type::F32 { bits32(saturated(f32_of(result))) } else { result })
}

/// Within [0, 1]; NaN becomes 0.
fn saturated(value: f32) -> f32 {
    if value > 0.0 { value.min(1.0) } else { 0.0 }
}

pub(super) fn multiply_add(kind: Type, wide: bool, [a, b, c]: [u64; 3]) -> Result<u64, String> {
    let what = if wide { Binary::MultiplyWide } else { Binary::Multiply };
    let product = binary(what, kind, Rounding::Nearest, a, b)?;
    let sum = product.wrapping_add(c);
    Ok(match (wide, kind.bytes()) {
        (true, 4) => sum,
        (true, _) => sum & 0xffff_ffff,
        (false, _) => kind.truncate(sum),
    })
}

pub(super) fn compare(kind: Type, comparison: Comparison, unordered: bool, a: u64, b: u64) -> Result<bool, String> {
    let order = match kind {
        Type::F32 => f32_of(a).partial_cmp(&f32_of(b)),
        Type::F64 => f64_of(a).partial_cmp(&f64_of(b)),
        Type::F16 | Type::Bf16 => return unknown(comparison, kind),
        _ => Some(integer(kind, a).cmp(&integer(kind, b))),
    };
    let Some(order) = order else { return Ok(comparison == Comparison::NotNumbers || unordered) };
    Ok(match comparison {
        Comparison::Equal => order.is_eq(),
        Comparison::NotEqual => order.is_ne(),
        Comparison::Less => order.is_lt(),
        Comparison::LessEqual => order.is_le(),
        Comparison::Greater => order.is_gt(),
        Comparison::GreaterEqual => order.is_ge(),
        Comparison::Numbers => true,
        Comparison::NotNumbers => false,
    })
}

/// A float as the integer that `rounding` gives.
fn integral(value: f64, rounding: Rounding) -> f64 {
    match rounding {
        Rounding::Nearest => value.round_ties_even(),
        Rounding::Zero => value.trunc(),
        Rounding::Down => value.floor(),
        Rounding::Up => value.ceil(),
    }
}

pub(super) fn integral_bits(kind: Type, rounding: Rounding, a: u64) -> u64 {
    match kind {
        Type::F32 => bits32(integral(f32_of(a).into(), rounding) as f32),
        _ => bits64(integral(f64_of(a), rounding)),
    }
}

pub(super) fn convert(to: Type, from: Type, rounding: Rounding, saturate: bool, a: u64) -> Result<u64, String> {
    if let Type::Unsigned(_) | Type::Signed(_) | Type::Predicate = from {
        let value = integer(from, a);
        return Ok(match to {
            Type::F32 if rounding == Rounding::Nearest => bits32(value as f32),
            Type::F64 if rounding == Rounding::Nearest => bits64(value as f64),
            Type::Unsigned(_) | Type::Signed(_) if !saturate => to.truncate(value as u64),
            _ => return unknown(format!("conversion from {from:?}"), to),
        });
    }
    let value = match from {
        Type::F16 => f16::from_bits(a as u16).to_f64(),
        Type::Bf16 => bf16::from_bits(a as u16).to_f64(),
        Type::F32 => f32_of(a).into(),
        _ => f64_of(a),
    };
    Ok(match to {
        Type::F32 if saturate => bits32(saturated(value as f32)),
        Type::F32 => bits32(round32(value, 0.0, rounding)),
        Type::F64 => bits64(value),
        Type::F16 if from == Type::F32 && rounding == Rounding::Nearest && !saturate => match value.is_nan() {
            true => 0x7fff,
            false => f16::from_f32(f32_of(a)).to_bits().into(),
        },
        Type::Bf16 if from == Type::F32 && rounding == Rounding::Nearest && !saturate => match value.is_nan() {
            true => 0x7fff,
            false => bf16::from_f32(f32_of(a)).to_bits().into(),
        },
        // Rust's conversions clamp and make NaN 0, as a GPU's.
        Type::Signed(4) => u64::from(integral(value, rounding) as i32 as u32),
        Type::Signed(8) => integral(value, rounding) as i64 as u64,
        Type::Unsigned(4) => u64::from(integral(value, rounding) as u32),
        Type::Unsigned(8) => integral(value, rounding) as u64,
        Type::Unsigned(2) => u64::from(integral(value, rounding) as u16),
        _ => return unknown(format!("conversion from {from:?}"), to),
    })
}

/// cvt.rna.tf32.f32: 10 bits after the point, ties away from zero.
pub(super) fn to_tf32(a: u64) -> u64 {
    let bits = a as u32;
    match f32::from_bits(bits) {
        value if value.is_nan() => 0x7fff_ffff,
        value if value.is_infinite() => bits.into(),
        _ => (bits.wrapping_add(0x1000) & 0xffff_e000).into(),
    }
}

/// Four bytes of two registers, each chosen by four bits, of which the highest asks for its sign in all bits.
pub(super) fn permute(a: u64, b: u64, choice: u64) -> u64 {
    let bytes = (a & 0xffff_ffff | b << 32).to_le_bytes();
    let chosen = [0, 1, 2, 3].map(|place| {
        let choice = choice >> (4 * place) & 15;
        let byte = bytes[(choice & 7) as usize];
        if choice & 8 == 0 { byte } else { (byte as i8 >> 7) as u8 }
    });
    u32::from_le_bytes(chosen).into()
}

/// `b` with `length` bits of `a` from `start`.
pub(super) fn insert_bits(kind: Type, a: u64, b: u64, start: u64, length: u64) -> u64 {
    let (start, length) = ((start & 255).min(64), (length & 255).min(64));
    let mask = ((1u128 << length) - 1) << start;
    kind.truncate(((u128::from(a) << start & mask) | (u128::from(b) & !mask)) as u64)
}
