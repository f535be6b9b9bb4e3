//! Frontends of volumes: opened and closed on request, reopened after a restart.

use std::sync::Arc;

use tidemark_core::status::Role;
use tidemark_core::types::VolumeId;

use super::volumes::failed;
use super::{Agent, Open, fuse};
use crate::control::{Attachment, EngineError, FrontendKind};

impl Agent {
    /// Opens a frontend; open already: answers with what is there.
    pub(super) async fn attach_volume(
        self: &Arc<Self>,
        id: VolumeId,
        kind: FrontendKind,
    ) -> Result<Attachment, EngineError> {
        let (name, shard, wish) = {
            let state = self.state();
            let entry = state.volumes.get(&id).ok_or_else(|| EngineError::NoVolume(id.to_string()))?;
            if let Some(open) = &entry.open {
                return Ok(Attachment { place: open.place.clone(), connections: 0 });
            }
            (entry.name.to_string(), entry.shard, entry.frontend)
        };
        let status = self.status_of(id, shard).await?;
        if !matches!(status.role, Role::Primary | Role::Suspended(_)) {
            return Err(EngineError::Refused {
                reason: "not-primary",
                text: format!("volume {name} is {:?} here: promote it first", status.role),
            });
        }
        let kind = match (kind, wish) {
            (FrontendKind::Auto, FrontendKind::Auto) => fuse::AUTO,
            (FrontendKind::Auto, wish) => wish,
            (kind, _) => kind,
        };
        let open = match kind {
            FrontendKind::Nbd => self.open_nbd(id, &name, shard, status.size).await?,
            _ => self.open_fuse(id, &name, shard, status.size).await?,
        };
        let place = open.place.clone();
        if let Some(entry) = self.state().volumes.get_mut(&id) {
            entry.open = Some(open);
        }
        self.remember_attached(id, Some(kind)).await;
        Ok(Attachment { place, connections: 0 })
    }

    /// Closes the frontend on request. Not open: success.
    pub(super) async fn detach_volume(&self, id: VolumeId, force: bool) -> Result<(), EngineError> {
        let open = self.state().volumes.get_mut(&id).and_then(|v| v.open.take());
        let Some(mut open) = open else { return Ok(()) };
        if let Some(mut fuse) = open.fuse.take() {
            let task = tokio::task::spawn_blocking(move || {
                let result = fuse.detach(force);
                (fuse, result)
            });
            let (fuse, result) = task.await.map_err(failed)?;
            if let Err(error) = result {
                open.fuse = Some(fuse);
                if let Some(entry) = self.state().volumes.get_mut(&id) {
                    entry.open = Some(open);
                }
                return Err(EngineError::Refused { reason: "in-use", text: error.to_string() });
            }
        }
        drop(open);
        self.remember_attached(id, None).await;
        Ok(())
    }

    /// Closes the frontend for a stop; it is reopened at the next start.
    pub(super) async fn close_frontend(&self, id: VolumeId) {
        let open = self.state().volumes.get_mut(&id).and_then(|v| v.open.take());
        if let Some(Open { fuse: Some(mut fuse), .. }) = open {
            let detached = tokio::task::spawn_blocking(move || fuse.detach(false).or_else(|_| fuse.detach(true))).await;
            if !matches!(detached, Ok(Ok(()))) {
                tracing::warn!(%id, "the device could not be removed");
            }
        }
    }

    /// Opens the frontend again after a restart, as soon as the volume serves.
    pub(super) fn reattach(self: &Arc<Self>, id: VolumeId, kind: FrontendKind) {
        let agent = self.clone();
        self.runtime.spawn(async move {
            // A copy that is Secondary by now is left alone: its operator attaches where it serves.
            for _ in 0..600 {
                match agent.attach_volume(id, kind).await {
                    Ok(_) | Err(EngineError::NoVolume(_) | EngineError::Stopping) => return,
                    Err(error) => tracing::debug!(%id, %error, "frontend not open yet"),
                }
                tokio::time::sleep(std::time::Duration::from_millis(500)).await;
            }
        });
    }
}
