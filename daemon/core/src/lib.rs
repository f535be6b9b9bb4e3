//! Every decision of Tidemark, without IO, async, clock or unsafe.
#![forbid(unsafe_code)]

pub mod config;
pub mod event;
pub mod format;
pub mod planted;
pub mod ship;
pub mod status;
pub mod types;
pub mod verb;
