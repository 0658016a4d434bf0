//! Instructions, decoded.

/// The type of an instruction's operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Type {
    Predicate,
    /// Bits, or an unsigned integer, of so many bytes.
    Unsigned(u32),
    /// A signed integer of so many bytes.
    Signed(u32),
    F16,
    Bf16,
    F32,
    F64,
}

impl Type {
    pub(super) fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "pred" => Self::Predicate,
            "f16" => Self::F16,
            "bf16" => Self::Bf16,
            "f32" => Self::F32,
            "f64" => Self::F64,
            _ => {
                let bytes = match name.get(1..)? {
                    "8" => 1,
                    "16" => 2,
                    "32" => 4,
                    "64" => 8,
                    _ => return None,
                };
                match &name[..1] {
                    "b" | "u" => Self::Unsigned(bytes),
                    "s" => Self::Signed(bytes),
                    _ => return None,
                }
            }
        })
    }

    pub(super) fn bytes(self) -> u32 {
        match self {
            Self::Predicate => 1,
            Self::Unsigned(bytes) | Self::Signed(bytes) => bytes,
            Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
            Self::F64 => 8,
        }
    }

    /// The bits of a value of this type, the rest zero.
    pub(super) fn truncate(self, value: u64) -> u64 {
        match self {
            Self::Predicate => value & 1,
            _ if self.bytes() == 8 => value,
            _ => value & ((1 << (8 * self.bytes())) - 1),
        }
    }
}

/// Where a value comes from or goes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Operand {
    Register(usize),
    Immediate(u64),
    Special(Special),
    Vector(Vec<Operand>),
    /// A base and what is added to it.
    Address(Box<Operand>, i64),
    /// `_`
    Nowhere,
}

