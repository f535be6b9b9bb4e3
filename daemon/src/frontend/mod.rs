//! Block frontends. Each turns its own protocol into [`tidemark_core::event::Request`]s and the answers back, and decides
//! nothing else. All of them run against [`BlockTarget`], so one conformance suite can run over all of them.

#[doc(hidden)]
#[cfg(feature = "fuse")]
pub mod fuse_loop;
pub mod hardening;
pub mod kernel_nbd;
mod link;
pub mod memory;
mod mountinfo;
pub mod nbd;
pub(crate) mod users;

use tidemark_core::event::{ReplyData, Request, RequestError};
use tidemark_core::types::ByteRange;

/// What a frontend advertises about the volume. All sizes in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Size of the volume, a multiple of 512.
    pub size: u64,
    /// True when the policy is `ackOn: write`: the device may advertise write-through.
    pub write_through: bool,
    /// True for a sealed branch or a view: writes are refused.
    pub read_only: bool,
}

/// Called exactly once with the end of a request, on the volume's own thread, possibly before `submit` returns.
pub type Completion = Box<dyn FnOnce(Result<ReplyData, RequestError>)>;

/// An answer to an allocation query: `(range, is_hole)`, ascending and without gaps over the range asked for.
pub type Allocation = Vec<(ByteRange, bool)>;

/// Called exactly once with the answer to [`BlockTarget::allocation`].
pub type AllocationCompletion = Box<dyn FnOnce(Result<Allocation, RequestError>)>;

/// A volume as its frontends see it. Lives on the volume's shard thread and is not `Send`: a connection is served on the same
/// thread, so that no request crosses threads.
pub trait BlockTarget {
    /// What to advertise; may change after a resize or a policy change.
    fn geometry(&self) -> Geometry;

    /// Hands a request to the volume. The answer may take long: a suspended volume queues.
    fn submit(&self, request: Request, done: Completion);

    /// Which parts of the range are holes (read as zeros and take no space). A superset of the data is allowed.
    fn allocation(&self, range: ByteRange, done: AllocationCompletion);

    /// True while the volume serves here (role Primary, or Suspended and queueing). A new session is refused otherwise.
    fn is_serving(&self) -> bool;
}
