//! The FUSE + loop frontend of a volume, where it is built in.

use tidemark_core::event::{Request, RequestError};
use tidemark_core::types::VolumeId;

use super::volumes::failed;
use super::{Agent, Open};
use crate::control::{EngineError, FrontendKind, Place};
use crate::frontend::BlockTarget;
pub(super) use crate::frontend::fuse_loop::FuseLoop;
use crate::frontend::fuse_loop::{AttachParams, Remote, RemoteCompletion};
use crate::shard::ShardHandle;

/// What `auto` means when neither the request nor the volume says more.
pub(super) const AUTO: FrontendKind = FrontendKind::Fuse;

/// Whether it works on this host; if not, why.
pub(super) fn works() -> Result<(), String> {
    match std::path::Path::new("/dev/fuse").exists() && std::path::Path::new("/dev/loop-control").exists() {
        true => Ok(()),
        false => Err("/dev/fuse or /dev/loop-control does not exist here".into()),
    }
}

/// Sends requests of the FUSE threads to the volume's shard.
struct ToShard {
    shard: ShardHandle,
    id: VolumeId,
}

impl Remote for ToShard {
    fn submit(&self, request: Request, done: RemoteCompletion) {
        let id = self.id;
        // A completion that is dropped uncalled fails its request: right for a shard that has stopped.
        self.shard.send(move |shard| match shard.volume(id) {
            Some(volume) => volume.submit(request, done),
            None => done(Err(RequestError::NotServing)),
        });
    }
}

impl Agent {
    /// Serves a volume as a block device.
    pub(super) async fn open_fuse(&self, id: VolumeId, name: &str, shard: u16, size: u64) -> Result<Open, EngineError> {
        let remote = Box::new(ToShard { shard: self.shard(shard).clone(), id });
        let params = AttachParams {
            volume: name.to_owned(),
            size,
            run_dir: self.config.run_dir.clone(),
            dev_dir: self.config.fuse.dir.clone(),
            remote,
        };
        let attached = tokio::task::spawn_blocking(move || FuseLoop::attach(params)).await.map_err(failed)?;
        let fuse = attached.map_err(failed)?;
        let device = fuse.device().to_owned();
        Ok(Open { place: Place::Fuse { device }, fuse: Some(fuse), nbd: None })
    }
}
