//! The record of a forward pass, walked backwards for gradients.
//!
//! Why not candle's own graph: its walk allocates zeros for every gradient and adds to them, four passes over memory
//! where none is needed. Here the first gradient of a tensor is moved into place, and activations are freed as the walk
//! passes them.

use candle_core::{CustomOp1, CustomOp2, CustomOp3, Result, Shape, Tensor, TensorId};
use std::cell::RefCell;
use std::collections::{HashMap, HashSet};

/// Applies ops; when recording, remembers them.
#[derive(Default)]
pub struct Tape(Option<RefCell<Record>>);

#[derive(Default)]
struct Record {
    nodes: Vec<Node>,
    /// Tensors that a gradient is wanted for, or flows through.
    tracked: HashSet<TensorId>,
}

struct Node {
    op: Op,
    args: Vec<Tensor>,
    out: Tensor,
}

enum Op {
    One(Box<dyn CustomOp1>),
    Two(Box<dyn CustomOp2>),
    Three(Box<dyn CustomOp3>),
    Reshape,
    /// Some places of an axis, from this one on.
    Narrow(usize, usize),
}

/// The gradients of the leaves of a [`Tape`].
pub struct Gradients(HashMap<TensorId, Tensor>);

impl Gradients {
    /// The gradient of `leaf`, in its shape; `None` where the output does not depend on it.
    pub fn of(&self, leaf: &Tensor) -> Option<&Tensor> {
        self.0.get(&leaf.id())
    }
}

impl Tape {
    /// A tape that records nothing: inference.
    pub fn off() -> Self {
        Self(None)
    }

    /// A tape that records every op on what depends on `leaves`.
    pub fn recording<'a>(leaves: impl IntoIterator<Item = &'a Tensor>) -> Self {
        let tracked = leaves.into_iter().map(Tensor::id).collect();
        Self(Some(RefCell::new(Record { nodes: Vec::new(), tracked })))
    }

    /// Applies an op of one argument.
    pub fn apply1(&self, op: impl CustomOp1 + 'static, a: &Tensor) -> Result<Tensor> {
        let out = a.apply_op1_no_bwd(&op)?;
        self.record(|| Op::One(Box::new(op)), &[a], &out);
        Ok(out)
    }

    /// Applies an op of two arguments.
    pub fn apply2(&self, op: impl CustomOp2 + 'static, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        let out = a.apply_op2_no_bwd(b, &op)?;
        self.record(|| Op::Two(Box::new(op)), &[a, b], &out);
        Ok(out)
    }

    /// Applies an op of three arguments.
    pub fn apply3(&self, op: impl CustomOp3 + 'static, a: &Tensor, b: &Tensor, c: &Tensor) -> Result<Tensor> {
        let out = a.apply_op3_no_bwd(b, c, &op)?;
        self.record(|| Op::Three(Box::new(op)), &[a, b, c], &out);
        Ok(out)
    }

    /// The same elements in another shape.
    pub fn reshape(&self, a: &Tensor, shape: impl Into<Shape>) -> Result<Tensor> {
        let out = a.reshape(shape.into())?;
        self.record(|| Op::Reshape, &[a], &out);
        Ok(out)
    }

    /// The elements at `len` places of an axis, from `start` on, as a tensor of their own.
    pub fn narrow(&self, a: &Tensor, axis: usize, start: usize, len: usize) -> Result<Tensor> {
        let out = a.narrow(axis, start, len)?.contiguous()?;
        self.record(|| Op::Narrow(axis, start), &[a], &out);
        Ok(out)
    }

    fn record(&self, op: impl FnOnce() -> Op, args: &[&Tensor], out: &Tensor) {
        let Some(record) = &self.0 else { return };
        let mut record = record.borrow_mut();
        if args.iter().any(|arg| record.tracked.contains(&arg.id())) {
            record.tracked.insert(out.id());
            record.nodes.push(Node { op: op(), args: args.iter().copied().cloned().collect(), out: out.clone() });
        }
    }

    /// Walks the record backwards from `out`, whose gradient is `grad`.
    pub fn backward(self, out: &Tensor, grad: Tensor) -> Result<Gradients> {
        let Record { mut nodes, tracked } = self.0.map(RefCell::into_inner).unwrap_or_default();
        let mut grads = HashMap::from([(out.id(), grad)]);
        while let Some(Node { op, args, out }) = nodes.pop() {
            let Some(grad) = grads.remove(&out.id()) else { continue };
            let arg_grads = match &op {
                Op::One(op) => vec![op.bwd(&args[0], &out, &grad)?],
                Op::Two(op) => {
                    let (a, b) = op.bwd(&args[0], &args[1], &out, &grad)?;
                    vec![a, b]
                }
                Op::Three(op) => {
                    let (a, b, c) = op.bwd(&args[0], &args[1], &args[2], &out, &grad)?;
                    vec![a, b, c]
                }
                Op::Reshape => vec![Some(grad.reshape(args[0].shape())?)],
                Op::Narrow(axis, start) => {
                    let after = args[0].dim(*axis)? - start - out.dim(*axis)?;
                    vec![Some(grad.pad_with_zeros(*axis, *start, after)?)]
                }
            };
            for (arg, grad) in args.iter().zip(arg_grads) {
                let Some(grad) = grad.filter(|_| tracked.contains(&arg.id())) else { continue };
                let sum = match grads.remove(&arg.id()) {
                    None => grad,
                    Some(sum) => super::elementwise::add_scale(&Tape::off(), &sum, &grad, 1.0)?,
                };
                grads.insert(arg.id(), sum);
            }
        }
        Ok(Gradients(grads))
    }
}
