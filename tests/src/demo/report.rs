//! The result: one line for each round, or one for each mode, and whether every promise held.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};

use crate::ledger::Audit;

use super::{Disaster, Mode};

/// One round.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// `sync` or `async`.
    pub mode: &'static str,
    /// Its number.
    pub round: u32,
    /// What failed, and where the volume was opened.
    pub disaster: Disaster,
    /// What the database's device was at A: `nbd-device` or `fuse`.
    pub frontend: String,
    /// Why the database could not be had back; then nothing of it was compared.
    pub broken: Option<String>,
    /// The comparison.
    pub audit: Audit,
    /// Age of the oldest lost transaction at the kill; zero when nothing is lost.
    pub rpo: Duration,
    /// The bound that the primary's own status gave (async only).
    pub reported_rpo: Option<Duration>,
    /// From the kill until the database at the other site answered.
    pub rto: Duration,
}

impl Outcome {
    /// Whether the promise of the mode held, in words when not.
    ///
    /// # Errors
    /// What did not hold.
    pub fn verdict(&self) -> Result<(), String> {
        if let Some(reason) = &self.broken {
            return Err(format!("the database did not come back: {reason}"));
        }
        if self.disaster == Disaster::AReturns && self.audit.lost > 0 {
            return Err(format!("{} lost at the site that had acknowledged them", self.audit.lost));
        }
        if self.mode == Mode::Sync.name() {
            return if self.audit.lost == 0 { Ok(()) } else { Err(format!("sync mode lost {}", self.audit.lost)) };
        }
        match self.reported_rpo {
            _ if self.audit.lost == 0 => Ok(()),
            Some(bound) if self.rpo <= bound => Ok(()),
            Some(bound) => Err(format!("async mode lost {} ms and had reported at most {}", ms(self.rpo), ms(bound))),
            None => Err("async mode lost transactions and never reported an RPO".to_owned()),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Audit { committed, found, lost, .. } = self.audit;
        write!(
            f,
            "{}, {}, {}: committed {committed}, found {found}, lost {lost}",
            self.mode,
            self.disaster.name(),
            self.frontend
        )?;
        write!(f, ", RPO {} ms, RTO {} ms", ms(self.rpo), ms(self.rto))?;
        self.verdict().or_else(|reason| write!(f, ": NOT HELD: {reason}"))
    }
}

/// Every round.
#[derive(Clone, Debug)]
pub struct Report {
    seed: u64,
    outcomes: Vec<Outcome>,
}

impl Report {
    pub(super) fn new(seed: u64) -> Self {
        Self { seed, outcomes: Vec::new() }
    }

    pub(super) fn add(&mut self, outcome: Outcome) {
        self.outcomes.push(outcome);
    }

    /// True when every round held.
    pub fn held(&self) -> bool {
        !self.outcomes.is_empty() && self.outcomes.iter().all(|outcome| outcome.verdict().is_ok())
    }

    /// The table: a line for each round, or with `by_mode` one for each mode with sums of transactions and maxima of times.
    pub fn table(&self, by_mode: bool) -> String {
        let mut lines = vec![line(
            ["mode", "frontend", "rounds", "committed", "found", "lost", "RPO ms", "reported ms", "RTO ms"]
                .map(str::to_owned),
        )];
        if by_mode {
            lines.extend(self.modes().values().map(|rounds| cells(rounds)).map(line));
        } else {
            lines.extend(self.outcomes.iter().map(|outcome| line(cells(&[outcome]))));
        }
        let failures = self.outcomes.iter().filter_map(|outcome| Some((outcome, outcome.verdict().err()?)));
        lines.extend(failures.map(|(outcome, reason)| format!("round {} did not hold: {reason}", outcome.round)));
        lines.join("\n")
    }

    fn modes(&self) -> BTreeMap<&'static str, Vec<&Outcome>> {
        let mut modes: BTreeMap<_, Vec<&Outcome>> = BTreeMap::new();
        for outcome in &self.outcomes {
            modes.entry(outcome.mode).or_default().push(outcome);
        }
        modes
    }

