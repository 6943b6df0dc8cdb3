//! Ports of one's own on 127.0.0.1, for processes that are started there, killed, and started there again.
//!
//! Owns: the choice of ports that nobody else gets, from [`Ports::claim`] until the value is dropped. A port that the
//! system chose for port 0 and that was closed again is not one: the system may give it to the next socket of any
//! process, while the process it was meant for is still starting, or is dead for a moment.
//!
//! Two things keep others away. The ports lie outside the range from which the system gives ports
//! (`net.ipv4.ip_local_port_range`, see ip(7)). And each is claimed by a socket in the abstract namespace (unix(7)),
//! which is one per network namespace, as ports are, and ends with the process, however that ends.
//!
//! Refuses to listen: who claims a port starts what listens there.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::ops::RangeInclusive;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener};

/// Below it lie the ports of well-known services.
const LOWEST: u16 = 15_000;

/// Where the system says from which range it gives ports.
const RANGE_FILE: &str = "/proc/sys/net/ipv4/ip_local_port_range";

/// Ports on 127.0.0.1 that are the holder's for UDP and TCP until this is dropped.
#[derive(Debug)]
pub struct Ports {
    addresses: Vec<SocketAddr>,
    _claims: Vec<UnixListener>,
}

/// No ports could be claimed.
#[derive(Debug, thiserror::Error)]
pub enum NoPorts {
    /// Too few are left.
    #[error(
        "expected {expected} free ports on 127.0.0.1 outside {given:?}, from which the system gives ports, found {found}; \
         end what holds them, or narrow net.ipv4.ip_local_port_range"
    )]
    TooFew {
        /// How many were asked for.
        expected: usize,
        /// How many were free.
        found: usize,
        /// The system's range.
        given: RangeInclusive<u16>,
    },
    /// The system's range cannot be read.
    #[error("{RANGE_FILE}: {0}")]
    Range(#[source] io::Error),
}

impl Ports {
    /// As many ports as `count`.
    ///
    /// # Errors
    /// [`NoPorts`] if too few are left outside the system's range.
    pub fn claim(count: usize) -> Result<Self, NoPorts> {
        let given = system_range()?;
        let outside: Vec<u16> = (LOWEST..=u16::MAX)
            .filter(|port| !given.contains(port))
            .collect();
        let too_few = |found| NoPorts::TooFew {
            expected: count,
            found,
            given: given.clone(),
        };
        if outside.len() < count {
            return Err(too_few(outside.len()));
        }
        // Runs at the same time begin apart, and a run begins where the last one did not: what still talks to the
        // ports of a run that has ended finds nobody. Claims, not this, keep them from meeting.
        let begin = std::process::id() as usize * 97 % outside.len().max(1);
        let (late, early) = outside.split_at(begin);
        let claims: Vec<_> = early
            .iter()
            .chain(late)
            .filter_map(|port| Some((*port, claimed(*port)?)))
            .take(count)
            .collect();
        if claims.len() < count {
            return Err(too_few(claims.len()));
        }
        Ok(Self::of(claims))
    }

    /// Exactly these ports, or none if another process has one of them. They may lie in the system's range: then
    /// only those who claim too keep away.
    #[must_use]
    pub fn claim_these(ports: &[u16]) -> Option<Self> {
        let claim = |port: &u16| Some((*port, claimed(*port)?));
        let claims: Option<Vec<_>> = ports.iter().map(claim).collect();
        claims.map(Self::of)
    }

    fn of(claims: Vec<(u16, UnixListener)>) -> Self {
        let (ports, claims): (Vec<u16>, Vec<UnixListener>) = claims.into_iter().unzip();
        Self {
            addresses: ports.into_iter().map(address).collect(),
            _claims: claims,
        }
    }

    /// The addresses, as many as were asked for, all different.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }
}

fn address(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// The claim on a port, if nobody has one and nobody listens there.
fn claimed(port: u16) -> Option<UnixListener> {
    let name = UnixAddr::from_abstract_name(format!("tollgate-port-{port}")).ok()?;
    let claim = UnixListener::bind_addr(&name).ok()?;
    let is_free =
        TcpListener::bind(address(port)).is_ok() && UdpSocket::bind(address(port)).is_ok();
    is_free.then_some(claim)
}

/// From where the system gives ports.
fn system_range() -> Result<RangeInclusive<u16>, NoPorts> {
    let text = std::fs::read_to_string(RANGE_FILE).map_err(NoPorts::Range)?;
    let found = || io::Error::other(format!("expected two ports, found {text:?}"));
    let mut ports = text.split_ascii_whitespace().map(str::parse);
    match (ports.next(), ports.next()) {
        (Some(Ok(low)), Some(Ok(high))) => Ok(low..=high),
        _ => Err(NoPorts::Range(found())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::sync::{Mutex, MutexGuard};

    /// One test at a time: what one lets go, another would claim.
    fn alone() -> MutexGuard<'static, ()> {
        static ALONE: Mutex<()> = Mutex::new(());
        ALONE
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    #[test]
    fn what_is_claimed_is_not_claimed_again_until_it_is_let_go() {
        let _alone = alone();
        let first = Ports::claim(6).unwrap();
        let ports: Vec<u16> = first.addresses().iter().map(SocketAddr::port).collect();
        assert_eq!(ports.iter().collect::<BTreeSet<_>>().len(), 6);
        let second = Ports::claim(6).unwrap();
        assert!(
            second
                .addresses()
                .iter()
                .all(|address| !first.addresses().contains(address))
        );
        assert!(Ports::claim_these(&ports[..1]).is_none());
        drop(first);
        assert!(Ports::claim_these(&ports).is_some());
    }

    #[test]
    fn the_system_gives_none_of_them_away() {
        let _alone = alone();
        let given = system_range().unwrap();
        let claimed = Ports::claim(3).unwrap();
        assert!(
            claimed
                .addresses()
                .iter()
                .all(|address| !given.contains(&address.port()))
        );
    }

    #[test]
    fn a_port_somebody_listens_on_is_passed_over() {
        let _alone = alone();
        let ours = Ports::claim(2).unwrap();
        let udp = UdpSocket::bind(ours.addresses()[0]).unwrap();
        let tcp = TcpListener::bind(ours.addresses()[1]).unwrap();
        let ports: Vec<u16> = ours.addresses().iter().map(SocketAddr::port).collect();
        drop(ours);
        assert!(Ports::claim_these(&ports[..1]).is_none(), "{udp:?} is open");
        assert!(Ports::claim_these(&ports[1..]).is_none(), "{tcp:?} is open");
    }

    #[test]
    fn more_than_there_are_is_an_error_that_counts() {
        let asked = usize::from(u16::MAX) + 1;
        let failed = Ports::claim(asked).unwrap_err().to_string();
        assert!(failed.starts_with("expected 65536 free ports"), "{failed}");
    }
}
