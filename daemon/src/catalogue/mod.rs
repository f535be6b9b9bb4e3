//! wip
pub(crate) mod crashsafe;
