//! How the process holds on to memory.

/// Keeps freed pages instead of giving them back to the system.
///
/// Activations are freed and wanted again at every step; giving them back means that the kernel clears each page anew,
/// which showed as a large part of a training step's profile. The process stays as large as it once was, which the next step needs anyway.
pub fn keep_freed_pages() {
    /// `mi_option_purge_delay`, which the bindings do not name; -1 is never.
    const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
    // SAFETY: setting an option of mimalloc is allowed at any time; this one takes any value from -1 up.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, -1) }
}
