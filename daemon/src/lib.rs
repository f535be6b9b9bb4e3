//! The Tidemark agent: frontends, disks and peers around `tidemark-core`. Thin shells; a bug here is about a syscall.
#![deny(unsafe_code)]

pub mod agent;
pub mod app;
mod bounds;
pub mod catalogue;
pub mod config;
pub mod control;
mod crashsafe;
pub mod disk;
pub mod frontend;
pub mod here;
mod lock;
pub mod peer;
pub mod shard;
pub mod telemetry;
pub mod view;
pub mod witness;
