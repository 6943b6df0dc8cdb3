//! Models of a decision in other layouts, on other maps, and its parts alone: what the edge was built by.

use std::sync::Arc;

use crate::maps::{Arcswap, Cached, Dash, Immutable, Papaya, SccIndex};
use crate::peers::{CellsOnly, ClockOnly, HashOnly};
use crate::principal::{Apart, BootClock, Chained, Embedded, NoClock, Node};
use crate::{Named, Runner, case};

/// Parts, then complete decisions: hash, map, principal, clock, two quota cells, usage.
pub(crate) const ALL: &[Named] = &[
    ("part: SipHash-1-3-128 alone", case!(HashOnly)),
    ("part: CLOCK_BOOTTIME alone", case!(ClockOnly)),
    ("part: cells of one principal alone", case!(CellsOnly)),
    (
        "immutable map, key + rights + cells, no clock",
        case!(Immutable<Arc<Node>, NoClock>),
    ),
    (
        "immutable map, key + rights + cells",
        case!(Immutable<Arc<Node>, BootClock>),
    ),
    (
        "immutable map, rights in entry",
        case!(Immutable<(u128, Apart), BootClock>),
    ),
    (
        "immutable map, rights beside cells",
        case!(Immutable<(u128, Embedded), BootClock>),
    ),
    (
        "immutable map, three allocations",
        case!(Immutable<(u128, Chained), BootClock>),
    ),
    (
        "arc-swap shards, key + rights + cells, no clock",
        case!(Arcswap<Arc<Node>, NoClock>),
    ),
    (
        "arc-swap shards, key + rights + cells",
        case!(Arcswap<Arc<Node>, BootClock>),
    ),
    (
        "arc-swap shards, rights in entry",
        case!(Arcswap<(u128, Apart), BootClock>),
    ),
    (
        "arc-swap shards, rights beside cells",
        case!(Arcswap<(u128, Embedded), BootClock>),
    ),
    (
        "arc-swap shards, three allocations",
        case!(Arcswap<(u128, Chained), BootClock>),
    ),
    (
        "thread-cached shards, key + rights + cells, no clock",
        case!(Cached<NoClock>),
    ),
    (
        "thread-cached shards, key + rights + cells",
        case!(Cached<BootClock>),
    ),
    (
        "papaya, rights beside cells, no clock",
        case!(Papaya<Embedded, NoClock>),
    ),
    (
        "papaya, rights beside cells",
        case!(Papaya<Embedded, BootClock>),
    ),
    ("papaya, rights in entry", case!(Papaya<Apart, BootClock>)),
    (
        "papaya, three allocations",
        case!(Papaya<Chained, BootClock>),
    ),
    (
        "scc HashIndex, rights beside cells, no clock",
        case!(SccIndex<Embedded, NoClock>),
    ),
    (
        "scc HashIndex, rights beside cells",
        case!(SccIndex<Embedded, BootClock>),
    ),
    (
        "scc HashIndex, rights in entry",
        case!(SccIndex<Apart, BootClock>),
    ),
    (
        "scc HashIndex, three allocations",
        case!(SccIndex<Chained, BootClock>),
    ),
    (
        "dashmap, rights beside cells, no clock",
        case!(Dash<Embedded, NoClock>),
    ),
    (
        "dashmap, rights beside cells",
        case!(Dash<Embedded, BootClock>),
    ),
    ("dashmap, rights in entry", case!(Dash<Apart, BootClock>)),
    (
        "dashmap, three allocations",
        case!(Dash<Chained, BootClock>),
    ),
];
