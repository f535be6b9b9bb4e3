//! The volume's face: which requests may run, where the newest content of a block lies, and when an answer may go out.

pub mod ack;
pub mod index;
pub mod order;
