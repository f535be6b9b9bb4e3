//! The catalogue survives the loss, damage and age of its index.

use super::*;
use crate::config::HostPort;
use crate::control::FrontendKind;
use tidemark_core::types::{GroupId, SiteId, WallMs};

struct World {
    dir: tempfile::TempDir,
}

fn name(text: &str) -> Name {
    Name::parse(text).unwrap()
}

fn record(number: u8, text: &str) -> VolumeRecord {
    VolumeRecord {
        id: VolumeId([number; 16]),
        name: name(text),
        group: GroupId([9; 16]),
        base: "base.img".into(),
        adopted: false,
        created: WallMs(number.into()),
        frontend: FrontendKind::Auto,
        attached: None,
    }
}

fn peer(text: &str) -> PeerRecord {
    PeerRecord { name: name(text), site: None, address: HostPort::parse("b:9740").unwrap(), own_ca: false }
}

impl World {
    fn new() -> Self {
        let world = Self { dir: tempfile::tempdir().unwrap() };
        for pool in world.pools() {
            std::fs::create_dir(&pool.path).unwrap();
        }
        world
    }

    fn pools(&self) -> Vec<PoolConfig> {
        let pool = |text: &str| PoolConfig { name: name(text), path: self.dir.path().join(text), log_path: None };
        vec![pool("main"), pool("fast")]
    }

    fn open(&self) -> Catalogue {
        Catalogue::open(&self.dir.path().join("state"), &self.pools()).unwrap()
    }

    fn volume_dir(&self, pool: &str, id: VolumeId) -> PathBuf {
        self.dir.path().join(pool).join(id.to_string())
    }

    fn index_dir(&self) -> PathBuf {
        self.dir.path().join("state/catalogue")
    }

    fn add(&self, catalogue: &mut Catalogue, pool: &str, record: VolumeRecord) {
        let dir = self.volume_dir(pool, record.id);
        std::fs::create_dir(&dir).unwrap();
        catalogue.add_volume(&name(pool), &dir, record).unwrap();
    }

    /// Two volumes in two pools and two peers, one with its own authority.
    fn filled() -> (Self, Vec<VolumeEntry>, Vec<PeerRecord>) {
        let world = Self::new();
        let mut catalogue = world.open();
        world.add(&mut catalogue, "main", record(1, "pg"));
        world.add(&mut catalogue, "fast", record(2, "logs"));
        catalogue.change_volume(VolumeId([2; 16]), |record| record.attached = Some(FrontendKind::Fuse)).unwrap();
        catalogue.put_peer(peer("b"), Some("PEM")).unwrap();
        catalogue.put_peer(peer("c"), None).unwrap();
        catalogue.learn_site(&name("b"), SiteId([0xb; 16])).unwrap();
        let (volumes, peers) = content(&catalogue);
        assert_eq!((volumes.len(), peers.len()), (2, 2));
        drop(catalogue);
        (world, volumes, peers)
    }
}

fn content(catalogue: &Catalogue) -> (Vec<VolumeEntry>, Vec<PeerRecord>) {
    (catalogue.volumes().cloned().collect(), catalogue.peers().cloned().collect())
}

#[test]
fn what_was_put_is_there_after_a_restart() {
    let (world, volumes, peers) = World::filled();
    let catalogue = world.open();
    assert_eq!(content(&catalogue), (volumes, peers));
    assert_eq!(catalogue.findings(), []);
    assert_eq!(catalogue.volume_named(&name("logs")).unwrap().record.attached, Some(FrontendKind::Fuse));
    let b = catalogue.peers().next().unwrap();
    assert_eq!((b.site, b.own_ca), (Some(SiteId([0xb; 16])), true));
    assert_eq!(std::fs::read_to_string(catalogue.peer_ca(&b.name)).unwrap(), "PEM");
}

#[test]
fn a_deleted_index_comes_back() {
    let (world, volumes, peers) = World::filled();
    if world.index_dir().exists() {
        std::fs::remove_dir_all(world.index_dir()).unwrap();
    }
    assert_eq!(content(&world.open()), (volumes.clone(), peers.clone()));
    assert_eq!(content(&world.open()), (volumes, peers));
}

