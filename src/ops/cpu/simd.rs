//! Run-time choice of the instruction set.

/// Runs `body` compiled for the widest instruction set of this machine, so that LLVM vectorises its loops for it.
///
/// Mark `body` and the kernels that it calls `#[inline(always)]`: what is not inlined keeps the baseline instruction set,
/// where `mul_add` is a slow function call. The `FnOnce` bound matters: a closure given straight to `Arch::dispatch` is
/// inferred to be `FnMut`, and then is called through a shim that is not inlined once the body is large.
#[inline(always)]
pub(crate) fn vectorised<R>(body: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(body)
}
