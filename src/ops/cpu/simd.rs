//! Run-time choice of the instruction set.

/// Runs `body` compiled for the widest instruction set of this machine, so that LLVM vectorises its loops for it.
///
/// Mark `body` and the kernels that it calls `#[inline(always)]`: what is not inlined keeps the baseline instruction set,
/// where `mul_add` is a slow function call. The `FnOnce` bound matters: a closure given straight to `Arch::dispatch` is
/// inferred to be `FnMut`, and then is called through a shim that is not inlined once the body is large.
#[inline(always)]
pub(crate) fn vectorised<R>(body: impl FnOnce() -> R) -> R {
    arch().dispatch(body)
}

/// The widest instruction set of this machine.
#[cfg(not(test))]
#[inline(always)]
pub(crate) fn arch() -> pulp::Arch {
    pulp::Arch::new()
}

#[cfg(test)]
pub(crate) use narrowed::arch;

/// Tests can ask for an instruction set narrower than the machine's.
#[cfg(test)]
pub(crate) mod narrowed {
    use std::sync::atomic::{AtomicU8, Ordering};

    static NARROWED: AtomicU8 = AtomicU8::new(0);

    pub(crate) fn arch() -> pulp::Arch {
        match (NARROWED.load(Ordering::Relaxed), pulp::Arch::new()) {
            (1, _) => pulp::Arch::Scalar,
            #[cfg(target_arch = "x86_64")]
            (2, pulp::Arch::V4(_)) => pulp::x86::V3::try_new().map_or(pulp::Arch::Scalar, pulp::Arch::V3),
            (_, widest) => widest,
        }
    }

    /// What `f` returns without vectors, with narrower ones where there are, and with the widest. Tests that run at the
    /// same time are none the wiser: results do not depend on the instruction set, which is what this is for.
    pub(crate) fn on_every_instruction_set<T>(f: impl Fn() -> T) -> [T; 3] {
        [1, 2, 0].map(|set| {
            NARROWED.store(set, Ordering::Relaxed);
            let result = f();
            NARROWED.store(0, Ordering::Relaxed);
            result
        })
    }
}
