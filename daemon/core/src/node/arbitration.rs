//! What the witness decides for this copy.

use crate::config::Since;
use crate::event::{AskId, Grant, WitnessAnswer};
use crate::group::lease::Terms;
use crate::node::Node;
use crate::types::Nanos;

#[derive(Debug)]
pub(super) struct Arbiter {
    pub grant: Option<Grant>,
    terms: Option<Terms>,
}

impl Arbiter {
    pub(super) fn new(terms: Option<Terms>, _now: Nanos) -> Self {
        Self { grant: None, terms }
    }
}

impl Node {
    pub(super) fn on_witness(&mut self, _now: Nanos, _id: AskId, _answer: WitnessAnswer) {}

    pub(super) fn on_confirm(&mut self, _k: Since, _stamp: u64) {}

    pub(super) fn on_confirmed(&mut self, _now: Nanos, _stamp: u64) {}
}
