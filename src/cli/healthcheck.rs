//! `accordion healthcheck`: a probe for images that have no other HTTP client.

use crate::cli::serve;
use crate::console::print;
use crate::loadtest::client::{Call, Client};
use crate::{Error, Result};
use axum::http::StatusCode;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// A server that is well answers within milliseconds; one that is busy shares its cores.
const PATIENCE: Duration = Duration::from_secs(3);

/// Ask the server on this machine whether it is ready: exit code 0 if so, 1 if not.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The server's config; `config/serve.toml` if that file exists, else the defaults.
    #[arg(long, env = "ACCORDION_CONFIG")]
    config: Option<PathBuf>,
    /// The address that the server listens on, in place of the config's.
    #[arg(long, env = "ACCORDION_LISTEN")]
    listen: Option<SocketAddr>,
}

impl Args {
    /// Runs the subcommand.
    pub fn run(self) -> Result<()> {
        let listen = match self.listen {
            Some(listen) => listen,
            None => serve::file(self.config)?.0.listen,
        };
        let address = reachable(listen);
        let unready = |problem: String| Error::Unready { address, problem };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| unready(error.to_string()))?;
        runtime.block_on(ask(address)).map_err(unready)?;
        // The answer is the exit code.
        let _ = print(format_args!("{address}: ready"));
        Ok(())
    }
}

/// `GET /readyz`; what is wrong, in a few words, where that is not 200.
async fn ask(address: SocketAddr) -> std::result::Result<(), String> {
    let asked = async {
        let client = Client::connect(address, 0).await.map_err(|error| error.to_string())?;
        client.send(&Call::get("/readyz")).await
    };
    let reply = tokio::time::timeout(PATIENCE, asked).await;
    let reply = reply.map_err(|_| format!("no answer within {} s", PATIENCE.as_secs()))??;
    match reply.status {
        StatusCode::OK => Ok(()),
        _ => Err(format!("not ready: {}", reply.code())),
    }
}

/// An address at which a server that listens on `listen` can be reached: "all interfaces" is nowhere to connect to.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_on_all_interfaces_is_asked_on_the_loopback_one() {
        for (listen, address) in [
            ("0.0.0.0:8080", "127.0.0.1:8080"),
            ("[::]:8080", "[::1]:8080"),
            ("127.0.0.1:1", "127.0.0.1:1"),
            ("10.0.0.7:80", "10.0.0.7:80"),
        ] {
            assert_eq!(reachable(listen.parse().unwrap()).to_string(), address);
        }
    }
}
