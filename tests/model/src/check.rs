//! Runs a model to its end, and says what came of it.

use std::fmt::Debug;
use std::hash::Hash;
use std::time::{Duration, Instant};

use stateright::{Checker, Expectation, HasDiscoveries, Model, Path};

/// What a run may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// States that are produced, those that were seen before included.
    pub steps: usize,
    /// Time; looked at only with two threads or more.
    pub seconds: u64,
    /// Threads.
    pub threads: usize,
}

/// How far it came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// Every state within the bounds was looked at.
    Exhausted,
    /// A limit was reached first.
    Limit,
    /// A property does not hold.
    Broken,
}

/// A property that does not hold, and the way there.
#[derive(Clone, Debug)]
pub struct Counterexample {
    /// The property.
    pub property: &'static str,
    /// What happened, in order.
    pub steps: Vec<String>,
    /// What it led to.
    pub state: String,
}

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Different states.
    pub states: usize,
    /// Steps to the farthest of them.
    pub depth: usize,
    /// Time taken.
    pub taken: Duration,
    /// How it ended.
    pub end: End,
    /// The properties that were checked in every state.
    pub checked: Vec<&'static str>,
    /// Those that do not hold, the shortest way first.
    pub broken: Vec<Counterexample>,
    /// What has to happen somewhere, and did not: the run shows nothing then.
    pub missing: Vec<&'static str>,
}

impl Outcome {
    /// Everything holds as far as was looked, and what has to happen somewhere did.
    pub fn holds(&self) -> bool {
        self.broken.is_empty() && self.missing.is_empty()
    }
}

/// Breadth first: the first counterexample is a shortest one.
pub fn check<M>(model: M, limits: Limits) -> Outcome
where
    M: Model + Send + Sync + 'static,
    M::State: Hash + Send + Sync + Clone + PartialEq + Debug + 'static,
    M::Action: Clone + PartialEq + Debug,
{
    let (begun, properties) = (Instant::now(), model.properties());
    let named = |wanted: Expectation| {
        let all = properties.iter().filter(move |p| p.expectation == wanted);
        all.map(|p| p.name).collect::<Vec<_>>()
    };
    let (checked, wanted) = (named(Expectation::Always), named(Expectation::Sometimes));
    let checker = model
        .checker()
        .threads(limits.threads)
        .finish_when(HasDiscoveries::AnyFailures)
        .target_state_count(limits.steps)
        .timeout(Duration::from_secs(limits.seconds))
        .spawn_bfs()
        .join();
    let taken = begun.elapsed();
    let found = checker.discoveries();
    let mut broken: Vec<_> = found.iter().filter(|(name, _)| checked.contains(name)).map(counterexample).collect();
    broken.sort_by_key(|b| (b.steps.len(), b.property));
    let is_cut = checker.state_count() >= limits.steps || taken.as_secs() >= limits.seconds;
    let end = match (broken.is_empty(), is_cut) {
        (false, _) => End::Broken,
        (true, true) => End::Limit,
        (true, false) => End::Exhausted,
    };
    let missing = wanted.into_iter().filter(|name| !found.contains_key(name)).collect();
    let (states, depth) = (checker.unique_state_count(), checker.max_depth());
    Outcome { states, depth, taken, end, checked, broken, missing }
}

fn counterexample<S, A>((name, path): (&&'static str, &Path<S, A>)) -> Counterexample
where
    S: Debug + Clone + PartialEq,
    A: Debug + Clone + PartialEq,
{
    let way = path.clone().into_vec();
    let steps = way.iter().filter_map(|(_, action)| action.as_ref().map(|action| format!("{action:?}"))).collect();
    let state = way.last().map(|(state, _)| format!("{state:#?}")).unwrap_or_default();
    Counterexample { property: name, steps, state }
}
