//! Where log lines go, and in which form.

use crate::server::LogFormat;
use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

/// Writes log lines to stderr from here on; `ACCORDION_LOG` filters them, `info` and above without it.
pub(super) fn start(format: LogFormat) {
    let filter = EnvFilter::builder().with_default_directive(tracing::Level::INFO.into()).with_env_var("ACCORDION_LOG");
    let lines = tracing_subscriber::fmt().with_writer(std::io::stderr).with_env_filter(filter.from_env_lossy());
    match format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => lines.json().flatten_event(true).with_span_list(false).init(),
    }
}
