//! A UDP proxy for one link, with faults on request: delay, loss, duplication, reordering, cuts, each way by itself.
//!
//! Owns: the sockets of the link, one towards the target per client, so that the target tells clients apart as it would
//! without. What happens to a datagram is decided by [`Line`] from the seed and the datagram's number in its
//! direction; when it departs is the operating system's matter. Needs no privileges.
//! Refuses: to look into datagrams, to know QUIC. Read next: `proxy/line.rs`.

mod line;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::net::UdpSocket;
use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinSet};

pub use line::{Chance, Counts, Faults, HOLD_MAX, QUEUE_DATAGRAMS_MAX};
use line::{Datagram, Line, mix};

/// Most clients with a socket of their own; a further one takes that of the client silent for longest.
pub const CLIENTS_MAX: usize = 256;

/// Room for the longest UDP datagram.
const DATAGRAM_BYTES_MAX: usize = 65_535;

/// A direction of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// From the clients to the target.
    Out,
    /// From the target back to the clients.
    Back,
}

/// Both directions, in the order in which a link keeps them.
const DIRECTIONS: [Direction; 2] = [Direction::Out, Direction::Back];

/// A running proxy for one link; dropping it ends it.
#[derive(Debug)]
pub struct Proxy {
    link: Arc<Link>,
    address: SocketAddr,
    /// Ends the tasks with the proxy.
    _tasks: JoinSet<()>,
}

impl Proxy {
    /// Listens on `listen` (port 0 takes a free one) for what is meant for `target`, without faults at first.
    /// The same `seed` does the same to the n-th datagram of each direction.
    ///
    /// # Errors
    /// `listen` cannot be bound.
    pub async fn start(listen: SocketAddr, target: SocketAddr, seed: u64) -> io::Result<Self> {
        let socket = UdpSocket::bind(listen).await?;
        let address = socket.local_addr()?;
        let link = Arc::new(Link {
            target,
            socket,
            lines: DIRECTIONS.map(|direction| Lane {
                line: Mutex::new(Line::new(mix(mix(seed).wrapping_add(direction as u64)))),
                changed: Notify::new(),
            }),
            clients: Mutex::new(BTreeMap::new()),
            cut_off: Mutex::new(BTreeSet::new()),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(Arc::clone(&link).take_in());
        for direction in DIRECTIONS {
            tasks.spawn(Arc::clone(&link).deliver(direction));
        }
        Ok(Self {
            link,
            address,
            _tasks: tasks,
        })
    }

    /// Where clients send to.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes the faults of one direction, from the next datagram on; a cut also takes what is under way.
    pub fn set(&self, direction: Direction, faults: Faults) {
        self.link.lane(direction).line().set(faults);
    }

    /// The faults of one direction.
    #[must_use]
    pub fn faults(&self, direction: Direction) -> Faults {
        self.link.lane(direction).line().faults()
    }

    /// Cuts one direction; its other faults stay set.
    pub fn cut(&self, direction: Direction) {
        self.set_cut(direction, true);
    }

    /// Cuts both directions; their other faults stay set.
    pub fn cut_both(&self) {
        DIRECTIONS.iter().for_each(|direction| self.cut(*direction));
    }

    /// Cuts one client off, both ways: what it sends and is sent from now on is dropped. Others do not notice.
    pub fn cut_off(&self, client: SocketAddr) {
        lock(&self.link.cut_off).insert(client);
    }

    /// Lifts all cuts; the other faults stay set.
    pub fn heal(&self) {
        lock(&self.link.cut_off).clear();
        DIRECTIONS
            .iter()
            .for_each(|direction| self.set_cut(*direction, false));
    }

    fn set_cut(&self, direction: Direction, cut: bool) {
        let mut line = self.link.lane(direction).line();
        let faults = Faults {
            cut,
            ..line.faults()
        };
        line.set(faults);
    }

    /// What became of the datagrams of one direction.
    #[must_use]
    pub fn counts(&self, direction: Direction) -> Counts {
        self.link.lane(direction).line().counts()
    }
}

/// What the proxy's tasks share.
#[derive(Debug)]
struct Link {
    target: SocketAddr,
    /// Faces the clients.
    socket: UdpSocket,
    /// By [`Direction`].
    lines: [Lane; 2],
    clients: Mutex<BTreeMap<SocketAddr, Client>>,
    /// Clients that nothing passes from or to.
    cut_off: Mutex<BTreeSet<SocketAddr>>,
}

/// A direction's line, and the bell for whoever delivers from it.
#[derive(Debug)]
struct Lane {
    line: Mutex<Line>,
    changed: Notify,
}

/// A client's own way to the target.
#[derive(Debug)]
struct Client {
    socket: Arc<UdpSocket>,
    last_seen: Instant,
    /// Reads what the target answers.
    reader: AbortHandle,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// Nobody panics while holding one of these locks half done: a poisoned one is as good as any.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Lane {
    fn line(&self) -> MutexGuard<'_, Line> {
        lock(&self.line)
    }

    fn arrive(&self, client: SocketAddr, bytes: &[u8]) {
        let datagram = Datagram {
            client,
            bytes: bytes.to_vec(),
        };
        self.line().arrive(Instant::now(), datagram);
        self.changed.notify_one();
    }

    fn drop_one(&self) {
        self.line().drop_one();
    }
}

impl Link {
    fn lane(&self, direction: Direction) -> &Lane {
        &self.lines[direction as usize]
    }

