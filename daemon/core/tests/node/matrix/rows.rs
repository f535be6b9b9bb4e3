//! The situations, and what the model says of each.

use tidemark_core::config::{Mode, OnPeerLoss, Policy};
use tidemark_core::event::{DiskOp, FileRef};
use tidemark_core::format::witness::Cell;
use tidemark_core::types::GroupId;
use tidemark_core::verb::Verb;

use super::asked::SERVES;
use crate::bench::{A, B, Fate, Pair, node_id};
use crate::witness::Way;

/// One row.
pub struct Row {
    /// Its number in the model, or a name where it has none.
    pub number: &'static str,
    /// A, B, the link, who sees the witness, S.
    pub situation: [&'static str; 5],
    /// The sites before anything happens, with or without `autoFailover`.
    pub before: fn(bool) -> Pair,
    /// What happens.
    pub fault: fn(&mut Pair),
    /// What has to come of it.
    pub model: Model,
}

/// What the model says; nothing where a text is empty, and any of several where `|` stands between them.
#[derive(Clone, Copy)]
pub struct Model {
    pub a: &'static str,
    pub b: &'static str,
    pub sites: &'static str,
    pub promote_a: &'static str,
    pub promote_b: &'static str,
    pub switchover: &'static str,
    pub word_a: &'static str,
    pub word_b: &'static str,
}

const NOTHING: Model =
    Model { a: "", b: "", sites: "", promote_a: "", promote_b: "", switchover: "", word_a: "", word_b: "" };

const FOLLOWS: &str = "follows";
const DOWN: &str = "down";
const LEASE_LOST: &str = "holds all (lease lost)";
const RESTART: &str = "holds all (restart)";
const WAITS: &str = "reads; flushes wait";
const LOSSLESS: &str = "lossless";
const PROVES_NOTHING: &str = "unproven, with --allow-unproven";
const EITHER: &str = "lossy, with a bound|unproven, with --allow-unproven";

/// S = {A, B} under a witness with leases of two seconds.
fn witnessed(auto_failover: bool) -> Pair {
    let mut pair = Pair::new();
    pair.appoint_witness(2_000_000_000);
    let on_peer_loss = OnPeerLoss::Witness;
    let policy = Policy { mode: Mode::Sync, on_peer_loss, auto_failover, peer_loss_ms: 1_000, ..pair.status(A).policy };
    pair.verb(A, Verb::SetPolicy(policy));
    pair.pass(1_000);
    pair.write(A, 0, 1);
    assert!(pair.status(A).protected && pair.status(B).config.lease_gen != 0, "{:?}", pair.status(A));
    pair
}

/// As [`witnessed`], but B was left out and something was acknowledged since; the link is still cut.
fn alone(auto_failover: bool) -> Pair {
    let mut pair = witnessed(auto_failover);
    pair.disconnect();
    pair.pass(2_000);
    pair.write(A, 0, 2);
    assert_eq!(pair.status(A).config.sites.len(), 1);
    pair
}

/// S = {A, B}, and nobody arbitrates.
fn unwitnessed(_: bool) -> Pair {
    let mut pair = Pair::new();
    pair.verb(A, Verb::SetPolicy(Policy { mode: Mode::Sync, ..pair.status(A).policy }));
    pair.pass(1_000);
    pair.write(A, 0, 1);
    assert!(pair.status(A).protected, "{:?}", pair.status(A));
    pair
}

fn asynchronous(_: bool) -> Pair {
    let mut pair = Pair::new();
    pair.write(A, 0, 1);
    pair
}

fn shut(pair: &mut Pair, ways: [Way; 2]) {
    pair.witness.way = ways;
}

fn cut(pair: &mut Pair, ways: [Way; 2]) {
    shut(pair, ways);
    pair.disconnect();
}

fn kill(pair: &mut Pair, site: usize, ways: [Way; 2]) {
    shut(pair, ways);
    pair.kill(site);
}

/// A starts again after B was lost.
fn restart_alone(pair: &mut Pair, ways: [Way; 2]) {
    shut(pair, ways);
    pair.kill(B);
    pair.kill(A);
    pair.start(A);
}

/// B takes over and writes; then A comes back.
fn return_replaced(pair: &mut Pair) {
    pair.kill(A);
    // Where it may not take over by itself somebody asks for it.
    let promote =
        Verb::Promote { assert_peer_fenced: None, max_loss_bytes: None, max_loss_seconds: None, allow_unproven: false };
    pair.verb(B, promote);
    pair.pass(10_000);
    pair.write(B, 1, 3);
    pair.start(A);
    pair.connect();
}

fn power_cycle(pair: &mut Pair) {
    pair.kill(A);
    pair.kill(B);
    pair.start(A);
    pair.start(B);
    pair.connect();
}

fn no_frame(op: &DiskOp) -> Fate {
    if matches!(op, DiskOp::Write { file: FileRef::Log(_), .. }) { Fate::Hangs } else { Fate::Done }
}

/// B's files are those of before A's last writes. What A sends it again meets this fate.
fn put_back(pair: &mut Pair, fate: fn(&DiskOp) -> Fate) {
    let earlier = pair.copies[B].files.clone();
    (0..5).for_each(|block| {
        pair.write(A, block, 7);
    });
    pair.pass(500);
    pair.kill(B);
    pair.copies[B].files = earlier;
    pair.copies[B].fate = fate;
    pair.start(B);
    pair.connect();
}

fn wipe(pair: &mut Pair) {
    pair.witness.wipe(Cell::Group(GroupId([9; 16])));
    [A, B].into_iter().for_each(|site| pair.witness.wipe(Cell::Lease(node_id(site))));
}

const OPEN: [Way; 2] = [Way::Open, Way::Open];
const SHUT: [Way; 2] = [Way::Shut, Way::Shut];
const A_ONLY: [Way; 2] = [Way::Open, Way::Shut];
const B_ONLY: [Way; 2] = [Way::Shut, Way::Open];

/// In the model's order.
pub const ROWS: &[Row] = &[
    Row {
        number: "1",
        situation: ["up", "up", "ok", "both", "AB"],
        before: witnessed,
        fault: |_| (),
        model: Model {
            a: SERVES,
            b: FOLLOWS,
            sites: "AB",
            promote_b: "no: the other serves",
            switchover: LOSSLESS,
            ..NOTHING
        },
    },
    Row {
        number: "2",
        situation: ["up", "up", "cut", "both", "AB"],
        before: witnessed,
        fault: |pair| cut(pair, OPEN),
        model: Model {
            a: SERVES,
            b: FOLLOWS,
            sites: "A",
            promote_b: "no: left out of S",
            word_b: "lossy, with a bound",
            ..NOTHING
        },
    },
    Row {
        number: "3",
        situation: ["up", "down", "–", "A", "AB"],
        before: witnessed,
        fault: |pair| kill(pair, B, A_ONLY),
        model: Model { a: SERVES, b: DOWN, sites: "A", ..NOTHING },
    },
    Row {
        number: "4",
        situation: ["down", "up", "–", "B", "AB"],
        before: witnessed,
        fault: |pair| kill(pair, A, B_ONLY),
        model: Model { a: DOWN, b: SERVES, sites: "B", promote_b: LOSSLESS, word_b: LOSSLESS, ..NOTHING },
    },
    Row {
        number: "5",
        situation: ["up", "up", "ok", "none", "AB"],
        before: witnessed,
        fault: |pair| shut(pair, SHUT),
        model: Model { a: SERVES, b: FOLLOWS, sites: "AB", switchover: LOSSLESS, ..NOTHING },
    },
    Row {
        number: "6",
        situation: ["up", "up", "cut", "B only", "AB"],
        before: witnessed,
        fault: |pair| cut(pair, B_ONLY),
        model: Model { a: LEASE_LOST, b: SERVES, sites: "B", promote_b: LOSSLESS, word_b: LOSSLESS, ..NOTHING },
    },
    Row {
        number: "7",
        situation: ["up", "up", "cut", "A only", "AB"],
        before: witnessed,
        fault: |pair| cut(pair, A_ONLY),
        model: Model {
            a: SERVES,
            b: FOLLOWS,
            sites: "A",
            promote_b: "no: ends by its deadline",
            word_b: PROVES_NOTHING,
            ..NOTHING
        },
    },
    Row {
        number: "8",
        situation: ["up", "up", "cut", "none", "AB"],
        before: witnessed,
        fault: |pair| cut(pair, SHUT),
        model: Model {
            a: LEASE_LOST,
            b: FOLLOWS,
            sites: "AB",
            promote_b: "no: ends by its deadline",
            word_a: PROVES_NOTHING,
            word_b: PROVES_NOTHING,
            ..NOTHING
        },
    },
    Row {
        number: "9",
        situation: ["up", "down", "–", "none", "AB"],
        before: witnessed,
        fault: |pair| kill(pair, B, SHUT),
        model: Model { a: LEASE_LOST, b: DOWN, sites: "AB", word_a: PROVES_NOTHING, ..NOTHING },
    },
    Row {
        number: "10",
        situation: ["down", "up", "–", "none", "AB"],
        before: witnessed,
        fault: |pair| kill(pair, A, SHUT),
        model: Model {
            a: DOWN,
            b: FOLLOWS,
            sites: "AB",
            promote_b: "no: ends by its deadline",
            word_b: PROVES_NOTHING,
            ..NOTHING
        },
    },
    Row {
        number: "11",
        situation: ["up", "stale", "cut", "both", "A"],
        before: alone,
        fault: |_| (),
        model: Model {
            a: SERVES,
            b: FOLLOWS,
            sites: "A",
            promote_b: "no: left out of S",
            word_b: "lossy, with a bound",
            ..NOTHING
        },
    },
    Row {
        number: "12",
        situation: ["down", "stale", "–", "B", "A"],
        before: alone,
        fault: |pair| kill(pair, A, B_ONLY),
        model: Model { a: DOWN, b: FOLLOWS, promote_b: "no: left out of S", word_b: "lossy, with a bound", ..NOTHING },
    },
    Row {
        number: "13",
        situation: ["up", "stale", "cut", "none", "A"],
        before: alone,
        fault: |pair| shut(pair, SHUT),
        model: Model {
            a: SERVES,
            b: FOLLOWS,
            sites: "A",
            promote_b: "no: ends by its deadline|no: left out of S",
            word_b: EITHER,
            ..NOTHING
        },
    },
    Row {
        number: "13b",
        situation: ["up", "stale", "cut", "B only", "A"],
        before: alone,
        fault: |pair| shut(pair, B_ONLY),
        model: Model { a: SERVES, b: FOLLOWS, sites: "A", promote_b: "no: left out of S", word_b: EITHER, ..NOTHING },
    },
    Row {
        number: "14",
        situation: ["restarts", "down", "–", "A", "AB"],
        before: witnessed,
        fault: |pair| restart_alone(pair, A_ONLY),
        model: Model { a: SERVES, b: DOWN, sites: "A", ..NOTHING },
    },
    Row {
        number: "14b",
        situation: ["restarts", "down", "–", "A", "A"],
        before: alone,
        fault: |pair| restart_alone(pair, A_ONLY),
        model: Model { a: SERVES, b: DOWN, sites: "A", ..NOTHING },
    },
    Row {
        number: "15",
        situation: ["restarts", "down", "–", "none", "AB"],
        before: witnessed,
        fault: |pair| restart_alone(pair, SHUT),
        model: Model { a: RESTART, b: DOWN, sites: "AB", word_a: PROVES_NOTHING, ..NOTHING },
    },
    Row {
        number: "16",
        situation: ["down, then up", "primary at e+1", "ok", "both", "B"],
        before: witnessed,
        fault: return_replaced,
        model: Model { a: FOLLOWS, b: SERVES, sites: "AB", ..NOTHING },
    },
    Row {
        number: "17",
        situation: ["power-cycled", "power-cycled", "ok", "both", "AB"],
        before: witnessed,
        fault: power_cycle,
        model: Model { a: SERVES, b: FOLLOWS, sites: "AB", switchover: LOSSLESS, ..NOTHING },
    },
    Row {
        number: "18",
        situation: ["destroyed", "up", "–", "B", "AB"],
        before: witnessed,
        fault: |pair| {
            kill(pair, A, OPEN);
            pair.copies[A].files.clear();
        },
        model: Model { a: DOWN, b: SERVES, sites: "B", promote_b: LOSSLESS, ..NOTHING },
    },
    Row {
        number: "21",
        situation: ["up", "its disk was put back", "ok", "both", "AB"],
        before: witnessed,
        fault: |pair| put_back(pair, |_| Fate::Done),
        model: Model { a: SERVES, b: FOLLOWS, sites: "AB", promote_b: "no: the other serves", ..NOTHING },
    },
    Row {
        number: "21b",
        situation: ["up", "its disk was put back, and hangs", "ok", "both", "AB"],
        before: witnessed,
        fault: |pair| put_back(pair, no_frame),
        model: Model {
            a: WAITS,
            b: FOLLOWS,
            promote_b: "no: the other serves",
            word_b: "no: the other serves",
            ..NOTHING
        },
    },
    Row {
        number: "22",
        situation: ["up", "up", "ok", "wiped", "AB"],
        before: witnessed,
        fault: wipe,
        model: Model { a: SERVES, b: FOLLOWS, sites: "AB", ..NOTHING },
    },
    Row {
        number: "no witness",
        situation: ["up", "up", "cut", "–", "AB"],
        before: unwitnessed,
        fault: Pair::disconnect,
        model: Model {
            a: WAITS,
            b: FOLLOWS,
            sites: "AB",
            promote_b: "no: the other may serve",
            word_b: LOSSLESS,
            ..NOTHING
        },
    },
    Row {
        number: "no witness",
        situation: ["down", "up", "–", "–", "AB"],
        before: unwitnessed,
        fault: |pair| pair.kill(A),
        model: Model { a: DOWN, b: FOLLOWS, promote_b: "no: the other may serve", word_b: LOSSLESS, ..NOTHING },
    },
    Row {
        number: "no witness",
        situation: ["restarts", "down", "–", "–", "AB"],
        before: unwitnessed,
        fault: |pair| restart_alone(pair, OPEN),
        model: Model { a: RESTART, b: DOWN, sites: "AB", ..NOTHING },
    },
    Row {
        number: "async",
        situation: ["up", "up", "ok", "–", "A"],
        before: asynchronous,
        fault: |_| (),
        model: Model { a: SERVES, b: FOLLOWS, sites: "A", switchover: LOSSLESS, ..NOTHING },
    },
    Row {
        number: "async",
        situation: ["up", "up", "cut", "–", "A"],
        before: asynchronous,
        fault: Pair::disconnect,
        model: Model { a: SERVES, b: FOLLOWS, sites: "A", promote_b: "no: the other may serve", ..NOTHING },
    },
    Row {
        number: "async",
        situation: ["down", "up", "–", "–", "A"],
        before: asynchronous,
        fault: |pair| pair.kill(A),
        model: Model { a: DOWN, b: FOLLOWS, promote_b: "no: the other may serve", ..NOTHING },
    },
    Row {
        number: "async",
        situation: ["restarts", "down", "–", "–", "A"],
        before: asynchronous,
        fault: |pair| restart_alone(pair, OPEN),
        model: Model { a: SERVES, b: DOWN, sites: "A", ..NOTHING },
    },
];
