//! Where log lines go, and in which form.

use crate::server::LogFormat;
use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

/// Writes log lines to stderr from here on; `ACCORDION_LOG` filters them, `info` and above without it.
pub(super) fn start(format: LogFormat) {
    start_with(format, filter());
}

/// As [`start`], but without the lines of servers in this process: one a request would drown what a load test says, and
/// take time from what it measures.
pub(super) fn start_without_requests() {
    let servers = "accordion::server=warn".parse().expect("a directive");
    start_with(LogFormat::Text, filter().add_directive(servers));
}

fn filter() -> EnvFilter {
    let filter = EnvFilter::builder().with_default_directive(tracing::Level::INFO.into());
    filter.with_env_var("ACCORDION_LOG").from_env_lossy()
}

fn start_with(format: LogFormat, filter: EnvFilter) {
    let lines = tracing_subscriber::fmt().with_writer(std::io::stderr).with_env_filter(filter);
    match format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => lines.json().flatten_event(true).with_span_list(false).init(),
    }
}
