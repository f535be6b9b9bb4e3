//! The deterministic simulator: two real copies of a volume ([`tidemark_core::node::Node`]) in a world of seeded disks,
//! network, clocks, crashes and operators, judged by a model of what the workload may observe.
//!
//! One seed is one run, on one thread, the same every time. See `docs/guarantees.md` for what it proves, `hack/seed` to replay.

pub mod agenda;
pub mod agents;
pub mod arbitrated;
pub mod behind;
pub mod client;
pub mod copy;
pub mod disk;
pub mod faults;
pub mod foretold;
pub mod group;
mod handing;
pub mod image;
pub mod judge;
pub mod members;
pub mod model;
pub mod net;
pub mod operator;
pub mod pattern;
pub mod rng;
pub mod run;
pub mod site;
pub mod trace;
pub mod watch;
pub mod witness;
pub mod world;

pub use arbitrated::Witnessed;
pub use faults::{Fault, Fired};
pub use run::{Outcome, Summary, run_many, run_seed};
pub use world::Options;