/// What a file becomes; none: it is removed.
#[cfg(feature = "rocksdb")]
type Damage = fn(&[u8]) -> Option<Vec<u8>>;

#[cfg(feature = "rocksdb")]
#[test]
fn any_damaged_file_of_the_index_is_survived() {
    let (world, volumes, peers) = World::filled();
    let files: Vec<PathBuf> =
        std::fs::read_dir(world.index_dir()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(files.len() > 3, "{files:?}");
    let keep = world.dir.path().join("keep");
    std::fs::rename(world.index_dir(), &keep).unwrap();
    let damages: [Damage; 4] = [
        |_| None,
        |_| Some(Vec::new()),
        |old| Some(old.iter().map(|byte| byte ^ 0xff).collect()),
        |old| Some(old[..old.len() / 2].to_vec()),
    ];
    for (file, damage) in files.iter().flat_map(|file| damages.map(|damage| (file, damage))) {
        let _ = std::fs::remove_dir_all(world.index_dir());
        std::fs::create_dir(world.index_dir()).unwrap();
        for entry in std::fs::read_dir(&keep).unwrap() {
            let from = entry.unwrap().path();
            std::fs::copy(&from, world.index_dir().join(from.file_name().unwrap())).unwrap();
        }
        match damage(&std::fs::read(file).unwrap()) {
            Some(bytes) => std::fs::write(file, bytes).unwrap(),
            None => std::fs::remove_file(file).unwrap(),
        }
        assert_eq!(content(&world.open()), (volumes.clone(), peers.clone()), "{}", file.display());
    }
}

#[cfg(feature = "rocksdb")]
#[test]
fn a_file_in_the_place_of_the_index_is_replaced() {
    let (world, volumes, peers) = World::filled();
    std::fs::remove_dir_all(world.index_dir()).unwrap();
    std::fs::write(world.index_dir(), "not a directory").unwrap();
    let catalogue = world.open();
    assert_eq!(content(&catalogue), (volumes, peers));
    assert!(matches!(catalogue.findings()[0], Finding::IndexRebuilt { .. }));
}

#[cfg(feature = "rocksdb")]
#[test]
fn the_disk_counts_when_the_index_is_older() {
    let (world, _, _) = World::filled();
    let file = world.volume_dir("main", VolumeId([1; 16])).join(VOLUME_FILE);
    let text = std::fs::read_to_string(&file).unwrap().replace("frontend = \"auto\"", "frontend = \"nbd\"");
    std::fs::write(&file, text).unwrap();
    let catalogue = world.open();
    assert_eq!(catalogue.volume(VolumeId([1; 16])).unwrap().record.frontend, FrontendKind::Nbd);
    assert!(matches!(&catalogue.findings()[0], Finding::Reindexed { .. }), "{:?}", catalogue.findings());
    drop(catalogue);
    assert_eq!(world.open().findings(), []);
}

#[cfg(feature = "rocksdb")]
#[test]
fn a_volume_whose_pool_is_not_mounted_is_remembered_as_missing() {
    let (world, volumes, _) = World::filled();
    let (pool, elsewhere) = (world.dir.path().join("fast"), world.dir.path().join("unmounted"));
    std::fs::rename(&pool, &elsewhere).unwrap();
    let catalogue = world.open();
    let missing = catalogue.volume_named(&name("logs")).unwrap();
    assert!(!missing.present);
    let named = |finding: &Finding| matches!(finding, Finding::Missing { name, .. } if name.as_str() == "logs");
    assert!(catalogue.findings().iter().any(named), "{:?}", catalogue.findings());
    drop(catalogue);
    std::fs::rename(&elsewhere, &pool).unwrap();
    assert_eq!(content(&world.open()).0, volumes);
}

#[test]
fn names_are_unique_and_changes_need_a_volume() {
    let (world, _, _) = World::filled();
    let mut catalogue = world.open();
    let dir = world.volume_dir("main", VolumeId([3; 16]));
    std::fs::create_dir(&dir).unwrap();
    let add = catalogue.add_volume(&name("main"), &dir, record(3, "pg"));
    assert!(matches!(add, Err(CatalogueError::NameTaken(_))));
    assert!(!dir.join(VOLUME_FILE).exists());
    let add = catalogue.add_volume(&name("main"), &dir, record(1, "new"));
    assert!(matches!(add, Err(CatalogueError::Known(_))));
    let change = catalogue.change_volume(VolumeId([7; 16]), |_| ());
    assert!(matches!(change, Err(CatalogueError::NoVolume(_))));
}

#[test]
fn forgotten_and_trashed_volumes_do_not_come_back() {
    let (world, _, _) = World::filled();
    let mut catalogue = world.open();
    let dir = world.volume_dir("main", VolumeId([1; 16]));
    let trashed = catalogue.trash_volume(VolumeId([1; 16]), 1234).unwrap();
    assert!(trashed.join(VOLUME_FILE).exists() && !dir.exists());
    assert!(trashed.starts_with(world.dir.path().join("main/.trash")), "{trashed:?}");
    std::fs::remove_dir_all(world.volume_dir("fast", VolumeId([2; 16]))).unwrap();
    catalogue.forget_volume(VolumeId([2; 16])).unwrap();
    catalogue.forget_volume(VolumeId([2; 16])).unwrap();
    drop(catalogue);
    let catalogue = world.open();
    assert_eq!(content(&catalogue).0, []);
    assert_eq!(catalogue.findings(), []);
    drop(catalogue);
    // Taken out of the trash by hand it is a volume again.
    std::fs::rename(trashed, dir).unwrap();
    assert!(world.open().volume(VolumeId([1; 16])).is_some());
}

#[test]
fn removed_peers_are_gone_with_their_authority() {
    let (world, _, _) = World::filled();
    let mut catalogue = world.open();
    let ca = catalogue.peer_ca(&name("b"));
    catalogue.remove_peer(&name("b")).unwrap();
    catalogue.remove_peer(&name("b")).unwrap();
    assert!(!ca.exists());
    drop(catalogue);
    assert_eq!(content(&world.open()).1.len(), 1);
}

#[test]
fn damaged_copied_and_unfinished_volumes_are_named_and_the_rest_serves() {
    let (world, volumes, peers) = World::filled();
    let main = |number| world.volume_dir("main", VolumeId([number; 16]));
    for number in [3, 4, 5] {
        std::fs::create_dir(main(number)).unwrap();
    }
    std::fs::write(main(4).join(VOLUME_FILE), "\0\0\0").unwrap();
    let rival = VolumeRecord { created: WallMs(99), ..record(5, "pg") };
    std::fs::write(main(5).join(VOLUME_FILE), rival.to_text().unwrap()).unwrap();
    let copy = world.volume_dir("fast", VolumeId([1; 16]));
    std::fs::create_dir(&copy).unwrap();
    std::fs::copy(main(1).join(VOLUME_FILE), copy.join(VOLUME_FILE)).unwrap();
    std::fs::write(world.dir.path().join("state/peers/x.toml"), "rubbish").unwrap();

    let catalogue = world.open();
    assert_eq!(content(&catalogue), (volumes, peers));
    let findings = catalogue.findings();
    assert_eq!(findings.len(), 5, "{findings:?}");
    let has = |wanted: fn(&Finding) -> bool| assert!(findings.iter().any(wanted), "{findings:?}");
    has(|finding| matches!(finding, Finding::Unnamed { .. }));
    has(|finding| matches!(finding, Finding::NameTaken { .. }));
    has(|finding| matches!(finding, Finding::Twice { .. }));
    has(|finding| matches!(finding, Finding::Unreadable { path, .. } if path.ends_with(VOLUME_FILE)));
    has(|finding| matches!(finding, Finding::Unreadable { path, .. } if path.ends_with("x.toml")));
}

#[test]
fn a_state_directory_has_one_agent() {
    let world = World::new();
    let first = world.open();
    let second = Catalogue::open(&world.dir.path().join("state"), &world.pools());
    assert!(matches!(second, Err(CatalogueError::InUse { .. })));
    drop(first);
    world.open();
}