    fn pass(&self, direction: Direction, client: SocketAddr, bytes: &[u8]) {
        if lock(&self.cut_off).contains(&client) {
            self.lane(direction).drop_one();
        } else {
            self.lane(direction).arrive(client, bytes);
        }
    }

    /// Takes in what clients send, for ever.
    async fn take_in(self: Arc<Self>) {
        let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
        // Ends with the proxy's tasks; the readers of its clients live in here and end with it.
        let mut readers = JoinSet::new();
        loop {
            while readers.try_join_next().is_some() {}
            // Errors of a socket without a peer are of one datagram only, and nobody waits for it.
            let Ok((length, client)) = self.socket.recv_from(&mut buffer).await else {
                continue;
            };
            if self.know(client, &mut readers).await.is_err() {
                // Without a socket for it there is no way on: it is as if the datagram had met a full network.
                continue;
            }
            self.pass(Direction::Out, client, &buffer[..length]);
        }
    }

    /// Makes sure that `client` has a socket towards the target.
    async fn know(
        self: &Arc<Self>,
        client: SocketAddr,
        readers: &mut JoinSet<()>,
    ) -> io::Result<()> {
        if let Some(known) = lock(&self.clients).get_mut(&client) {
            known.last_seen = Instant::now();
            return Ok(());
        }
        let any = match self.target {
            SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
            SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
        };
        let socket = Arc::new(UdpSocket::bind(any).await?);
        socket.connect(self.target).await?;
        let reader = readers.spawn(Arc::clone(self).take_back(client, Arc::clone(&socket)));
        let mut clients = lock(&self.clients);
        if clients.len() >= CLIENTS_MAX {
            let longest_silent = clients.iter().min_by_key(|(_, known)| known.last_seen);
            if let Some(client) = longest_silent.map(|(client, _)| *client) {
                clients.remove(&client);
            }
        }
        clients.insert(
            client,
            Client {
                socket,
                last_seen: Instant::now(),
                reader,
            },
        );
        Ok(())
    }

    /// Takes in what the target answers to one client, until that client is forgotten.
    async fn take_back(self: Arc<Self>, client: SocketAddr, socket: Arc<UdpSocket>) {
        let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
        loop {
            // A target that is down is reported here, once per datagram sent to it; it may come up again.
            let Ok(length) = socket.recv(&mut buffer).await else {
                continue;
            };
            self.pass(Direction::Back, client, &buffer[..length]);
        }
    }

    /// Sends on what is due in one direction, for ever.
    async fn deliver(self: Arc<Self>, direction: Direction) {
        let lane = self.lane(direction);
        loop {
            let (datagram, next_due) = {
                let mut line = lane.line();
                (line.depart(Instant::now()), line.next_due())
            };
            match (datagram, next_due) {
                (Some(datagram), _) => match self.send(direction, &datagram).await {
                    Ok(()) => lane.line().sent(),
                    Err(_) => lane.line().unsendable(),
                },
                (None, Some(due)) => {
                    tokio::select! {
                        () = tokio::time::sleep_until(due.into()) => {}
                        () = lane.changed.notified() => {}
                    }
                }
                (None, None) => lane.changed.notified().await,
            }
        }
    }

    async fn send(&self, direction: Direction, datagram: &Datagram) -> io::Result<()> {
        match direction {
            Direction::Back => {
                self.socket
                    .send_to(&datagram.bytes, datagram.client)
                    .await?
            }
            Direction::Out => {
                let socket = lock(&self.clients)
                    .get(&datagram.client)
                    .map(|client| Arc::clone(&client.socket));
                socket
                    .ok_or(io::ErrorKind::NotConnected)?
                    .send(&datagram.bytes)
                    .await?
            }
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests;
