//! How values become bytes on a socket or a disk: encoding, frames, records of a file, certificates, TLS and QUIC.
//!
//! Owns the formats and their limits, and the set-up of connections (docs/decisions/0005). Refuses to
//! know what a message means, to touch sled or openraft, and to decide what a broken peer or file leads
//! to: it says exactly what it found, the caller decides.
//!
//! Read [`codec`] (values to bytes), [`frame`] (bytes on a stream) and [`record`] (bytes in a file that grows) first,
//! then [`identity`] (who a peer is), [`tls`] and [`quic`]. HTTP is not spoken here; [`first_bytes`] only bounds how long
//! a peer may take to begin it.

pub mod certs;
pub mod codec;
pub mod first_bytes;
pub mod frame;
pub mod identity;
pub mod quic;
pub mod record;
pub mod tls;
