//! `tidemark group`.

use clap::{Args, Subcommand};

use super::volume::{Foretell, Yes};

/// List and show groups, remove this site's copy of one. Volumes join by `tidemark volume create --group`.
#[derive(Subcommand, Debug)]
pub enum Group {
    /// List the groups of this agent with their volumes
    #[command(visible_alias = "ls")]
    List,
    /// Show the volumes of one group
    Show(Named),
    /// Remove this site's copy of a group, with all its volumes
    ///
    /// As `tidemark volume delete` does for a volume that is alone in its group.
    #[command(after_long_help = "Examples:\n  tidemark group delete pg --plan\n  tidemark group delete pg --yes")]
    Delete(Delete),
}

/// A group by name or id, or by any of its volumes.
#[derive(Args, Clone, Debug)]
pub struct Named {
    /// Name or id of the group
    #[arg(value_name = "GROUP")]
    pub group: String,
}

/// `group delete`.
#[derive(Args, Debug)]
pub struct Delete {
    /// The group.
    #[command(flatten)]
    pub named: Named,
    /// Remove the files at once instead of moving them to the pool's trash
    #[arg(long)]
    pub purge: bool,
    /// Even when a volume is attached, or the peer would be left without a primary
    #[arg(long)]
    pub force: bool,
    /// The answer.
    #[command(flatten)]
    pub yes: Yes,
    /// Or only its plan.
    #[command(flatten)]
    pub foretell: Foretell,
}
