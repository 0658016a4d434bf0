//! The process: its metrics, its share of the machine, and what the system lets it do.

use crate::server::agent;
use crate::server::listen::SPARE_CONNECTIONS;
use prometheus::{IntGauge, Opts, Registry};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::signal::unix::SignalKind;
use tokio::time::Instant;

/// Ticks of `/proc/*/stat` in a second: part of Linux's interface, whatever the kernel's own clock.
const USER_HZ: f64 = 100.0;
/// Shorter intervals than this are a few ticks.
const INTERVAL: Duration = Duration::from_secs(1);

/// A registry with `process_*` and `accordion_build_info`, for the server to add its own to.
///
/// # Errors
/// Never, as the registry is new; the type is prometheus's.
pub fn registry() -> prometheus::Result<Registry> {
    let registry = Registry::new();
    #[cfg(target_os = "linux")]
    registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
    let target = format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS);
    let build = Opts::new("accordion_build_info", "1; the labels say what was built.");
    let labels = [("version", env!("CARGO_PKG_VERSION")), ("target", &target)];
    let build = labels.into_iter().fold(build, |build, (name, value)| build.const_label(name, value));
    let build = IntGauge::with_opts(build)?;
    build.set(1);
    registry.register(Box::new(build))?;
    Ok(registry)
}

/// Descriptors beside those of connections: listeners, the runtime's, the model's files while it loads, a GPU's.
const OTHER_DESCRIPTORS: usize = 64;

/// Raises the limit of open descriptors as far as it may be raised, and warns where that is too little for so many
/// connections: at the limit the server accepts nobody until somebody leaves.
pub fn raise_descriptors(max_connections: usize) {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // Without the right to it, the limit stays what it is.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    let needed = (max_connections + SPARE_CONNECTIONS + agent::MAX_CONNECTIONS + OTHER_DESCRIPTORS) as u64;
    if let Some(limit) = getrlimit(Resource::Nofile).current.filter(|&limit| limit < needed) {
        tracing::warn!(
            limit,
            needed,
            max_connections,
            "the limit of file descriptors is below what limits.max_connections needs: raise the one or lower the other"
        );
    }
}

/// Whether whoever started the process has it ignore this signal.
pub(super) fn ignores(signal: SignalKind) -> bool {
    let mask = |status: String| {
        let digits = status.lines().find_map(|line| line.strip_prefix("SigIgn:"))?.trim();
        u64::from_str_radix(digits, 16).ok()
    };
    let mask = std::fs::read_to_string("/proc/self/status").ok().and_then(mask).unwrap_or_default();
    mask >> (signal.as_raw_value() - 1) & 1 == 1
}

/// Shares of the machine, from 0 to 1; 0 where the system does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Usage {
    /// Of the time of all cores that the process may use, over the last interval.
    pub cpu: f64,
    /// Of the memory that the process may use.
    pub memory: f64,
}

/// Measures [`Usage`] between two readings.
#[derive(Debug)]
pub(super) struct UsageMeter(Mutex<Window>);

#[derive(Debug)]
struct Window {
    since: Instant,
    cpu: Duration,
    usage: Usage,
}

impl UsageMeter {
    pub fn new() -> Self {
        let usage = Usage { cpu: 0.0, memory: memory_share() };
        Self(Mutex::new(Window { since: Instant::now(), cpu: cpu_time(), usage }))
    }

    pub fn read(&self) -> Usage {
        let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let elapsed = window.since.elapsed();
        if elapsed >= INTERVAL {
            let (cpu, cores) = (cpu_time(), std::thread::available_parallelism().map_or(1, usize::from));
            let share = cpu.saturating_sub(window.cpu).as_secs_f64() / (elapsed.as_secs_f64() * cores as f64);
            *window =
                Window { since: Instant::now(), cpu, usage: Usage { cpu: share.min(1.0), memory: memory_share() } };
        }
        window.usage
    }
}

fn cpu_time() -> Duration {
    let ticks = |stat: String| -> Option<u64> {
        // The second field is a name in parentheses that may hold anything; user and system time are fields 14 and 15.
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
        Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
    };
    let ticks = std::fs::read_to_string("/proc/self/stat").ok().and_then(ticks);
    Duration::from_secs_f64(ticks.unwrap_or_default() as f64 / USER_HZ)
}

/// Resident memory over the machine's or, where that is less, the control group's.
fn memory_share() -> f64 {
    let kib = |path: &str, field: &str| -> Option<f64> {
        let text = std::fs::read_to_string(path).ok()?;
        text.lines().find_map(|line| line.strip_prefix(field)?.trim().strip_suffix(" kB")?.parse().ok())
    };
    let resident = kib("/proc/self/status", "VmRSS:");
    let machine = kib("/proc/meminfo", "MemTotal:");
    // `max` where the group has no limit.
    let group = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let group = group.and_then(|text| text.trim().parse::<f64>().ok()).map_or(f64::INFINITY, |bytes| bytes / 1024.0);
    resident.zip(machine).map_or(0.0, |(resident, machine)| (resident / machine.min(group)).min(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_registry_knows_the_process_and_the_build() {
        let page = prometheus::TextEncoder::new().encode_to_string(&registry().unwrap().gather()).unwrap();
        for name in ["cpu_seconds_total", "resident_memory_bytes", "open_fds", "max_fds", "start_time_seconds"] {
            let prefix = format!("process_{name} ");
            let value = page.lines().find_map(|line| line.strip_prefix(&prefix)?.parse::<f64>().ok());
            assert!(value.is_some_and(|value| value >= 0.0), "{name} in {page}");
        }
        let build = format!("version=\"{}\"}} 1", env!("CARGO_PKG_VERSION"));
        assert!(page.lines().any(|line| line.starts_with("accordion_build_info{") && line.ends_with(&build)), "{page}");
    }

    #[test]
    fn a_process_uses_some_of_the_memory_and_not_more_than_its_cores() {
        let usage = UsageMeter::new().read();
        assert!(usage.memory > 0.0 && usage.memory < 1.0 && (0.0..=1.0).contains(&usage.cpu), "{usage:?}");
    }
}
