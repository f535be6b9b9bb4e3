//! Makes a real volume copy in a directory: the core writes it, over a shell of plain file calls.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use tidemark_core::config::Policy;
use tidemark_core::event::{
    DiskDone, DiskError, DiskOp, DiskResult, FileRef, Input, Output, Request, RequestId, Slot, VerbId,
};
use tidemark_core::layout::Layout;
use tidemark_core::node::{CreateKind, CreateParams, Node, OpenParams};
use tidemark_core::types::{BootId, ByteRange, GenId, GroupId, Nanos, NodeId, Nonce, Secret, SiteId, VolumeId, WallMs};
use tidemark_core::verb::Verb;

/// The volume's secret.
pub const SECRET: Secret = Secret([5; 32]);
const SIZE: u64 = 16 << 20;
const SLOT_BYTES: u64 = 1 << 20;
const WRITE_BYTES: u64 = 64 << 10;
/// Enough steps for the writes of any test; a copy that stands still would loop for ever.
const MAX_STEPS: usize = 100_000;

/// A directory with a copy in it that holds `writes` writes of 64 KiB and was closed cleanly.
pub fn written(dir: &Path, writes: u64) {
    open(dir, writes).close();
}

/// The same of a process that died after its superblock had been written anew.
pub fn unclosed(dir: &Path, writes: u64) {
    let mut shell = open(dir, writes);
    shell.verb(Verb::SetPolicy(Policy { retention_ms: 5, ..Policy::default() }));
}

fn open(dir: &Path, writes: u64) -> Shell {
    let mut shell = Shell::create(dir);
    for n in 0..writes {
        let range = ByteRange::new(n * WRITE_BYTES % SIZE, WRITE_BYTES);
        let data = vec![n as u8 + 1; WRITE_BYTES as usize].into();
        shell.request(Request::Write { range, data, fua: false });
    }
    shell.request(Request::Flush);
    shell
}

struct Shell {
    dir: PathBuf,
    node: Node,
    now: Nanos,
    next_request: u64,
}

impl Shell {
    fn create(dir: &Path) -> Self {
        let (volume, site, node) = (VolumeId([1; 16]), SiteId([2; 16]), NodeId([3; 16]));
        let new = Node::create(&CreateParams {
            volume,
            group: GroupId([4; 16]),
            site,
            node,
            secret: SECRET,
            layout: Layout::one(volume, SIZE),
            slot_bytes: SLOT_BYTES,
            policy: Policy::default(),
            peer: None,
            kind: CreateKind::Primary { generation: GenId([6; 16]), nonce: Nonce([7; 16]) },
            adopted: false,
            members: None,
        });
        for sub in ["log", "branch"] {
            fs::create_dir_all(dir.join(sub)).expect("made");
        }
        fs::write(dir.join("superblock"), &new.superblock).expect("written");
        fs::write(dir.join("config"), &new.config).expect("written");
        File::create(dir.join("base.img")).and_then(|file| file.set_len(SIZE)).expect("made");
        let params = OpenParams {
            volume,
            site,
            node,
            boot: BootId([8; 16]),
            rng_seed: [9; 32],
            wall: WallMs(1_700_000_000_000),
            superblock: new.superblock,
            config: new.config,
            slots: Vec::new(),
            footers: Vec::new(),
            bases: vec![(volume, SIZE)],
            tail_bytes: tidemark_core::node::TAIL_BYTES,
            lease: None,
        };
        let node = Node::open(Nanos(1), params).expect("opens");
        Self { dir: dir.to_owned(), node, now: Nanos(1), next_request: 0 }
    }

    fn request(&mut self, request: Request) {
        self.next_request += 1;
        let id = RequestId(self.next_request);
        self.node.handle(self.now, Input::Request(id, request));
        self.run_until(|output| matches!(output, Output::Reply(done, Ok(_)) if *done == id));
    }

    fn close(mut self) {
        self.verb(Verb::Close);
    }

    fn verb(&mut self, verb: Verb) {
        self.node.handle(self.now, Input::Verb(VerbId(1), verb));
        self.run_until(|output| matches!(output, Output::Verb(_, Ok(_))));
    }

    fn run_until(&mut self, is_done: impl Fn(&Output) -> bool) {
        for _ in 0..MAX_STEPS {
            match self.node.poll_output(self.now) {
                Some(Output::Disk(token, op)) => {
                    let result = self.perform(&op);
                    self.node.handle(self.now, Input::Disk(token, result));
                }
                Some(output) if is_done(&output) => return,
                Some(_) => {}
                None => {
                    self.now = self.node.poll_timeout().unwrap_or(self.now.after_ms(1)).max(self.now.after_ms(1));
                    self.node.handle(self.now, Input::Tick);
                }
            }
        }
        panic!("no answer: {:?}", self.node.status(self.now));
    }

    fn path(&self, file: FileRef) -> PathBuf {
        match file {
            FileRef::Log(Slot(slot)) => self.dir.join(format!("log/slot-{slot:06}.seg")),
            FileRef::Footer(number) => self.dir.join(format!("log/footer-{number:06}")),
            FileRef::Superblock => self.dir.join("superblock"),
            FileRef::Config => self.dir.join("config"),
            FileRef::Base => self.dir.join("base.img"),
            FileRef::Branch(branch) => self.dir.join(format!("branch/branch-{branch:04}")),
        }
    }

    fn perform(&self, op: &DiskOp) -> DiskResult {
        let io = |_: std::io::Error| DiskError::Io;
        match op {
            DiskOp::Write { file, offset, bufs, .. } => {
                let out = OpenOptions::new().write(true).open(self.path(*file)).map_err(io)?;
                out.write_all_at(&bufs.concat(), *offset).map_err(io)?;
            }
            DiskOp::Read { file, offset, len } => {
                let mut bytes = vec![0; *len as usize];
                File::open(self.path(*file)).and_then(|file| file.read_exact_at(&mut bytes, *offset)).map_err(io)?;
                return Ok(DiskDone::Read(bytes.into()));
            }
            DiskOp::Prepare { slot, len } => {
                File::create(self.path(FileRef::Log(*slot))).and_then(|file| file.set_len(*len)).map_err(io)?;
            }
            DiskOp::Replace { file, data } => fs::write(self.path(*file), data.concat()).map_err(io)?,
            DiskOp::Map { range } => return Ok(DiskDone::Mapped(vec![*range])),
            DiskOp::Remove { .. } | DiskOp::Zero { .. } => return Err(DiskError::Io),
            DiskOp::Sync { .. } | DiskOp::Grow { .. } => {}
        }
        Ok(DiskDone::Done)
    }
}
