//! One copy, or two wired to each other, on disks that do what the test says: what needs a moment that no seed would hit often.

mod arbitration;
mod base;
mod bench;
mod difference;
mod full;
mod groups;
mod handing;
mod matrix;
mod oracle;
mod pauses;
mod regress;
mod reseed;
mod sealing;
mod seeding;
mod shipping;
mod switchover;
mod verbs;
mod views;
mod witness;
