//! The planted fault of the catalog does what it says, so that the simulator has something to catch.

use crate::book::{acme, limit, plan, status};
use tollgate_core::account::Per;
use tollgate_core::catalog::LicenseStatus;
use tollgate_core::planted;

#[test]
fn a_new_version_counts_in_an_account_of_its_own() {
    assert!(planted::choose(Some("plan_change_opens_a_new_account")));
    let mut book = acme();
    book.change(status("acme-pro", LicenseStatus::Suspended));
    let calls = |book: &crate::book::Book| {
        let principal = book
            .ledger
            .catalog()
            .principal("k1", book.ledger.time())
            .unwrap();
        principal.limits[0].account.clone()
    };
    let first = calls(&book);
    assert_eq!(book.ledger.limit(&first), Some(100));
    book.apply(&[plan("free", &[limit("calls", Per::Customer, 200)])]);
    let second = calls(&book);
    assert_ne!(first, second);
    assert_eq!(book.ledger.limit(&second), Some(200));
    assert_eq!(book.ledger.limit(&first), None);
    assert!(
        book.ledger.catalog().knows(&first),
        "its use is settled, not suspended"
    );
    planted::choose(None);
}
