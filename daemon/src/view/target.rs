//! A volume of a view as its frontends see it: they only read.

use std::sync::Arc;

use tidemark_core::event::{Request, RequestError};
use tidemark_core::types::{ByteRange, VolumeId};
use tokio::runtime::Handle;

use super::View;
use crate::frontend::{AllocationCompletion, BlockTarget, Completion, Geometry};
use crate::here;

/// It is read on `runtime`, whoever asks: a shard's thread, or any other.
pub struct ViewTarget {
    /// The view.
    pub view: Arc<View>,
    /// One of its volumes.
    pub volume: VolumeId,
    /// Where blocking is allowed.
    pub runtime: Handle,
}

impl BlockTarget for ViewTarget {
    fn geometry(&self) -> Geometry {
        Geometry { size: self.view.size_of(self.volume).unwrap_or(0), write_through: false, read_only: true }
    }

    fn submit(&self, request: Request, done: Completion) {
        let answer = self.runtime.spawn(self.view.clone().answer(self.volume, request));
        here::spawn(async move { done(answer.await.unwrap_or(Err(RequestError::Io))) });
    }

    fn allocation(&self, range: ByteRange, done: AllocationCompletion) {
        done(Ok(vec![(range, false)]));
    }

    fn is_serving(&self) -> bool {
        !self.view.has_ended()
    }
}

#[cfg(feature = "fuse")]
impl crate::frontend::fuse_loop::Remote for ViewTarget {
    fn submit(&self, request: Request, done: crate::frontend::fuse_loop::RemoteCompletion) {
        let answer = self.view.clone().answer(self.volume, request);
        self.runtime.spawn(async move { done(answer.await) });
    }
}
