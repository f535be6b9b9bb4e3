//! The volume's face: which requests may run, where the newest content of a block lies, when an answer may go out, and which
//! question is likely to follow.

pub mod ack;
pub mod habit;
pub mod index;
pub mod order;
