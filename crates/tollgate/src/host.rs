//! [`HostPort`]: where something listens, as people write it: `127.0.0.1:7201` or `gate-1.internal:7201`.
//!
//! Owns: the check of the form and the look-up of the name. Refuses: to choose among a name's addresses; whoever connects
//! tries them in turn.

use crate::output::{Exit, Failure};
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

/// A host name or an address, with a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPort(String);

impl FromStr for HostPort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let good = text.rsplit_once(':').is_some_and(|(host, port)| {
            // An IPv6 address stands in brackets, so that its colons are not the port's.
            let one_host = !host.contains(':') || text.parse::<SocketAddr>().is_ok();
            !host.is_empty() && one_host && port.parse::<u16>().is_ok_and(|port| port > 0)
        });
        if good {
            Ok(Self(text.to_owned()))
        } else {
            Err("expected host:port, as in 127.0.0.1:7201 or localhost:7201".to_owned())
        }
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl HostPort {
    /// Every address of it, in the resolver's order; at least one.
    ///
    /// # Errors
    /// [`Failure`] when the name is not known.
    pub async fn resolve(&self) -> Result<Vec<SocketAddr>, Failure> {
        let unknown = |why: &dyn fmt::Display| {
            Failure::new(Exit::Unavailable, format!("{self}: no address: {why}"))
        };
        let found = tokio::net::lookup_host(&self.0).await;
        let found: Vec<SocketAddr> = found.map_err(|e| unknown(&e))?.collect();
        if found.is_empty() {
            return Err(unknown(&"the name has none"));
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_addresses_need_a_port() {
        for good in [
            "127.0.0.1:7201",
            "localhost:1",
            "[::1]:7201",
            "gate-1.example:65535",
        ] {
            assert_eq!(good.parse::<HostPort>().unwrap().to_string(), good);
        }
        for bad in [
            "",
            "localhost",
            ":7201",
            "localhost:",
            "localhost:0",
            "a:b:1",
            "::1:7201",
            "x:70000",
        ] {
            assert!(bad.parse::<HostPort>().is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn localhost_has_an_address() {
        let found = "localhost:7201"
            .parse::<HostPort>()
            .unwrap()
            .resolve()
            .await
            .unwrap();
        assert!(
            found
                .iter()
                .all(|addr| addr.ip().is_loopback() && addr.port() == 7201)
        );
    }
}
