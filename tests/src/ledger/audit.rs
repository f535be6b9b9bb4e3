//! Compares a database with the ledger: what was acknowledged, what is there, what is lost, and whether what is there is whole.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::load::{Ledger, PAYLOAD};
use super::wire::{Connection, Row};

/// What a database holds of each writer: transactions 1 to this number. Writer 1 first.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Findings {
    last: Vec<u64>,
}

/// The comparison.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Audit {
    /// Acknowledged before the end.
    pub committed: u64,
    /// Of those, found.
    pub found: u64,
    /// Of those, not found.
    pub lost: u64,
    /// Found and never acknowledged: under way at the end, at most one for each writer.
    pub unacknowledged: u64,
    /// When the oldest lost one was acknowledged, since the start of the load.
    pub oldest_lost: Option<Duration>,
}

/// Reads the database and compares.
///
/// # Errors
/// When a query fails, or the database is not what any crash can leave: a gap, a payload that is wrong, an account that does
/// not fit its entries, a transaction that nobody sent.
pub fn audit(connection: &mut Connection, ledger: &Ledger) -> Result<Audit> {
    let by_scan = Findings::read(
        connection,
        "SET enable_indexscan = off; SET enable_bitmapscan = off; SET enable_indexonlyscan = off",
    )?;
    let by_index = Findings::read(connection, "RESET ALL; SET enable_seqscan = off")?;
    ensure!(by_scan == by_index, "the table and its index differ: {by_scan:?} and {by_index:?}");
    by_scan.compare(ledger)
}

impl Findings {
    fn read(connection: &mut Connection, plan: &str) -> Result<Self> {
        let sql = format!(
            "{plan};
             SELECT account.writer, total, count(number), coalesce(min(number), 1), coalesce(max(number), 0),
                    coalesce(bool_and(payload = {}), true)
             FROM account LEFT JOIN entry ON entry.writer = account.writer GROUP BY account.writer, total ORDER BY account.writer",
            PAYLOAD.replace("writer", "entry.writer")
        );
        let rows = connection.query(&sql).context("the ledger's tables cannot be read")?;
        let last = rows.iter().zip(1..).map(|(row, writer)| whole(row, writer)).collect::<Result<_>>()?;
        Ok(Self { last })
    }

    fn compare(&self, ledger: &Ledger) -> Result<Audit> {
        ensure!(
            self.last.len() >= ledger.acknowledged.len(),
            "accounts of {} writers are missing",
            ledger.acknowledged.len() - self.last.len()
        );
        let mut audit = Audit::default();
        for (last, acknowledged) in self.last.iter().zip(&ledger.acknowledged) {
            let committed = acknowledged.len() as u64;
            ensure!(*last <= committed + 1, "transaction {last} is there, and only {committed} were acknowledged");
            audit.committed += committed;
            audit.found += committed.min(*last);
            audit.lost += committed.saturating_sub(*last);
            audit.unacknowledged += last.saturating_sub(committed);
            let lost = acknowledged.get(*last as usize).copied();
            audit.oldest_lost = audit.oldest_lost.into_iter().chain(lost).min();
        }
        Ok(audit)
    }
}

/// The last transaction of a writer whose row of the query shows transactions 1 to that one, complete.
fn whole(row: &Row, writer: u64) -> Result<u64> {
    let column = |index: usize| row.get(index).and_then(|value| value.as_deref()).unwrap_or("NULL");
    let number =
        |index: usize| column(index).parse::<u64>().with_context(|| format!("column {index} is {}", column(index)));
    ensure!(number(0)? == writer, "the account of writer {writer} is missing");
    let (total, count, first, last) = (number(1)?, number(2)?, number(3)?, number(4)?);
    ensure!(first == 1 && last == count, "writer {writer} has {count} entries from {first} to {last}: there is a gap");
    ensure!(total == last, "account {writer} says {total} and its last entry is {last}: half a transaction");
    ensure!(column(5) == "t", "an entry of writer {writer} has a wrong payload");
    Ok(last)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn ledger(lists: &[&[u64]]) -> Ledger {
        let list = |moments: &&[u64]| moments.iter().map(|&ms| Duration::from_millis(ms)).collect();
        Ledger { start: Instant::now(), acknowledged: lists.iter().map(list).collect() }
    }

    #[test]
    fn lost_transactions_are_counted_and_dated_by_the_oldest() {
        let audit = Findings { last: vec![1, 3] }.compare(&ledger(&[&[10, 30, 40], &[5, 20, 35, 50]])).unwrap();
        assert_eq!((audit.committed, audit.found, audit.lost, audit.unacknowledged), (7, 4, 3, 0));
        assert_eq!(audit.oldest_lost, Some(Duration::from_millis(30)));
    }

    #[test]
    fn one_transaction_under_way_may_have_made_it() {
        let audit = Findings { last: vec![3] }.compare(&ledger(&[&[1, 2]])).unwrap();
        assert_eq!((audit.lost, audit.unacknowledged, audit.oldest_lost), (0, 1, None));
        assert!(Findings { last: vec![4] }.compare(&ledger(&[&[1, 2]])).is_err());
    }

    #[test]
    fn a_gap_and_half_a_transaction_are_errors() {
        let row = |texts: [&str; 6]| texts.map(|text| Some(text.to_owned())).to_vec();
        assert_eq!(whole(&row(["1", "5", "5", "1", "5", "t"]), 1).unwrap(), 5);
        assert!(whole(&row(["1", "5", "4", "1", "5", "t"]), 1).unwrap_err().to_string().contains("gap"));
        assert!(whole(&row(["1", "4", "5", "1", "5", "t"]), 1).unwrap_err().to_string().contains("half"));
        assert!(whole(&row(["1", "5", "5", "1", "5", "f"]), 1).unwrap_err().to_string().contains("payload"));
    }
}
