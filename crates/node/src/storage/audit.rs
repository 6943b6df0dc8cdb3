//! Reads the audit log back, in the order of its numbers, each record checked against its envelope.

use super::checkpoint::audit_name;
use super::fault::{Doing, StoreError};
use super::record;
use super::store::Store;

impl Store {
    /// The contents of the audit records after number `after`, oldest first, at most `limit`. Those of the last
    /// moment may still be with the machine. Blocks on the disk.
    ///
    /// # Errors
    /// [`StoreError`] names a damaged record.
    pub fn audit_after(&self, after: u64, limit: usize) -> Result<Vec<Vec<u8>>, StoreError> {
        let (_, state) = self.halves();
        let from = after.saturating_add(1).to_be_bytes();
        let content = |item: sled::Result<(sled::IVec, sled::IVec)>| {
            let (key, value) = item.doing("read from")?;
            let number = key.as_ref().try_into().map_or(0, u64::from_be_bytes);
            Ok(record::unwrap(&key, &value, || audit_name(number))?.to_vec())
        };
        state
            .shared
            .audit
            .range(from..)
            .take(limit)
            .map(content)
            .collect()
    }
}
