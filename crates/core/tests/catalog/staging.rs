//! Files larger than a log entry: put by in parts, in effect at once.

use crate::book::{Book, audit_of, command, customer, license, limit, name, plan};
use tollgate_core::account::Per;
use tollgate_core::admin::{self, AdminCommand, AdminReply, Change, Item};
use tollgate_core::command::Command;

pub(crate) fn stage(upload: &str, part: u32, items: Vec<Item>) -> Change {
    Change::Stage {
        upload: name(upload),
        part,
        items,
    }
}

pub(crate) fn large_file() -> Vec<Item> {
    let mut items: Vec<_> = (0..3000)
        .flat_map(|n| {
            let id = format!("c{n}");
            [license(&format!("{id}-free"), &id, "free"), customer(&id)]
        })
        .collect();
    items.push(plan("free", &[limit("calls", Per::Customer, 3)]));
    items
}

#[test]
fn a_large_file_is_staged_and_takes_effect_at_once() {
    let items = large_file();
    let parts = admin::parts(items.clone());
    assert!(parts.len() > 2);
    let hash = admin::items_hash(&items);
    let count = u32::try_from(parts.len()).unwrap();
    let commit = Change::Commit {
        upload: name("f"),
        parts: count,
        hash,
    };

    let mut book = Book::new();
    // Parts come in any order and more than once.
    for (at, part) in parts
        .iter()
        .enumerate()
        .rev()
        .chain(parts.iter().enumerate().take(1))
    {
        let reply = book.change(stage("f", u32::try_from(at).unwrap(), part.clone()));
        assert!(matches!(reply, AdminReply::Staged { .. }), "{reply:?}");
        let missing = at > 0 && !matches!(reply, AdminReply::Staged { parts } if parts == count);
        if missing {
            assert!(matches!(
                book.change(commit.clone()),
                AdminReply::NotFound(_)
            ));
        }
    }
    assert_eq!(book.limit("live/c7/-/customer/calls/open"), None);
    assert_eq!(book.revision().index, 0);
    let stranger = AdminCommand {
        principal: name("mallory"),
        ..command(commit.clone())
    };
    assert!(matches!(book.admin(&stranger), AdminReply::NotFound(_)));
    assert!(matches!(
        book.change(commit.clone()),
        AdminReply::Done { changed: 6001, .. }
    ));
    assert_eq!(book.limit("live/c7/-/customer/calls/open"), Some(3));
    assert_eq!(audit_of(&mut book).len(), 6001);
    let again = book.change(commit);
    assert_eq!(
        again,
        AdminReply::NotFound(format!("upload f (0 of {count} parts)").into())
    );
}

#[test]
fn parts_of_two_files_are_never_mixed() {
    let mut book = Book::new();
    let file = [customer("a"), customer("b")];
    book.change(stage("f", 0, vec![file[0].clone()]));
    book.change(stage("f", 1, vec![customer("other")]));
    let commit = Change::Commit {
        upload: name("f"),
        parts: 2,
        hash: admin::items_hash(&file),
    };
    let AdminReply::Invalid(problems) = book.change(commit.clone()) else {
        panic!()
    };
    assert_eq!(problems[0].field, "commit.hash");
    book.change(stage("f", 1, vec![file[1].clone()]));
    assert!(matches!(
        book.change(commit),
        AdminReply::Done { changed: 2, .. }
    ));
}

#[test]
fn uploads_that_nobody_commits_go() {
    let mut book = Book::new();
    for upload in ["u0", "u1", "u2", "u3", "u4"] {
        book.change(stage(upload, 0, vec![customer(upload)]));
    }
    let commit = |upload: &str| Change::Commit {
        upload: name(upload),
        parts: 1,
        hash: admin::items_hash(&[customer(upload)]),
    };
    assert!(
        matches!(book.change(commit("u0")), AdminReply::NotFound(_)),
        "the oldest made room"
    );
    assert!(matches!(book.change(commit("u4")), AdminReply::Done { .. }));
    for _ in 0..=admin::UPLOAD_TTL_MS / 1000 {
        book.tell(Command::Tick);
    }
    assert!(
        matches!(book.change(commit("u3")), AdminReply::NotFound(_)),
        "an hour went by"
    );
}

#[test]
fn staging_is_bounded_in_bytes() {
    let mut book = Book::new();
    let id = "c".repeat(64);
    let part: Vec<_> = (0..admin::ITEMS_MAX)
        .map(|_| license(&id, &id, &id))
        .collect();
    let size: usize = part.iter().map(Item::size_bytes).sum();
    let fits = u32::try_from(admin::STAGED_BYTES_MAX / size).unwrap();
    book.change(stage("other", 0, part.clone()));
    for n in 0..fits {
        let reply = book.change(stage("f", n, part.clone()));
        assert_eq!(reply, AdminReply::Staged { parts: n + 1 });
    }
    assert!(matches!(
        book.change(stage("f", fits, part)),
        AdminReply::Malformed(_)
    ));
    let commit = Change::Commit {
        upload: name("other"),
        parts: 1,
        hash: 0,
    };
    assert!(
        matches!(book.change(commit), AdminReply::NotFound(_)),
        "it made room"
    );
}
