//! Two agents a site for one group: four real copies, two of them at each site, each with a volume and a client of its own, in a world in
//! which every stream between them, every process and the way to the witness may fail.
//!
//! Smaller than the world of [`super::world`], which has one copy a site: disks lose what was not synced and nothing else, volumes keep
//! their size, nobody is asked for a word. What is searched here is what several members of a site do together.

mod agents;
mod client;
mod judge;
mod party;
mod streams;
mod trouble;
mod world;

use super::run::Outcome;
use super::world::Options;

/// Runs one seed to its end.
pub fn run(seed: u64, options: Options) -> (Option<String>, Box<world::World>) {
    let mut world = Box::new(world::World::new(seed, options));
    let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| world.run()));
    let panic = ended.err().map(|_| format!("panic: {}", super::run::last_panic()));
    (panic.or(world.violation.take()), world)
}

/// Runs one seed; a panic in the core is a violation.
pub fn run_seed(seed: u64, options: Options) -> Outcome {
    let (violation, world) = run(seed, options);
    Outcome {
        seed,
        violation,
        hash: world.trace.hash(),
        steps: world.trace.steps(),
        requests: world.clients.iter().map(|client| client.issued).sum(),
        hopeless: false,
        fired: world.fired.clone(),
        tail: world.trace.tail(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_holds_and_is_the_same_every_time() {
        let options = Options { requests: 200, ..Options::default() };
        for seed in 0..3 {
            let (first, again) = (run_seed(seed, options), run_seed(seed, options));
            assert_eq!(first.violation, None, "seed {seed}");
            assert_eq!((first.hash, first.steps), (again.hash, again.steps), "seed {seed}");
        }
    }
}
