//! Between two copies: messages, sender, receiver.

mod message;

pub use message::*;
