//! In the place of `fuse` in an agent that is built without that frontend.

use std::convert::Infallible;
use std::path::Path;

use super::{Agent, At, Open};
use crate::control::{EngineError, FrontendKind};
use crate::view::ViewTarget;

const NOT_BUILT: &str = "this agent is built without the FUSE frontend";

/// What `auto` means when neither the request nor the volume says more.
pub(super) const AUTO: FrontendKind = FrontendKind::Nbd;

/// Whether it works on this host; if not, why.
pub(super) fn works() -> Result<(), String> {
    Err(NOT_BUILT.into())
}

/// Nothing was left behind.
pub(crate) fn clear_stale(_run_dir: &Path, _dev_dir: &Path) {}

/// There is none.
pub(super) enum FuseLoop {}

impl FuseLoop {
    pub(super) fn resize(&self, _size: u64) -> Result<(), Infallible> {
        match *self {}
    }

    pub(super) fn detach(&mut self, _force: bool) -> Result<(), Infallible> {
        match *self {}
    }
}

/// Of none.
pub(super) enum Abort {}

impl Abort {
    pub(super) fn abort(&self) {
        match *self {}
    }
}

impl Agent {
    pub(super) async fn open_fuse(&self, _at: At, _name: &str, _size: u64) -> Result<Open, EngineError> {
        Err(EngineError::Refused { reason: "frontend-unavailable", text: NOT_BUILT.into() })
    }

    pub(super) async fn open_fuse_view(&self, _name: &str, _size: u64, _view: ViewTarget) -> Result<Open, EngineError> {
        Err(EngineError::Refused { reason: "frontend-unavailable", text: NOT_BUILT.into() })
    }
}
