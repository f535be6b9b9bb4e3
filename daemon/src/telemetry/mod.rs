//! wip
mod admin;
pub use admin::AdminMetrics;
