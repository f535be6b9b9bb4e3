//! Benchmarks of Tidemark beside its peers: the same fio jobs, interleaved in one run, on one disk.
//!
//! Figures of a shared machine mean nothing by themselves; ratios within one interleaved run do. So every repeat runs every
//! job on every target, one after the other, and the medians of the repeats are compared.

pub mod bars;
pub mod bed;
pub mod fio;
pub mod job;
pub mod replication;
pub mod report;
pub mod run;
pub mod stream;
pub mod target;
pub mod usage;
