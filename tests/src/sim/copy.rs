//! The seam between the world and what it tests: one copy of a volume, driven by inputs.

use tidemark_core::config::{AckOn, Config};
use tidemark_core::event::{Input, Output};
use tidemark_core::node::{CreateParams, NewVolume, Node, OpenParams};
use tidemark_core::plan::Plan;
use tidemark_core::status::Status;
use tidemark_core::types::{Lsn, Nanos, Position};
use tidemark_core::verb::{Verb, VerbError};

/// A copy of a volume as the world drives it.
pub trait Copy: Sized {
    /// First content of a new copy's files.
    fn create(params: &CreateParams) -> NewVolume;
    /// Opens a copy from what its disks hold; the text says why not.
    fn open(now: Nanos, params: OpenParams) -> Result<Self, String>;
    /// Takes a fact.
    fn handle(&mut self, now: Nanos, input: Input);
    /// Gives the next thing to do.
    fn poll_output(&mut self, now: Nanos) -> Option<Output>;
    /// When it wants to be woken.
    fn poll_timeout(&self) -> Option<Nanos>;
    /// How it is.
    fn status(&self, now: Nanos) -> Status;
    /// K and what an acknowledgement waits for, as in the status: asked at every request.
    fn terms(&self) -> (&Config, AckOn);
    /// The end of what is written, as in the status.
    fn appended(&self) -> Position;
    /// What is durable, as in the status.
    fn durable(&self) -> Lsn;
    /// What a verb would do now.
    fn plan(&self, now: Nanos, verb: &Verb) -> Result<Plan, VerbError>;
    /// Panics when an invariant is broken.
    fn check(&self);
}

impl Copy for Node {
    fn create(params: &CreateParams) -> NewVolume {
        Node::create(params)
    }

    fn open(now: Nanos, params: OpenParams) -> Result<Self, String> {
        Node::open(now, params).map_err(|e| e.to_string())
    }

    fn handle(&mut self, now: Nanos, input: Input) {
        Node::handle(self, now, input);
    }

    fn poll_output(&mut self, now: Nanos) -> Option<Output> {
        Node::poll_output(self, now)
    }

    fn poll_timeout(&self) -> Option<Nanos> {
        Node::poll_timeout(self)
    }

    fn status(&self, now: Nanos) -> Status {
        Node::status(self, now)
    }

    fn terms(&self) -> (&Config, AckOn) {
        (self.config(), self.ack_on())
    }

    fn appended(&self) -> Position {
        Node::appended(self)
    }

    fn durable(&self) -> Lsn {
        Node::durable(self)
    }

    fn plan(&self, now: Nanos, verb: &Verb) -> Result<Plan, VerbError> {
        Node::plan(self, now, verb)
    }

    fn check(&self) {
        Node::check(self);
    }
}
