//! Files and directories: as a program sees them, and as they are on the medium.
//!
//! The medium is the backing directory. A file exists there from its creation on, but under a number in a directory of its own
//! until its name is durable; its content there is what was synced. So a directory sync is a rename on the medium, and a cut only
//! has to throw the numbered ones away.
//!
//! Invariants: a node is kept while it has a name for programs, a name on the medium, or is open; numbers are never used
//! twice, so that the kernel never takes a file after a cut for one from before.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::errno::Errno;

use super::Names;
use super::fate::Fate;
use super::file::{FileData, Losses};
use super::names::{Entry, Ino, NameChange, NameLog};

/// The number of the root directory.
pub const ROOT: Ino = 1;
/// Where the medium keeps what has no durable name. Not visible through the mount.
const NAMELESS: &str = ".volatile-nameless";

/// What a node is.
#[derive(Debug)]
pub enum Body {
    /// A directory: its names as programs see them.
    Dir(BTreeMap<OsString, Ino>),
    /// A regular file.
    File(FileData),
    /// A symbolic link: its target. Never changes, so it is durable with its name.
    Link(PathBuf),
}

/// Where a node is on the medium.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Root,
    Nameless,
    At(Entry),
    Gone,
}

/// A file or directory.
#[derive(Debug)]
pub struct Node {
    /// What it is.
    pub body: Body,
    /// The directory it was found in or made in; itself for the root.
    pub parent: Ino,
    /// Permission bits.
    pub perm: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of the last change of the content.
    pub modified: SystemTime,
    has_name: bool,
    opens: u32,
    place: Place,
}

impl Node {
    fn is_dir(&self) -> bool {
        matches!(self.body, Body::Dir(_))
    }
}

/// The files and directories of a disk.
#[derive(Debug)]
pub struct Tree {
    medium: PathBuf,
    names: Names,
    nodes: BTreeMap<Ino, Node>,
    log: NameLog,
    next_ino: Ino,
    /// Order of all operations of the disk.
    next_sequence: u64,
}

