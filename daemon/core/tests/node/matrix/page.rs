//! The page.

use std::fmt::Write as _;

use super::asked::Seen;
use super::rows::Row;

const HEAD: &str = "# What becomes of two sites

Generated from two cores (`daemon/core/tests/node/matrix`), which are put into each situation and asked some twenty seconds later; a test compares. Written anew by
`TIDEMARK_WRITE=1 cargo test -p tidemark-core --test node matrix`. A was the primary, its volume has mode sync and S = {A, B} unless it says otherwise, leases last 2 s.

- *by itself*: with `autoFailover`. *serves*: reads and flushes are answered. *holds all*: nothing is answered, and nothing lost. *S then*: the sites whose durability a flush needs.
- *promote*, *demote*: without a word of a person, `autoFailover` off. *switch*: `switchover` at A, to B.
- *word*: a person says that the other site is stopped (`--assert-peer-fenced`; at a site that is primary `drop-peer`). What such a word has to accept besides is named.
- *lossless*, *lossy*, *unproven*: the class of the promotion. *no*: refused, and why. –: there is nobody to ask.

";

const COLUMNS: [&str; 16] = [
    "#",
    "A",
    "B",
    "A–B",
    "W seen by",
    "S",
    "A by itself",
    "B by itself",
    "S then",
    "promote A",
    "promote B",
    "demote A",
    "demote B",
    "switch",
    "word at A",
    "word at B",
];

const FOOT: &str = "
- `promote` at a site that is the primary changes nothing and says so: *lossless*.
- Rows 8, 9 and 15: the model calls the word at A lossless; here it is unproven, as A cannot know whether B took over at a witness that A does not see (decisions/0010).
- Row 21: the model has A leave such a copy out. Here A stays its peer and sends it again what it lost; it stays in S, so that flushes wait until it has that, or is lost (21b).

Rows 19 (one node of several at the primary's site is dead) and 20 (one of several at the other) need several agents at a site: not built. Rows 13 and 16 with `soloLease`, and
`onPeerLoss=continue`, neither. `tests/tests/rows` does the same with real agents, a real witness, and networks that are cut.
";

pub fn text(seen: &[(&Row, Seen)]) -> String {
    let mut page = HEAD.to_owned();
    line(&mut page, COLUMNS.map(str::to_owned));
    line(&mut page, COLUMNS.map(|_| "---".to_owned()));
    for (row, seen) in seen {
        let [a, b, link, witness, sites] = row.situation.map(str::to_owned);
        let Seen { promote, demote, word, .. } = seen;
        let found = [&seen.a, &seen.b, &seen.sites, &promote[0], &promote[1], &demote[0], &demote[1], &seen.switchover]
            .map(Clone::clone);
        let [own_a, own_b, then, promote_a, promote_b, demote_a, demote_b, switch] = found;
        let [word_a, word_b] = word.clone();
        line(
            &mut page,
            [
                row.number.to_owned(),
                a,
                b,
                link,
                witness,
                sites,
                own_a,
                own_b,
                then,
                promote_a,
                promote_b,
                demote_a,
                demote_b,
                switch,
                word_a,
                word_b,
            ],
        );
    }
    page + FOOT
}

fn line(page: &mut String, cells: [String; COLUMNS.len()]) {
    // To a String it cannot fail.
    let _ = writeln!(page, "| {} |", cells.join(" | "));
}