    /// The same for programs.
    pub fn json(&self) -> Value {
        let round = |outcome: &Outcome| {
            json!({
                "mode": outcome.mode, "round": outcome.round, "disaster": outcome.disaster.name(),
                "frontend": outcome.frontend,
                "committed": outcome.audit.committed, "found": outcome.audit.found, "lost": outcome.audit.lost,
                "unacknowledged": outcome.audit.unacknowledged,
                "rpoMs": ms(outcome.rpo), "reportedRpoMs": outcome.reported_rpo.map(ms), "rtoMs": ms(outcome.rto),
                "held": outcome.verdict().is_ok(), "broken": outcome.broken,
            })
        };
        json!({ "seed": self.seed, "held": self.held(), "rounds": self.outcomes.iter().map(round).collect::<Vec<_>>() })
    }
}

/// Milliseconds, rounded up.
pub(super) fn ms(span: Duration) -> u64 {
    span.as_micros().div_ceil(1000) as u64
}

fn cells(rounds: &[&Outcome]) -> [String; 9] {
    let sum = |count: fn(&Audit) -> u64| rounds.iter().map(|outcome| count(&outcome.audit)).sum::<u64>().to_string();
    let max = |span: fn(&Outcome) -> Option<Duration>| {
        rounds.iter().filter_map(|outcome| span(outcome)).max().map_or("-".to_owned(), |span| ms(span).to_string())
    };
    [
        rounds.first().map_or("-", |outcome| outcome.mode).to_owned(),
        rounds.first().map_or("-", |outcome| &outcome.frontend).to_owned(),
        rounds.len().to_string(),
        sum(|audit| audit.committed),
        sum(|audit| audit.found),
        sum(|audit| audit.lost),
        max(|outcome| Some(outcome.rpo)),
        max(|outcome| outcome.reported_rpo),
        max(|outcome| Some(outcome.rto)),
    ]
}

fn line(cells: [String; 9]) -> String {
    let [mode, frontend, numbers @ ..] = cells;
    let numbers = numbers.map(|cell| format!("{cell:>13}"));
    format!("{mode:<6}{frontend:<11}{}", numbers.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(mode: &'static str, lost: u64, rpo: u64, reported: Option<u64>) -> Outcome {
        let audit = Audit { committed: 10, found: 10 - lost, lost, ..Audit::default() };
        let reported_rpo = reported.map(Duration::from_millis);
        let (rpo, rto) = (Duration::from_millis(rpo), Duration::from_secs(1));
        let (disaster, frontend) = (Disaster::ALost, "fuse".to_owned());
        Outcome { mode, round: 1, disaster, frontend, broken: None, audit, rpo, reported_rpo, rto }
    }

    #[test]
    fn one_lost_transaction_breaks_sync() {
        assert!(outcome("sync", 0, 0, None).verdict().is_ok());
        assert!(outcome("sync", 1, 5, None).verdict().is_err());
    }

    #[test]
    fn async_may_lose_what_it_reported_and_no_more() {
        assert!(outcome("async", 3, 40, Some(40)).verdict().is_ok());
        assert!(outcome("async", 3, 41, Some(40)).verdict().is_err());
        assert!(outcome("async", 3, 1, None).verdict().is_err());
    }

    #[test]
    fn async_may_lose_nothing_at_the_site_that_acknowledged() {
        let returned = |lost| Outcome { disaster: Disaster::AReturns, ..outcome("async", lost, 40, Some(40)) };
        assert!(returned(0).verdict().is_ok());
        assert!(returned(1).verdict().is_err());
    }

    #[test]
    fn a_database_that_does_not_come_back_breaks_the_promise() {
        let broken = Outcome { broken: Some("no file system".to_owned()), ..outcome("sync", 0, 0, None) };
        assert!(broken.verdict().unwrap_err().contains("no file system"));
    }

    #[test]
    fn no_round_at_all_proves_nothing() {
        assert!(!Report::new(1).held());
    }

    #[test]
    fn the_table_adds_transactions_and_shows_the_worst_times() {
        let mut report = Report::new(1);
        report.add(outcome("async", 1, 7, Some(30)));
        report.add(outcome("async", 2, 9, Some(20)));
        let table = report.table(true);
        let cells: Vec<&str> = table.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(cells, ["async", "fuse", "2", "20", "17", "3", "9", "30", "1000"]);
        assert!(report.held());
    }
}
