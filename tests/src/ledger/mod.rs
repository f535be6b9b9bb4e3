//! PostgreSQL on a volume, and a ledger of what it acknowledged, kept outside of it.
//!
//! Decides: which transactions run, what counts as acknowledged (the server said so to the client), what counts as lost
//! (acknowledged and not there afterwards). The ledger lives in the memory of a process that is not killed.

mod audit;
mod load;
mod postgres;
mod wire;

pub use audit::{Audit, Findings, audit};
pub use load::{Ledger, Load, prepare};
pub use postgres::{Places, Postgres, Programs, connect};
pub use wire::{Connection, Row, SqlError};
