//! Serves a volume in memory over NBD, to try clients against the frontend and to measure it by itself:
//! `nbd_memory SOCKET [SIZE_MIB] [--null]`. With `--null` nothing is kept and reads are zeros, like `nbdkit null`.

use std::path::Path;
use std::rc::Rc;

use bytes::Bytes;
use tidemark_agent::frontend::memory::{Answers, MemoryTarget};
use tidemark_agent::frontend::nbd::{Options, SingleExport, bind_unix, serve_unix};
use tidemark_agent::frontend::{AllocationCompletion, BlockTarget, Completion, Geometry};
use tidemark_core::event::{ReplyData, Request};
use tidemark_core::types::ByteRange;

/// Keeps nothing.
struct NullTarget {
    size: u64,
    zeros: Bytes,
}

impl NullTarget {
    fn new(size: u64) -> Self {
        Self { size, zeros: vec![0; 32 << 20].into() }
    }
}

impl BlockTarget for NullTarget {
    fn geometry(&self) -> Geometry {
        Geometry { size: self.size, write_through: false, read_only: false }
    }

    fn submit(&self, request: Request, done: Completion) {
        match request {
            Request::Read { range } => done(Ok(vec![self.zeros.slice(..range.len as usize)])),
            _ => done(Ok(ReplyData::new())),
        }
    }

    fn allocation(&self, range: ByteRange, done: AllocationCompletion) {
        done(Ok(vec![(range, true)]));
    }

    fn is_serving(&self) -> bool {
        true
    }
}

fn main() -> anyhow::Result<()> {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let null = args.iter().any(|arg| arg == "--null");
    args.retain(|arg| arg != "--null");
    let socket = args.first().ok_or_else(|| anyhow::anyhow!("usage: nbd_memory SOCKET [SIZE_MIB] [--null]"))?;
    let size = args.get(1).map_or(Ok(256), |mib| mib.parse::<u64>())? << 20;
    let target: Rc<dyn BlockTarget> =
        if null { Rc::new(NullTarget::new(size)) } else { Rc::new(MemoryTarget::new(size, Answers::AtOnce)) };

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(tokio::task::LocalSet::new().run_until(async {
        let listener = bind_unix(Path::new(socket))?;
        let serve = serve_unix(listener, Rc::new(SingleExport::new("memory", target)), Options::default());
        tokio::select! {
            () = serve => {}
            _ = tokio::signal::ctrl_c() => {}
        }
        std::fs::remove_file(socket)?;
        Ok(())
    }))
}
