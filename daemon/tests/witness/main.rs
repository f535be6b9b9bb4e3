//! What every witness promises, shown on each kind: a directory, and a real etcd and a real object store that the tests start.
#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

mod certificates;
mod etcd;
mod file;
mod history;
mod network;
mod program;
mod promises;
#[cfg(feature = "s3")]
mod s3;
#[cfg(feature = "s3")]
mod untrue;

use std::time::Duration;

use tidemark_agent::telemetry::WitnessMetrics;
use tidemark_agent::witness::{Store, Witness, random_nonce};
use tidemark_core::types::NodeId;

/// Of one call: far more than any takes here, so that a busy machine is not taken for a lost witness.
const TIMEOUT: Duration = Duration::from_secs(20);

/// A kind of witness that the tests own.
trait Backend {
    /// Another client's way to it.
    fn store(&self) -> Box<dyn Store>;
    /// Keeps a copy of all that it holds now.
    fn save(&mut self);
    /// Goes back to the copy, as an operator would who restores a backup.
    fn restore(&mut self);
    /// Forgets everything, as one that was set up anew.
    fn wipe(&mut self);

    /// Another client.
    fn witness(&self) -> Witness {
        over(self.store())
    }
}

/// Another agent's.
fn over(store: Box<dyn Store>) -> Witness {
    Witness::over(store, NodeId(random_nonce().unwrap().0), TIMEOUT, WitnessMetrics::default())
}

/// Every promise on one kind of witness.
macro_rules! keeps_its_promises {
    ($kind:ident: $($promise:ident)*) => {
        mod $kind {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $promise() {
                let mut backend = crate::$kind::start().await;
                crate::promises::$promise(&mut backend).await;
            })*
        }
    };
}

mod promise {
    macro_rules! all_of {
        ($($kind:ident)*) => {
            $(keeps_its_promises! { $kind:
                a_value_comes_back_as_it_was_put_and_one_revision_is_replaced_once
                racing_clients_make_one_history
                a_cell_is_created_once
                an_answer_that_was_lost_is_found_by_reading
                a_change_that_was_replaced_after_its_answer_was_lost_is_in_conflict
                a_change_that_may_come_yet_is_not_called_a_conflict
                a_witness_that_was_wiped_is_found_out
                a_witness_that_was_restored_is_found_out
                what_no_agent_wrote_is_corrupt_and_stays
                a_check_measures_and_shows_that_old_values_are_refused
            })*
        };
    }
    all_of! { file etcd }
    #[cfg(feature = "s3")]
    all_of! { s3 }
}
