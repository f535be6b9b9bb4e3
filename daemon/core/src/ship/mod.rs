//! Between two copies: messages, sender and its gate, receiver.

pub mod gate;
mod message;
pub mod receiver;
pub mod seed;
pub mod sender;

pub use message::*;
