//! Parses the command line and dispatches to one file a subcommand.

/// Keeps freed activations for the next step: the system's allocator gives large blocks back and faults them in anew.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    accordion::cli::main()
}
