//! The model check of Tidemark's rules: every order of events up to a bound, with the core's own decisions (docs/model.md).
#![forbid(unsafe_code)]

pub mod cases;
pub mod check;
pub mod config;
pub mod k;
pub mod lease;
pub mod log;
pub mod mutation;
