//! Between two copies: messages, sender, receiver.

mod message;
pub mod receiver;
pub mod seed;
pub mod sender;

pub use message::*;
