//! Named faults for the simulator: each is a mistake this protocol invites, switched on by name.
//!
//! Without the feature `planted` every question here is the constant `false` and the compiler removes the
//! branch. With it, one fault at a time is chosen per thread. What must catch each is listed in
//! docs/simulator.md.

macro_rules! faults {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Names of all faults, as the simulator's command line spells them.
        pub const NAMES: &[&str] = &[$(stringify!($name)),*];

        $(
            $(#[$doc])*
            #[inline]
            #[must_use]
            pub fn $name() -> bool {
                chosen(stringify!($name))
            }
        )*
    };
}

faults! {
    /// A restarted node goes on under the epochs of its former boot.
    epoch_kept_across_a_restart,
    /// The ledger takes `returned_total` for a growth.
    returned_as_a_delta,
    /// An edge that resumes its journal also resumes the cells and lease numbers of its former boot.
    journal_resume_with_the_old_lease_book,
    /// An edge that forgot an idle account opens it again under the old number with nothing seen.
    idle_account_reopened_at_zero,
    /// Dropping a row puts its units back into the pool.
    dropped_row_frees_its_units,
    /// A surrender without an answer is stated again to the next issuer.
    surrender_resent_to_the_next_issuer,
    /// What a fenced edge was granted and did not surrender goes back into the pool.
    rest_of_a_lost_edge_freed,
    /// Any report above the last is applied, and what lies below counts as seen.
    last_seq_instead_of_in_order,
    /// A report leaves before it is in the journal.
    report_sent_before_its_fsync,
    /// An issuer opens rows under numbers it has already dropped.
    no_watermark,
    /// An edge keeps `surrendered_total` when it draws a number for a new epoch.
    surrendered_total_kept_into_the_next_epoch,
    /// An edge takes units from answers to numbers it has left.
    answers_to_an_old_lease_no_accepted,
    /// `Assign` changes slots whatever their epoch is.
    assign_without_compare_and_set,
    /// `Assign` accepts a boot that is not the node's latest.
    slot_given_to_a_dead_boot,
    /// Recalls go only to edges with a row in the book.
    recall_only_to_rows_in_the_book,
    /// The word of an edge that had not seen its grants yet is taken for its last.
    held_taken_as_final,
    /// Whoever waits is refused although the recall spared another edge.
    spared_edge_never_asked,
    /// A refusal answers whatever a check waits for by then.
    refusal_answers_any_need,
    /// `none_for_good` is remembered although the catalog changed.
    none_for_good_remembered_across_a_raise,
    /// A node answers a command before it is committed.
    acknowledge_before_commit,
    /// Use without a lease is settled from units that others hold.
    debt_taken_from_others,
    /// An edge counts its starts, from one where its journal was lost.
    start_numbers_counted_from_one,
    /// A new plan version counts in an account of its own.
    plan_change_opens_a_new_account,
}

#[cfg(not(feature = "planted"))]
#[inline]
const fn chosen(_: &str) -> bool {
    false
}

#[cfg(feature = "planted")]
thread_local! {
    static CHOSEN: std::cell::Cell<Option<&'static str>> = const { std::cell::Cell::new(None) };
}

#[cfg(feature = "planted")]
fn chosen(name: &str) -> bool {
    CHOSEN.with(|c| c.get() == Some(name))
}

/// Switches one fault on for this thread, or all off; `false` when there is none of that name.
#[cfg(feature = "planted")]
pub fn choose(name: Option<&str>) -> bool {
    let found = name.and_then(|name| NAMES.iter().find(|known| **known == name).copied());
    CHOSEN.with(|c| c.set(found));
    name.is_none() || found.is_some()
}
