//! Every decision of Tidemark, without IO, async, clock or unsafe.
#![forbid(unsafe_code)]

pub mod blocks;
pub mod config;
pub mod event;
pub mod floor;
pub mod format;
pub mod group;
pub mod layout;
pub mod log;
pub mod node;
pub mod outbox;
pub mod plan;
pub mod planted;
pub mod rng;
pub mod ship;
pub mod site;
pub mod status;
pub mod timeline;
pub mod types;
pub mod verb;
pub mod view;
pub mod volume;
