//! Damage to the files of stopped agents: what is changed, and what the agents make of it.
//!
//! Two agents are killed with a log that has wrapped, a base that has content and a tail that no flush covered. That state is
//! kept; each case begins with it, changes one thing at one site, starts both agents and demands: every sector that is served,
//! by whichever site, holds what it must; and the copy that was damaged is whole again and equal to its peer, or refuses by
//! name. A refusal at A must leave B promotable without a loss.
//!
//! | module | what it is about |
//! |---|---|
//! | [`golden`] | the state that each case begins with |
//! | [`damage`] | changes of files |
//! | [`table`] | the cases |
//! | [`trial`] | one case played |
//! | [`alone`] | what only the damaged copy had |

pub mod alone;
pub mod damage;
pub mod golden;
pub mod table;
pub mod trial;

use anyhow::{Context as _, Result};
use clap::Parser;

use crate::agents::{Plan, TwoSites};
use crate::dice::Dice;

use golden::Golden;
use table::Case;
use trial::Outcome;

pub(crate) const VOLUME: &str = "dented";

/// Damages the files of stopped agents and demands that nothing wrong is ever served.
#[derive(Clone, Debug, Parser)]
#[command(max_term_width = 110)]
pub struct Options {
    /// Cases drawn from those of which there are many (bytes of segments and of small files); the named ones are all played
    #[arg(long, default_value_t = 8)]
    pub drawn: u32,
    /// Only cases whose name contains this
    #[arg(long)]
    pub only: Option<String>,
    /// A suspect copy is given up and seeded anew, as an operator would
    #[arg(long)]
    pub repair: bool,
    /// Chooses bytes; by default other ones each time, printed at the start
    #[arg(long)]
    pub seed: Option<u64>,
    /// Leave logs, configurations and volumes where they are
    #[arg(long)]
    pub keep: bool,
}

/// Plays every case; one line each on stderr.
///
/// # Errors
/// With all cases whose outcome must not be.
pub fn run(options: &Options) -> Result<Vec<(Case, Outcome)>> {
    let seed = options.seed.unwrap_or_else(Dice::fresh_seed);
    eprintln!("seed {seed}");
    let mut sites = TwoSites::new(&Plan { name: "corruption".to_owned(), ..Plan::default() })?;
    if options.keep {
        sites.stage.keep();
    }
    let golden = Golden::make(&mut sites).with_context(|| sites.logs())?;
    let mut cases = table::cases(&golden, options.drawn, &mut Dice::new(seed))?;
    cases.retain(|case| options.only.as_ref().is_none_or(|only| case.name.contains(only.as_str())));
    let mut outcomes = Vec::new();
    for case in cases {
        golden.restore(&sites)?;
        let begun = std::time::Instant::now();
        let played = trial::play(&mut sites, &golden, &case, options.repair);
        let outcome = played.with_context(|| format!("{} (--seed {seed})\n{}", case.name, sites.logs()))?;
        eprintln!("{:<44} {:>5} ms  {outcome}", case.name, begun.elapsed().as_millis());
        outcomes.push((case, outcome));
    }
    if options.only.as_ref().is_none_or(|only| "alone".contains(only.as_str())) {
        alone::play(options.keep).context("records that only the damaged copy had")?;
    }
    Ok(outcomes)
}
