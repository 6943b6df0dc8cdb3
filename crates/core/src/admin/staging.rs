//! Parts of catalog files that are too large for one log entry, kept until they are committed as a whole.
//!
//! Staging changes nothing that anyone acts on: a part is a record of its own, replaced when it comes
//! again. Nothing waits here for ever: an upload is dropped when nothing was added for
//! [`UPLOAD_TTL_MS`] of ledger time (looked at with every administrative command), and the one that
//! stood longest when a new one needs its room.

use super::Item;
use crate::account::Name;
use crate::table::Table;
use crate::time::LedgerTime;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Uploads at once.
pub const UPLOADS_MAX: usize = 4;

/// Parts of one upload.
pub const PARTS_MAX: u32 = 1024;

/// Bytes of all staged items, by [`Item::size_bytes`].
pub const STAGED_BYTES_MAX: usize = 32 * 1024 * 1024;

/// How long an upload may stand without a new part: one hour of ledger time.
pub const UPLOAD_TTL_MS: u64 = 3_600_000;

/// Names an upload: who began it, and what they call it.
pub(crate) type UploadKey = (Name, Name);

/// Names a staged part.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PartKey {
    /// Who staged it; nobody else can commit it.
    pub principal: Name,
    /// The upload.
    pub upload: Name,
    /// Which part, from 0.
    pub part: u32,
}

impl PartKey {
    fn upload_key(&self) -> UploadKey {
        (self.principal.clone(), self.upload.clone())
    }
}

/// A staged part.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Part {
    /// When it came.
    pub time: LedgerTime,
    /// Its records.
    pub items: Vec<Item>,
}

/// What is counted of an upload: a function of its parts.
#[derive(Clone, Copy, Debug, Default)]
struct Upload {
    newest: LedgerTime,
    parts: usize,
    bytes: usize,
}

/// See the module's text.
#[derive(Clone, Debug)]
pub(crate) struct Staging {
    parts: Table<PartKey, Part>,
    uploads: BTreeMap<UploadKey, Upload>,
}

impl Staging {
    pub(crate) fn new(kind: u8) -> Self {
        Self {
            parts: Table::new(kind),
            uploads: BTreeMap::new(),
        }
    }

    /// Takes a part in; answers how many parts of its upload stand, or `None` when it alone exceeds
    /// what may be staged.
    pub(crate) fn stage(&mut self, key: PartKey, part: Part) -> Option<usize> {
        let upload = key.upload_key();
        let size = size_bytes(&part.items);
        self.take_out(&key);
        let standing = self.uploads.get(&upload).map_or(0, |upload| upload.bytes);
        if standing.saturating_add(size) > STAGED_BYTES_MAX {
            return None;
        }
        while self.bytes().saturating_add(size) > STAGED_BYTES_MAX {
            self.drop_oldest_but(&upload);
        }
        while !self.uploads.contains_key(&upload) && self.uploads.len() >= UPLOADS_MAX {
            self.drop_oldest_but(&upload);
        }
        self.put(key, part);
        self.uploads.get(&upload).map(|upload| upload.parts)
    }

    /// Writes a part as it is.
    pub(crate) fn put(&mut self, key: PartKey, part: Part) {
        let upload = self.uploads.entry(key.upload_key()).or_default();
        upload.newest = upload.newest.max(part.time);
        upload.parts = upload.parts.saturating_add(1);
        upload.bytes = upload.bytes.saturating_add(size_bytes(&part.items));
        self.parts.put(key, part);
    }

    /// The records of an upload in order, if exactly the parts `0..parts` stand.
    pub(crate) fn whole(&self, upload: &UploadKey, parts: u32) -> Option<Vec<Item>> {
        let standing = self.uploads.get(upload)?.parts;
        if standing != usize::try_from(parts).ok()? {
            return None;
        }
        let mut items = Vec::new();
        for (at, (key, part)) in (0..parts).zip(self.parts_of(upload)) {
            if key.part != at {
                return None;
            }
            items.extend(part.items.iter().cloned());
        }
        Some(items)
    }

    /// How many parts of an upload stand.
    pub(crate) fn standing(&self, upload: &UploadKey) -> usize {
        self.uploads.get(upload).map_or(0, |upload| upload.parts)
    }

    pub(crate) fn drop_upload(&mut self, upload: &UploadKey) {
        let keys: Vec<_> = self.parts_of(upload).map(|(key, _)| key.clone()).collect();
        for key in keys {
            self.parts.remove(&key);
        }
        self.uploads.remove(upload);
    }

    /// Drops what nobody went on with.
    pub(crate) fn age(&mut self, now: LedgerTime) {
        let is_old = |upload: &Upload| now.0.saturating_sub(upload.newest.0) > UPLOAD_TTL_MS;
        while let Some(key) = self
            .uploads
            .iter()
            .find(|(_, u)| is_old(u))
            .map(|(k, _)| k.clone())
        {
            self.drop_upload(&key);
        }
    }

    pub(crate) fn part(&self, key: &PartKey) -> Option<&Part> {
        self.parts.get(key)
    }

    pub(crate) fn parts(&self) -> impl Iterator<Item = (&PartKey, &Part)> {
        self.parts.iter()
    }

    pub(crate) fn digest(&self) -> u128 {
        self.parts.digest()
    }

    pub(crate) fn take_dirty(&mut self) -> BTreeSet<PartKey> {
        self.parts.take_dirty()
    }

    fn bytes(&self) -> usize {
        self.uploads
            .values()
            .fold(0, |sum, upload| sum.saturating_add(upload.bytes))
    }

    fn parts_of(&self, upload: &UploadKey) -> impl Iterator<Item = (&PartKey, &Part)> {
        let key = |part| PartKey {
            principal: upload.0.clone(),
            upload: upload.1.clone(),
            part,
        };
        self.parts.range(key(0)..=key(u32::MAX))
    }

    fn drop_oldest_but(&mut self, kept: &UploadKey) {
        let others = self.uploads.iter().filter(|(key, _)| *key != kept);
        let oldest = others
            .min_by_key(|(_, upload)| upload.newest)
            .map(|(key, _)| key.clone());
        match oldest {
            Some(oldest) => self.drop_upload(&oldest),
            None => unreachable!("one upload alone is within the bounds: its caller looked"),
        }
    }

    /// Removes a part and everything counted of it; times of the parts that stay are looked at again.
    fn take_out(&mut self, key: &PartKey) {
        let Some(old) = self.parts.remove(key) else {
            return;
        };
        let name = key.upload_key();
        let newest = self.parts_of(&name).map(|(_, part)| part.time).max();
        let Some(upload) = self.uploads.get_mut(&name) else {
            return;
        };
        upload.parts = upload.parts.saturating_sub(1);
        upload.bytes = upload.bytes.saturating_sub(size_bytes(&old.items));
        match newest {
            Some(newest) => upload.newest = newest,
            None => {
                self.uploads.remove(&name);
            }
        }
    }
}

fn size_bytes(items: &[Item]) -> usize {
    items
        .iter()
        .fold(0, |sum, item| sum.saturating_add(item.size_bytes()))
}