impl Tree {
    /// What is durable in the directory `medium`.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn load(medium: &Path, names: Names) -> io::Result<Self> {
        let nodes = BTreeMap::new();
        let log = NameLog::default();
        let mut tree = Self { medium: medium.to_owned(), names, nodes, log, next_ino: ROOT + 1, next_sequence: 0 };
        tree.reload()?;
        Ok(tree)
    }

    fn reload(&mut self) -> io::Result<()> {
        self.nodes.clear();
        let nameless = self.medium.join(NAMELESS);
        match fs::remove_dir_all(&nameless) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => fs::create_dir(&nameless)?,
        }
        let medium = self.medium.clone();
        self.load_node(ROOT, ROOT, Place::Root, &medium)
    }

    fn load_node(&mut self, ino: Ino, parent: Ino, place: Place, path: &Path) -> io::Result<()> {
        let metadata = fs::symlink_metadata(path)?;
        let body = if metadata.is_dir() {
            Body::Dir(self.load_children(ino, path)?)
        } else if metadata.is_symlink() {
            Body::Link(fs::read_link(path)?)
        } else {
            Body::File(FileData::open(OpenOptions::new().read(true).write(true).open(path)?)?)
        };
        let node = Node {
            body,
            parent,
            perm: (metadata.mode() & 0o7777) as u16,
            uid: metadata.uid(),
            gid: metadata.gid(),
            modified: metadata.modified()?,
            has_name: true,
            opens: 0,
            place,
        };
        self.nodes.insert(ino, node);
        Ok(())
    }

    fn load_children(&mut self, dir: Ino, path: &Path) -> io::Result<BTreeMap<OsString, Ino>> {
        let mut children = BTreeMap::new();
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            let (name, kind) = (entry.file_name(), entry.file_type()?);
            if name == NAMELESS || !(kind.is_file() || kind.is_dir() || kind.is_symlink()) {
                continue;
            }
            let ino = self.new_ino();
            self.load_node(ino, dir, Place::At(Entry { dir, name: name.clone() }), &entry.path())?;
            children.insert(name, ino);
        }
        Ok(children)
    }

    fn new_ino(&mut self) -> Ino {
        self.next_ino += 1;
        self.next_ino - 1
    }

    /// The sequence number of the next operation.
    pub fn new_sequence(&mut self) -> u64 {
        self.next_sequence += 1;
        self.next_sequence - 1
    }

    /// A node. A number from before a cut is stale.
    ///
    /// # Errors
    /// `ESTALE`.
    pub fn node(&self, ino: Ino) -> io::Result<&Node> {
        self.nodes.get(&ino).ok_or_else(|| Errno::ESTALE.into())
    }

    /// A node, to change it.
    ///
    /// # Errors
    /// `ESTALE`.
    pub fn node_mut(&mut self, ino: Ino) -> io::Result<&mut Node> {
        self.nodes.get_mut(&ino).ok_or_else(|| Errno::ESTALE.into())
    }

    /// A regular file.
    ///
    /// # Errors
    /// `ESTALE`, `EISDIR`.
    pub fn file_mut(&mut self, ino: Ino) -> io::Result<&mut FileData> {
        match &mut self.node_mut(ino)?.body {
            Body::File(file) => Ok(file),
            Body::Dir(_) => Err(Errno::EISDIR.into()),
            Body::Link(_) => Err(Errno::EINVAL.into()),
        }
    }

    /// All regular files.
    pub fn files(&self) -> impl Iterator<Item = &FileData> {
        self.nodes.values().filter_map(|node| match &node.body {
            Body::File(file) => Some(file),
            _ => None,
        })
    }

    fn files_mut(&mut self) -> impl Iterator<Item = &mut FileData> {
        self.nodes.values_mut().filter_map(|node| match &mut node.body {
            Body::File(file) => Some(file),
            _ => None,
        })
    }

    /// Bytes of allocated blocks of all files that have a name or are open.
    pub fn used_bytes(&self) -> u64 {
        let used = |node: &Node| match &node.body {
            Body::File(file) if node.has_name || node.opens > 0 => file.allocated_bytes(),
            _ => 0,
        };
        self.nodes.values().map(used).sum()
    }

    /// Names that are not durable.
    pub fn pending_names(&self) -> usize {
        self.log.len()
    }

    /// The names of a directory.
    ///
    /// # Errors
    /// `ESTALE`, `ENOTDIR`.
    pub fn children(&self, dir: Ino) -> io::Result<&BTreeMap<OsString, Ino>> {
        match &self.node(dir)?.body {
            Body::Dir(children) => Ok(children),
            _ => Err(Errno::ENOTDIR.into()),
        }
    }

    fn children_mut(&mut self, dir: Ino) -> io::Result<&mut BTreeMap<OsString, Ino>> {
        let node = self.node_mut(dir)?;
        node.modified = SystemTime::now();
        match &mut node.body {
            Body::Dir(children) => Ok(children),
            _ => Err(Errno::ENOTDIR.into()),
        }
    }

    /// What a name stands for.
    ///
    /// # Errors
    /// `ENOENT`, and those of [`Self::children`].
    pub fn lookup(&self, dir: Ino, name: &OsStr) -> io::Result<Ino> {
        self.children(dir)?.get(name).copied().ok_or_else(|| Errno::ENOENT.into())
    }

    /// Makes a regular file.
    ///
    /// # Errors
    /// `EEXIST`, and those of [`Self::children`] and of the medium.
    pub fn create_file(&mut self, dir: Ino, name: &OsStr, perm: u16) -> io::Result<Ino> {
        self.create(dir, name, perm, |path| {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create_new(true).mode(u32::from(perm) | 0o600);
            Ok(Body::File(FileData::open(options.open(path)?)?))
        })
    }

    /// Makes a directory.
    ///
    /// # Errors
    /// `EEXIST`, and those of [`Self::children`] and of the medium.
    pub fn create_dir(&mut self, dir: Ino, name: &OsStr, perm: u16) -> io::Result<Ino> {
        self.create(dir, name, perm, |path| {
            DirBuilder::new().mode(u32::from(perm) | 0o700).create(path)?;
            Ok(Body::Dir(BTreeMap::new()))
        })
    }

    /// Makes a symbolic link.
    ///
    /// # Errors
    /// `EEXIST`, and those of [`Self::children`] and of the medium.
    pub fn create_link(&mut self, dir: Ino, name: &OsStr, target: &Path) -> io::Result<Ino> {
        self.create(dir, name, 0o777, |path| {
            symlink(target, path)?;
            Ok(Body::Link(target.to_owned()))
        })
    }

    fn create(
        &mut self,
        dir: Ino,
        name: &OsStr,
        perm: u16,
        make: impl FnOnce(&Path) -> io::Result<Body>,
    ) -> io::Result<Ino> {
        if self.children(dir)?.contains_key(name) {
            return Err(Errno::EEXIST.into());
        }
        let ino = self.new_ino();
        let body = make(&self.nameless(ino))?;
        let (uid, gid) = (self.node(dir)?.uid, self.node(dir)?.gid);
        let modified = SystemTime::now();
        let node =
            Node { body, parent: dir, perm, uid, gid, modified, has_name: true, opens: 0, place: Place::Nameless };
        self.nodes.insert(ino, node);
        self.children_mut(dir)?.insert(name.to_owned(), ino);
        self.record(NameChange::Link { entry: Entry { dir, name: name.to_owned() }, ino })?;
        Ok(ino)
    }

    /// Removes the name of a file, or of an empty directory.
    ///
    /// # Errors
    /// `ENOENT`, `EISDIR`, `ENOTDIR`, `ENOTEMPTY`, and those of the medium.
    pub fn remove(&mut self, dir: Ino, name: &OsStr, is_dir: bool) -> io::Result<()> {
        let ino = self.lookup(dir, name)?;
        match (&self.node(ino)?.body, is_dir) {
            (Body::File(_) | Body::Link(_), true) => return Err(Errno::ENOTDIR.into()),
            (Body::Dir(_), false) => return Err(Errno::EISDIR.into()),
            (Body::Dir(children), true) if !children.is_empty() => return Err(Errno::ENOTEMPTY.into()),
            _ => {}
        }
        self.children_mut(dir)?.remove(name);
        self.node_mut(ino)?.has_name = false;
        self.record(NameChange::Unlink { entry: Entry { dir, name: name.to_owned() }, ino, is_dir })
    }

    /// Renames, replacing a file or an empty directory unless `keeps_target`.
    ///
    /// # Errors
    /// Those of `rename(2)`, and those of the medium.
    pub fn rename(&mut self, from: Entry, to: Entry, keeps_target: bool) -> io::Result<()> {
        let ino = self.lookup(from.dir, &from.name)?;
        let replaced = self.children(to.dir)?.get(&to.name).copied();
        if replaced.is_some() && keeps_target {
            return Err(Errno::EEXIST.into());
        }
        if replaced == Some(ino) {
            return Ok(());
        }
        let is_dir = self.node(ino)?.is_dir();
        if let Some(replaced) = replaced {
            self.check_replaceable(replaced, is_dir)?;
            self.node_mut(replaced)?.has_name = false;
        }
        self.children_mut(from.dir)?.remove(&from.name);
        self.children_mut(to.dir)?.insert(to.name.clone(), ino);
        self.node_mut(ino)?.parent = to.dir;
        self.record(NameChange::Rename { from, to, ino, is_dir, replaced })
    }

    fn check_replaceable(&self, replaced: Ino, by_dir: bool) -> io::Result<()> {
        match (&self.node(replaced)?.body, by_dir) {
            (Body::File(_) | Body::Link(_), true) => Err(Errno::ENOTDIR.into()),
            (Body::Dir(_), false) => Err(Errno::EISDIR.into()),
            (Body::Dir(children), true) if !children.is_empty() => Err(Errno::ENOTEMPTY.into()),
            _ => Ok(()),
        }
    }

    fn record(&mut self, change: NameChange) -> io::Result<()> {
        let sequence = self.new_sequence();
        self.log.push(sequence, change);
        match self.names {
            Names::Strict => Ok(()),
            Names::Durable => self.sync_names(),
        }
    }

    /// Makes the names in a directory durable, and the directory itself not.
    ///
    /// # Errors
    /// `ENOTDIR`, and those of the medium.
    pub fn sync_dir(&mut self, dir: Ino) -> io::Result<()> {
        self.children(dir)?;
        let changes = self.log.take_synced(dir);
        self.put_on_medium(changes)
    }

    fn sync_names(&mut self) -> io::Result<()> {
        let changes = self.log.take_all();
        self.put_on_medium(changes)
    }

    /// Makes everything durable.
    ///
    /// # Errors
    /// Those of the medium.
    pub fn sync_all(&mut self) -> io::Result<()> {
        // The names first: what was removed needs no sync.
        self.sync_names()?;
        self.files_mut().try_for_each(FileData::sync)
    }

    fn put_on_medium(&mut self, changes: Vec<NameChange>) -> io::Result<()> {
        changes.into_iter().try_for_each(|change| self.put_one(change))
    }

    fn put_one(&mut self, change: NameChange) -> io::Result<()> {
        match change {
            NameChange::Link { entry, ino } => self.place(ino, entry),
            NameChange::Unlink { entry, ino, is_dir } => {
                let path = self.path_of_entry(&entry)?;
                if is_dir {
                    fs::remove_dir(path)?
                } else {
                    fs::remove_file(path)?
                }
                self.leave_medium(ino)
            }
            NameChange::Rename { to, ino, replaced, .. } => {
                self.place(ino, to)?;
                replaced.map_or(Ok(()), |replaced| self.leave_medium(replaced))
            }
        }
    }

    fn place(&mut self, ino: Ino, entry: Entry) -> io::Result<()> {
        fs::rename(self.path(ino)?, self.path_of_entry(&entry)?)?;
        self.node_mut(ino)?.place = Place::At(entry);
        Ok(())
    }

    fn leave_medium(&mut self, ino: Ino) -> io::Result<()> {
        self.node_mut(ino)?.place = Place::Gone;
        self.forget_if_unused(ino);
        Ok(())
    }

    fn path(&self, ino: Ino) -> io::Result<PathBuf> {
        match &self.node(ino)?.place {
            Place::Root => Ok(self.medium.clone()),
            Place::Nameless => Ok(self.nameless(ino)),
            Place::At(entry) => self.path_of_entry(entry),
            Place::Gone => Err(Errno::ESTALE.into()),
        }
    }

    fn path_of_entry(&self, entry: &Entry) -> io::Result<PathBuf> {
        Ok(self.path(entry.dir)?.join(&entry.name))
    }

    fn nameless(&self, ino: Ino) -> PathBuf {
        self.medium.join(NAMELESS).join(ino.to_string())
    }

    /// One more user of a node.
    ///
    /// # Errors
    /// `ESTALE`.
    pub fn opened(&mut self, ino: Ino) -> io::Result<()> {
        self.node_mut(ino)?.opens += 1;
        Ok(())
    }

    /// One user less.
    pub fn closed(&mut self, ino: Ino) {
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.opens = node.opens.saturating_sub(1);
        }
        self.forget_if_unused(ino);
    }

    fn forget_if_unused(&mut self, ino: Ino) {
        let is_unused = |node: &Node| !node.has_name && node.opens == 0 && node.place == Place::Gone;
        if self.nodes.get(&ino).is_some_and(is_unused) {
            self.nodes.remove(&ino);
        }
    }

    /// Syncs the file with most unsynced data; a disk may do that at any time.
    ///
    /// # Errors
    /// Those of the medium.
    pub fn write_back(&mut self) -> io::Result<()> {
        let fullest = self.files_mut().max_by_key(|file| file.pending_bytes());
        fullest.map_or(Ok(()), FileData::sync)
    }

    /// Loses power: what survives is put on the medium, and is all that there is from then on.
    ///
    /// # Errors
    /// Those of the medium.
    pub fn cut(&mut self, seed: u64) -> io::Result<(Losses, usize)> {
        let mut fate = Fate::new(seed, self.first_pending(), self.next_sequence);
        let mut losses = Losses::default();
        for file in self.files_mut() {
            let own = file.cut(&mut fate)?;
            losses.sectors += own.sectors;
            losses.lost += own.lost;
        }
        let names = self.log.len();
        let survivors = self.log.take_survivors(&mut fate);
        let lost_names = names - survivors.len();
        self.put_on_medium(survivors)?;
        self.reload()?;
        Ok((losses, lost_names))
    }

    fn first_pending(&self) -> u64 {
        let files = self.files().filter_map(FileData::first_pending);
        files.chain(self.log.first_pending()).min().unwrap_or(self.next_sequence)
    }

    /// Removes what only this disk needs from the medium.
    ///
    /// # Errors
    /// Those of the medium.
    pub fn tidy(&self) -> io::Result<()> {
        fs::remove_dir_all(self.medium.join(NAMELESS))
    }
}
