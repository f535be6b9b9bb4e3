//! Puts two cores into the situation of a row, lets time pass, and asks.

use tidemark_core::status::{Role, SuspendReason};
use tidemark_core::verb::{PromotionClass, Verb, VerbError, VerbOk};

use super::rows::Row;
use crate::bench::{A, B, Pair, assertion, promote_anyway, site_id};

/// What a site does by which flushes are answered.
pub const SERVES: &str = "serves";
/// Longer than a lease, its wait, and every deadline.
const LONG_MS: u64 = 20_000;
const VERB_MS: u64 = 15_000;

/// What was found.
pub struct Seen {
    pub a: String,
    pub b: String,
    /// S of the newest K.
    pub sites: String,
    /// Without a word, at each site.
    pub promote: [String; 2],
    pub demote: [String; 2],
    /// `switchover` at A, to B.
    pub switchover: String,
    /// A person says that the other site is stopped.
    pub word: [String; 2],
}

impl Seen {
    /// Each question is asked of cores of its own: it changes them.
    pub fn of(row: &Row) -> Self {
        let mut pair = arranged(row, true);
        let [a, b] = [A, B].map(|site| does(&mut pair, site));
        Self {
            sites: sites(&pair),
            a,
            b,
            promote: [A, B].map(|site| ask(row, site, promote(false))),
            demote: [A, B].map(|site| ask(row, site, Verb::Demote { force: false })),
            switchover: switchover(row),
            word: [A, B].map(|site| word(row, site)),
        }
    }
}

/// Some time after the fault, with or without `autoFailover`.
fn arranged(row: &Row, auto_failover: bool) -> Pair {
    let mut pair = (row.before)(auto_failover);
    (row.fault)(&mut pair);
    pair.pass(LONG_MS);
    pair
}

fn does(pair: &mut Pair, site: usize) -> String {
    if !pair.is_up(site) {
        return "down".to_owned();
    }
    match pair.status(site).role {
        Role::Primary => {
            let write = pair.write(site, 1, 0xaa);
            pair.pass(500);
            let is_answered = pair.copies[site].replies.contains(&write);
            if is_answered { SERVES.to_owned() } else { "reads; flushes wait".to_owned() }
        }
        other => role_name(other),
    }
}

fn role_name(role: Role) -> String {
    let name = match role {
        Role::Primary => SERVES,
        Role::Secondary => "follows",
        Role::Fenced(_) => "fenced",
        Role::Suspended(SuspendReason::LeaseLost) => "holds all (lease lost)",
        Role::Suspended(SuspendReason::Restart) => "holds all (restart)",
        Role::Suspended(SuspendReason::NoSyncPeer) => "holds all (no sync peer)",
        Role::Suspended(_) => "holds all",
    };
    name.to_owned()
}

fn sites(pair: &Pair) -> String {
    let up = [A, B].into_iter().filter(|&site| pair.is_up(site));
    let Some(newest) = up.map(|site| pair.status(site).config).max_by_key(|k| k.epoch) else { return String::new() };
    [(A, 'A'), (B, 'B')].iter().filter(|(site, _)| newest.has(site_id(*site))).map(|(_, name)| name).collect()
}

/// A promotion that accepts no loss.
fn promote(is_asserted: bool) -> Verb {
    let assert_peer_fenced = is_asserted.then(assertion);
    Verb::Promote { assert_peer_fenced, max_loss_bytes: None, max_loss_seconds: None, allow_unproven: false }
}

fn ask(row: &Row, site: usize, verb: Verb) -> String {
    let mut pair = arranged(row, false);
    answer(&mut pair, site, verb)
}

fn answer(pair: &mut Pair, site: usize, verb: Verb) -> String {
    if !pair.is_up(site) {
        return "–".to_owned();
    }
    let id = pair.verb(site, verb);
    pair.pass(VERB_MS);
    pair.copies[site].end_of(id).map_or_else(|| "no answer".to_owned(), verdict)
}

fn switchover(row: &Row) -> String {
    match [A, B].into_iter().all(|site| arranged(row, false).is_up(site)) {
        true => ask(row, A, Verb::Switchover { to: site_id(B), force: false }),
        false => "–".to_owned(),
    }
}

/// At a primary a word lets the other site out of S, elsewhere it opens the copy. What has to be accepted with it is named.
fn word(row: &Row, site: usize) -> String {
    let mut pair = arranged(row, false);
    if pair.is_up(site) && pair.status(site).role == Role::Primary {
        return answer(&mut pair, site, Verb::DropPeer(assertion()));
    }
    let bare = answer(&mut pair, site, promote(true));
    let accepted = match bare.as_str() {
        BOUND => "a bound",
        ALLOW => "--allow-unproven",
        _ => return bare,
    };
    format!("{}, with {accepted}", ask(row, site, promote_anyway()))
}

const BOUND: &str = "no: the loss needs a bound";
const ALLOW: &str = "no: nothing proves what is lost";

fn verdict(end: &Result<VerbOk, VerbError>) -> String {
    let error = match end {
        Ok(VerbOk::Promoted { class, .. }) => return class.to_string(),
        Ok(VerbOk::SwitchedOver { .. }) => return PromotionClass::Lossless.to_string(),
        Ok(_) => return "done".to_owned(),
        Err(error) => error,
    };
    use tidemark_core::group::arbitrated::Unfit;
    match error {
        VerbError::PeerIsPrimary { .. } => "no: the other serves".to_owned(),
        VerbError::PeerUnproven { .. } => "no: the other may serve".to_owned(),
        VerbError::PeerInS { .. } => "no: flushes wait for the other".to_owned(),
        VerbError::PeerUnfit { why, .. } => format!("no: {why}"),
        VerbError::LossTooLarge { .. } => BOUND.to_owned(),
        VerbError::Unproven => ALLOW.to_owned(),
        VerbError::Unfit(Unfit::LeftOut) => "no: left out of S".to_owned(),
        VerbError::Unfit(Unfit::Behind) => "no: has not the newest S".to_owned(),
        VerbError::Unfit(Unfit::Forgotten) => "no: the witness forgot".to_owned(),
        VerbError::Unfit(Unfit::NotSync) => "no: not in mode sync".to_owned(),
        VerbError::Unfit(Unfit::NotPrimary) => "no: replaced".to_owned(),
        VerbError::CopyState { state, .. } => format!("no: copy {state}"),
        VerbError::Role { role, .. } => format!("no: {role} here"),
        VerbError::Interrupted(_) => "no: ends by its deadline".to_owned(),
        VerbError::Invalid(why) => format!("no: {why}"),
        VerbError::NoPeer(_) => "no: no peer".to_owned(),
    }
}
