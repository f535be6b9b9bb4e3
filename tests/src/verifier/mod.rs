//! A client that knows what it may read: writes over NBD, remembers what completed, what was flushed and what was under way,
//! and after a crash of the server compares every sector with that.
//!
//! | module | what it is about |
//! |---|---|
//! | [`pattern`] | content that says which sector and which write it is from |
//! | [`model`] | what each sector may hold, and what a crash may have taken |
//! | [`nbd`] | the protocol, one request at a time |
//! | [`load`] | threads that write, read, flush and check as they go |
//!
//! What it demands of the server: a read shows the newest completed write; after a crash a flushed write is there, and what is
//! there of the rest is a prefix: no write is missing that had completed before one that is there began; and what was read
//! after a crash stays.

pub mod load;
pub mod model;
pub mod nbd;
pub mod pattern;

pub use load::{Counts, Target, Verifier, read_all};
pub use model::{Model, Violation};
pub use nbd::Nbd;
