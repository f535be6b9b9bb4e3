//! The witness as a store: cells that are read, and changed only where they are as expected. One count of changes for all of
//! them, as etcd has it.

use std::collections::BTreeMap;

use tidemark_core::config::Config;
use tidemark_core::event::{Question, WitnessAnswer};
use tidemark_core::format::witness::{Cell, Content};
use tidemark_core::group::witness::{Found, Revision};
use tidemark_core::types::GroupId;

/// Every cell.
#[derive(Debug, Default)]
pub struct Witness {
    cells: BTreeMap<Cell, Found>,
    changes: u64,
}

impl Witness {
    /// Does what is asked, at once and durably.
    pub fn carry_out(&mut self, question: &Question) -> WitnessAnswer {
        let found = self.cells.get(&question.cell);
        let Some(change) = &question.change else { return WitnessAnswer::Holds(found.cloned()) };
        if change.expected.as_ref() != found.map(|found| &found.revision) {
            return WitnessAnswer::Holds(found.cloned());
        }
        self.changes += 1;
        let revision = Revision::Counted(self.changes);
        let now = Found { content: change.content.clone(), revision: revision.clone() };
        self.cells.insert(question.cell, now);
        WitnessAnswer::Committed(revision)
    }

    /// K of a group.
    pub fn config(&self, group: GroupId) -> Option<&Config> {
        match self.cells.get(&Cell::Group(group)).map(|found| &found.content) {
            Some(Content::Config(k)) => Some(k),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use tidemark_core::event::CellChange;
    use tidemark_core::format::witness::Lease;
    use tidemark_core::types::NodeId;

    use super::*;

    fn change(node: u8, expected: Option<u64>, counter: u64) -> Question {
        let content = Content::Lease(Lease { counter, ..Lease::default() });
        let change = CellChange { expected: expected.map(Revision::Counted), content };
        Question { cell: Cell::Lease(NodeId([node; 16])), change: Some(change) }
    }

    #[test]
    fn a_change_is_made_only_where_the_cell_is_as_expected() {
        let mut witness = Witness::default();
        assert_eq!(witness.carry_out(&change(1, None, 5)), WitnessAnswer::Committed(Revision::Counted(1)));
        assert_eq!(witness.carry_out(&change(2, None, 7)), WitnessAnswer::Committed(Revision::Counted(2)));
        let WitnessAnswer::Holds(Some(found)) = witness.carry_out(&change(1, None, 6)) else { panic!("it exists") };
        assert_eq!(found.revision, Revision::Counted(1));
        assert_eq!(witness.carry_out(&change(1, Some(1), 6)), WitnessAnswer::Committed(Revision::Counted(3)));
        let read = Question { change: None, ..change(1, None, 0) };
        let WitnessAnswer::Holds(Some(found)) = witness.carry_out(&read) else { panic!("it is read") };
        assert_eq!(found.content, change(1, None, 6).change.unwrap().content);
    }
}