/// Registers that say where a thread is; the axis is 0, 1 or 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Special {
    Thread(usize),
    Threads(usize),
    Block(usize),
    Blocks(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Space {
    Generic,
    Parameter,
    Shared,
    Global,
    Local,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rounding {
    Nearest,
    Zero,
    Down,
    Up,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unary {
    Negate,
    Absolute,
    Not,
    Sqrt,
    Reciprocal,
    ReciprocalSqrt,
    Exp2,
    Log2,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Binary {
    Add,
    Subtract,
    Multiply,
    MultiplyHigh,
    MultiplyWide,
    Divide,
    Remainder,
    Minimum,
    Maximum,
    And,
    Or,
    Xor,
    ShiftLeft,
    ShiftRight,
    CopySign,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    /// Neither is NaN.
    Numbers,
    /// One is NaN.
    NotNumbers,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Atomic {
    Add,
    Or,
    Increment,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shuffle {
    Butterfly,
    Index,
    Up,
    Down,
}

/// An instruction of a whole warp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Collective {
    Sync,
    Shuffle(Shuffle),
    /// By the type of the factors.
    Mma(MmaType),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MmaType {
    F16,
    Bf16,
    Tf32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Move(Type),
    Convert {
        to: Type,
        from: Type,
        rounding: Rounding,
        saturate: bool,
    },
    /// To an integer within floating point, by this rounding.
    Integral {
        kind: Type,
        rounding: Rounding,
    },
    ToTf32,
    /// From an address of a space to one of all spaces, or back.
    Generic {
        space: Space,
        back: bool,
    },
    Unary(Unary, Type),
    Binary(Binary, Type, Rounding),
    MultiplyAdd {
        kind: Type,
        wide: bool,
    },
    FusedMultiplyAdd {
        kind: Type,
        rounding: Rounding,
        saturate: bool,
    },
    Permute,
    InsertBits(Type),
    Select(Type),
    Compare {
        kind: Type,
        comparison: Comparison,
        unordered: bool,
    },
    Load {
        space: Space,
        kind: Type,
    },
    Store {
        space: Space,
        kind: Type,
    },
    Atomic {
        space: Space,
        kind: Type,
        what: Atomic,
    },
    CopyBegin,
    CopyCommit,
    CopyWait,
    Fence,
    Branch,
    Return,
    Barrier,
    Collective(Collective),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Instruction {
    /// The predicate that it needs, and whether that has to be false.
    pub(super) guard: Option<(usize, bool)>,
    pub(super) operation: Operation,
    /// As they are written; the first is where the result goes, if there is one.
    pub(super) operands: Vec<Operand>,
    /// Of the text.
    pub(super) line: usize,
}

/// The operation of an opcode such as `ld.global.v4.u32`.
pub(super) fn operation(opcode: &str) -> Option<Operation> {
    let parts: Vec<&str> = opcode.split('.').collect();
    let has = |part: &str| parts.contains(&part);
    let kind = parts.iter().rev().find_map(|part| Type::parse(part));
    let rounding = match () {
        () if has("rz") || has("rzi") => Rounding::Zero,
        () if has("rm") || has("rmi") => Rounding::Down,
        () if has("rp") || has("rpi") => Rounding::Up,
        () => Rounding::Nearest,
    };
    let space =
        [("param", Space::Parameter), ("shared", Space::Shared), ("global", Space::Global), ("local", Space::Local)];
    let space = space.into_iter().find(|(name, _)| has(name)).map_or(Space::Generic, |(_, space)| space);
    let saturate = has("sat");
    let unary = |what| Some(Operation::Unary(what, kind?));
    let binary = |what| Some(Operation::Binary(what, kind?, rounding));
    match parts[0] {
        "mov" => Some(Operation::Move(kind?)),
        "cvt" if has("tf32") => (parts == ["cvt", "rna", "tf32", "f32"]).then_some(Operation::ToTf32),
        "cvt" => {
            let [to, from] = parts.get(parts.len().checked_sub(2)?..)? else { return None };
            let (to, from) = (Type::parse(to)?, Type::parse(from)?);
            let floating = |kind| matches!(kind, Type::F32 | Type::F64);
            let integral = ["rni", "rzi", "rmi", "rpi"].iter().any(|part| has(part));
            Some(match floating(to) && to == from && integral {
                true => Operation::Integral { kind: to, rounding },
                false => Operation::Convert { to, from, rounding, saturate },
            })
        }
        "cvta" => Some(Operation::Generic { space, back: has("to") }),
        "neg" => unary(Unary::Negate),
        "abs" => unary(Unary::Absolute),
        "not" => unary(Unary::Not),
        "sqrt" => unary(Unary::Sqrt),
        "rcp" => unary(Unary::Reciprocal),
        "rsqrt" => unary(Unary::ReciprocalSqrt),
        "ex2" => unary(Unary::Exp2),
        "lg2" => unary(Unary::Log2),
        "add" => binary(Binary::Add),
        "sub" => binary(Binary::Subtract),
        "mul" if has("wide") => binary(Binary::MultiplyWide),
        "mul" if has("hi") => binary(Binary::MultiplyHigh),
        "mul" => binary(Binary::Multiply),
        "div" if has("approx") || has("full") => None,
        "div" => binary(Binary::Divide),
        "rem" => binary(Binary::Remainder),
        "min" => binary(Binary::Minimum),
        "max" => binary(Binary::Maximum),
        "and" => binary(Binary::And),
        "or" => binary(Binary::Or),
        "xor" => binary(Binary::Xor),
        "shl" => binary(Binary::ShiftLeft),
        "shr" => binary(Binary::ShiftRight),
        "copysign" => binary(Binary::CopySign),
        "mad" if has("hi") => None,
        "mad" => Some(Operation::MultiplyAdd { kind: kind?, wide: has("wide") }),
        "fma" => Some(Operation::FusedMultiplyAdd { kind: kind?, rounding, saturate }),
        "prmt" if parts == ["prmt", "b32"] => Some(Operation::Permute),
        "bfi" => Some(Operation::InsertBits(kind?)),
        "selp" => Some(Operation::Select(kind?)),
        "setp" => {
            let [_, comparison, kind] = parts[..] else { return None };
            let kind = Type::parse(kind)?;
            let floating = matches!(kind, Type::F32 | Type::F64);
            let (name, unordered) = match comparison.strip_suffix('u') {
                Some(name) if floating => (name, true),
                _ => (comparison, false),
            };
            let comparison = match name {
                "eq" => Comparison::Equal,
                "ne" => Comparison::NotEqual,
                "lt" | "lo" => Comparison::Less,
                "le" | "ls" => Comparison::LessEqual,
                "gt" | "hi" => Comparison::Greater,
                "ge" | "hs" => Comparison::GreaterEqual,
                "num" => Comparison::Numbers,
                "nan" => Comparison::NotNumbers,
                _ => return None,
            };
            Some(Operation::Compare { kind, comparison, unordered })
        }
        "ld" => Some(Operation::Load { space, kind: kind? }),
        "st" => Some(Operation::Store { space, kind: kind? }),
        "atom" => {
            let what = match () {
                () if has("add") => Atomic::Add,
                () if has("or") => Atomic::Or,
                () if has("inc") => Atomic::Increment,
                () => return None,
            };
            let kind = kind.filter(|kind| matches!(kind, Type::Unsigned(_) | Type::Signed(_)))?;
            Some(Operation::Atomic { space, kind, what })
        }
        "cp" => match opcode {
            "cp.async.cg.shared.global" => Some(Operation::CopyBegin),
            "cp.async.commit_group" => Some(Operation::CopyCommit),
            "cp.async.wait_group" => Some(Operation::CopyWait),
            _ => None,
        },
        "membar" | "fence" => Some(Operation::Fence),
        "bra" => Some(Operation::Branch),
        "ret" => Some(Operation::Return),
        "bar" if has("warp") => Some(Operation::Collective(Collective::Sync)),
        "bar" if has("sync") => Some(Operation::Barrier),
        "shfl" => {
            let what = match () {
                () if has("bfly") => Shuffle::Butterfly,
                () if has("idx") => Shuffle::Index,
                () if has("up") => Shuffle::Up,
                () if has("down") => Shuffle::Down,
                () => return None,
            };
            has("sync").then_some(Operation::Collective(Collective::Shuffle(what)))
        }
        "mma" => {
            let what = match opcode {
                "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32" => MmaType::F16,
                "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32" => MmaType::Bf16,
                "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32" => MmaType::Tf32,
                _ => return None,
            };
            Some(Operation::Collective(Collective::Mma(what)))
        }
        _ => None,
    }
}
