//! Harness of the tests of Tidemark as a whole.

pub mod agents;
pub mod clients;
pub mod corruption;
pub mod demo;
pub mod devices;
pub mod dice;
pub mod kernel;
pub mod ledger;
pub mod netns;
pub mod process;
pub mod proxy;
pub mod sim;
pub mod stage;
pub mod storm;
pub mod trials;
pub mod verifier;
pub mod volatile;
