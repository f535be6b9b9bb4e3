//! The catalogue survives the loss, damage and age of its index, and never takes it for the truth.

use super::*;
use crate::config::HostPort;
use crate::control::FrontendKind;
use tidemark_core::types::{SiteId, WallMs};

struct World {
    dir: tempfile::TempDir,
}

/// More volumes than any test makes.
const LIMIT: u32 = 9;

fn name(text: &str) -> Name {
    Name::parse(text).unwrap()
}

fn id(number: u8) -> VolumeId {
    VolumeId([number; 16])
}

fn record(number: u8, text: &str) -> CopyRecord {
    CopyRecord::of_one(name(text), volume(number, text))
}

fn volume(number: u8, text: &str) -> VolumeRecord {
    let (created, frontend) = (WallMs(number.into()), FrontendKind::Auto);
    VolumeRecord { id: id(number), name: name(text), created, frontend, attached: None, pending: false }
}

fn peer(text: &str) -> PeerRecord {
    let address = HostPort::parse("b:9740").unwrap();
    PeerRecord { name: name(text), site: Some(SiteId([0xb; 16])), address, own_ca: false, of_config: false }
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
        self.try_open().unwrap()
    }

    fn try_open(&self) -> Result<Catalogue, CatalogueError> {
        Catalogue::open(&self.dir.path().join("state"), &self.pools(), CatalogueMetrics::default())
    }

    fn volume_dir(&self, pool: &str, id: VolumeId) -> PathBuf {
        self.dir.path().join(pool).join(id.to_string())
    }

    fn index_dir(&self) -> PathBuf {
        self.dir.path().join("state/catalogue")
    }

    /// A volume's directory as far as the catalogue looks at it.
    fn make(&self, pool: &str, record: &CopyRecord) -> PathBuf {
        let dir = self.volume_dir(pool, record.id);
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join(VOLUME_FILE), record.to_text().unwrap()).unwrap();
        dir
    }

    fn add(&self, catalogue: &mut Catalogue, pool: &str, record: CopyRecord) {
        catalogue.reserve(record.id, std::slice::from_ref(&record.name), Joined::New(&record.name), LIMIT).unwrap();
        let dir = self.make(pool, &record);
        catalogue.enlist(&name(pool), &dir, record).unwrap();
    }

    /// Two volumes in two pools and two peers, one with its own authority.
    fn filled() -> (Self, Vec<CopyEntry>, Vec<PeerRecord>) {
        let world = Self::new();
        let mut catalogue = world.open();
        world.add(&mut catalogue, "main", record(1, "pg"));
        world.add(&mut catalogue, "fast", record(2, "logs"));
        catalogue.set_attached(id(2), Some(FrontendKind::Fuse)).unwrap();
        catalogue.put_peer(peer("b"), Some("PEM")).unwrap();
        catalogue.put_peer(peer("c"), None).unwrap();
        let (volumes, peers) = content(&catalogue);
        assert_eq!((volumes.len(), peers.len(), catalogue.findings().len()), (2, 2, 0));
        drop(catalogue);
        (world, volumes, peers)
    }
}

fn content(catalogue: &Catalogue) -> (Vec<CopyEntry>, Vec<PeerRecord>) {
    (catalogue.copies().cloned().collect(), catalogue.peers().cloned().collect())
}

fn named<'c>(catalogue: &'c Catalogue, text: &str) -> &'c CopyEntry {
    catalogue.copies().find(|entry| entry.record.name.as_str() == text).expect("a volume of this name")
}

fn found(catalogue: &Catalogue) -> Vec<&'static str> {
    catalogue.findings().iter().map(Finding::kind).collect()
}

#[test]
fn what_was_put_is_there_after_a_restart() {
    let (world, volumes, peers) = World::filled();
    let catalogue = world.open();
    assert_eq!(content(&catalogue), (volumes, peers));
    assert_eq!(catalogue.findings(), []);
    assert_eq!(named(&catalogue, "logs").record.volumes[0].attached, Some(FrontendKind::Fuse));
    let cas: Vec<_> = catalogue.peers().map(|peer| catalogue.peer_ca(peer)).collect();
    assert_eq!(std::fs::read_to_string(cas[0].as_ref().unwrap()).unwrap(), "PEM");
    assert_eq!(cas[1], None);
}

#[test]
fn a_deleted_index_comes_back() {
    let (world, volumes, peers) = World::filled();
    if world.index_dir().exists() {
        std::fs::remove_dir_all(world.index_dir()).unwrap();
        let catalogue = world.open();
        assert_eq!(content(&catalogue), (volumes.clone(), peers.clone()));
        assert_eq!(catalogue.findings(), [Finding::IndexRebuilt(Rebuilt::Missing)]);
    }
    let catalogue = world.open();
    assert_eq!(content(&catalogue), (volumes, peers));
    assert_eq!(catalogue.findings(), []);
}

/// What a file becomes; none: it is removed.
#[cfg(feature = "rocksdb")]
type Damage = Box<dyn Fn(&[u8]) -> Option<Vec<u8>>>;

#[cfg(feature = "rocksdb")]
#[test]
fn any_damaged_file_of_the_index_is_survived() {
    let (world, volumes, peers) = World::filled();
    let files: Vec<PathBuf> =
        std::fs::read_dir(world.index_dir()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(files.len() > 3, "{files:?}");
    let keep = world.dir.path().join("keep");
    std::fs::rename(world.index_dir(), &keep).unwrap();
    let mut damages: Vec<Damage> = vec![
        Box::new(|_| None),
        Box::new(|_| Some(Vec::new())),
        Box::new(|old| Some(old.iter().map(|byte| byte ^ 0xff).collect())),
        Box::new(|old| Some(old[..old.len() / 2].to_vec())),
    ];
    for part in 0..8 {
        damages.push(Box::new(move |old| {
            let mut new = old.to_vec();
            if let Some(byte) = new.get_mut(old.len() * part / 8) {
                *byte ^= 0x5a;
            }
            Some(new)
        }));
    }
    for (file, damage) in files.iter().flat_map(|file| damages.iter().map(move |damage| (file, damage))) {
        let _ = std::fs::remove_dir_all(world.index_dir()); // not there the first time
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

#[test]
fn a_frontend_that_was_set_is_there_again_and_what_is_attached_stays() {
    let (world, _, _) = World::filled();
    let mut catalogue = world.open();
    catalogue.set_frontend(id(2), FrontendKind::NbdDevice).unwrap();
    drop(catalogue);
    let catalogue = world.open();
    let record = &named(&catalogue, "logs").record;
    assert_eq!(
        (record.volumes[0].frontend, record.volumes[0].attached),
        (FrontendKind::NbdDevice, Some(FrontendKind::Fuse))
    );
    assert_eq!(catalogue.findings(), []);
}

#[cfg(feature = "rocksdb")]
#[test]
fn a_file_in_the_place_of_the_index_is_replaced() {
    let (world, volumes, peers) = World::filled();
    std::fs::remove_dir_all(world.index_dir()).unwrap();
    std::fs::write(world.index_dir(), "not a directory").unwrap();
    let catalogue = world.open();
    assert_eq!(content(&catalogue), (volumes, peers));
    assert!(matches!(catalogue.findings(), [Finding::IndexRebuilt(Rebuilt::Damaged(_))]), "{:?}", catalogue.findings());
}

#[cfg(feature = "rocksdb")]
#[test]
fn the_disk_counts_when_the_index_is_older() {
    let (world, _, _) = World::filled();
    let file = world.volume_dir("main", id(1)).join(VOLUME_FILE);
    let text = std::fs::read_to_string(&file).unwrap().replace("frontend = \"auto\"", "frontend = \"nbd\"");
    std::fs::write(&file, text).unwrap();
    let catalogue = world.open();
    assert_eq!(named(&catalogue, "pg").record.volumes[0].frontend, FrontendKind::Nbd);
    assert_eq!(found(&catalogue), ["reindexed"]);
    drop(catalogue);
    assert_eq!(world.open().findings(), []);
}

#[cfg(feature = "rocksdb")]
#[test]
fn a_volume_whose_pool_is_not_mounted_is_remembered_and_its_name_with_it() {
    let (world, volumes, _) = World::filled();
    let (pool, elsewhere) = (world.dir.path().join("fast"), world.dir.path().join("unmounted"));
    std::fs::rename(&pool, &elsewhere).unwrap();
    std::fs::create_dir(&pool).unwrap();
    let mut catalogue = world.open();
    assert!(named(&catalogue, "logs").fault.as_ref().unwrap().contains("is the pool mounted?"));
    assert_eq!(found(&catalogue), ["missing"]);
    assert!(matches!(
        catalogue.reserve(id(3), &[name("logs")], Joined::New(&name("logs")), LIMIT),
        Err(CatalogueError::NameTaken(_))
    ));
    assert!(matches!(
        catalogue.reserve(id(2), &[name("new")], Joined::New(&name("new")), LIMIT),
        Err(CatalogueError::Known(_))
    ));
    drop(catalogue);
    assert_eq!(found(&world.open()), ["missing"], "and again");
    std::fs::remove_dir(&pool).unwrap();
    std::fs::rename(&elsewhere, &pool).unwrap();
    let catalogue = world.open();
    assert_eq!((content(&catalogue).0, catalogue.findings()), (volumes, [].as_slice()));
}

#[cfg(feature = "rocksdb")]
#[test]
fn a_missing_volume_is_forgotten_on_request() {
    let (world, _, _) = World::filled();
    std::fs::remove_dir_all(world.volume_dir("fast", id(2))).unwrap();
    let mut catalogue = world.open();
    assert_eq!(catalogue.trash_volume(id(2), 1).unwrap(), None);
    drop(catalogue);
    let catalogue = world.open();
    assert_eq!((content(&catalogue).0.len(), catalogue.findings()), (1, [].as_slice()));
}

#[test]
fn no_more_volumes_are_reserved_than_the_limit() {
    let (world, _, _) = World::filled();
    let mut catalogue = world.open();
    catalogue.reserve(id(3), &[name("new")], Joined::New(&name("new")), 3).unwrap();
    let refused = catalogue.reserve(id(4), &[name("newer")], Joined::New(&name("newer")), 3);
    assert!(matches!(refused, Err(CatalogueError::TooMany { limit: 3 })), "{refused:?}");
    catalogue.unreserve(id(3));
    catalogue.reserve(id(4), &[name("newer")], Joined::New(&name("newer")), 3).unwrap();
}

#[test]
fn what_is_learnt_of_a_peer_stays_and_leaves_its_authority_alone() {
    let world = World::new();
    let mut catalogue = world.open();
    let unknown = PeerRecord { site: None, ..peer("b") };
    catalogue.put_peer(unknown.clone(), Some("pem")).unwrap();
    catalogue.learn_site(unknown, SiteId([7; 16])).unwrap();
    drop(catalogue);
    let catalogue = world.open();
    let found = catalogue.peers().next().unwrap();
    assert_eq!((found.site, found.own_ca), (Some(SiteId([7; 16])), true));
    assert_eq!(std::fs::read_to_string(catalogue.peer_ca(found).unwrap()).unwrap(), "pem");
}

#[test]
fn names_are_unique_and_changes_need_a_volume() {
    let (world, _, _) = World::filled();
    let mut catalogue = world.open();
    assert!(matches!(
        catalogue.reserve(id(3), &[name("pg")], Joined::New(&name("pg")), LIMIT),
        Err(CatalogueError::NameTaken(_))
    ));
    assert!(matches!(
        catalogue.reserve(id(1), &[name("new")], Joined::New(&name("new")), LIMIT),
        Err(CatalogueError::Known(_))
    ));
    catalogue.reserve(id(3), &[name("new")], Joined::New(&name("new")), LIMIT).unwrap();
    assert!(matches!(
        catalogue.reserve(id(4), &[name("new")], Joined::New(&name("new")), LIMIT),
        Err(CatalogueError::NameTaken(_))
    ));
    assert!(matches!(
        catalogue.reserve(id(3), &[name("other")], Joined::New(&name("other")), LIMIT),
        Err(CatalogueError::Known(_))
    ));
    catalogue.unreserve(id(3));
    catalogue.reserve(id(4), &[name("new")], Joined::New(&name("new")), LIMIT).unwrap();
    assert!(matches!(catalogue.set_attached(id(7), None), Err(CatalogueError::NoVolume(_))));
}

#[test]
fn trashed_purged_and_released_volumes_do_not_come_back() {
    let (world, _, _) = World::filled();
    let mut catalogue = world.open();
    world.add(&mut catalogue, "main", record(3, "image"));
    let dir = |number| world.volume_dir("main", id(number));
    let trashed = catalogue.trash_volume(id(1), 1234).unwrap().unwrap();
    assert!(trashed.join(VOLUME_FILE).exists() && !dir(1).exists());
    assert!(trashed.starts_with(world.dir.path().join("main/.trash")), "{trashed:?}");
    catalogue.purge_volume(id(2)).unwrap();
    assert!(!world.volume_dir("fast", id(2)).exists());
    std::fs::write(dir(3).join("base.img"), "image").unwrap();
    let released = catalogue.release_volume(id(3)).unwrap();
    assert_eq!(released, world.dir.path().join("main/image.released.img"));
    assert_eq!((std::fs::read_to_string(&released).unwrap().as_str(), dir(3).exists()), ("image", false));
    drop(catalogue);
    let catalogue = world.open();
    assert_eq!((content(&catalogue).0, catalogue.findings()), (vec![], [].as_slice()));
    drop(catalogue);
    // Taken out of the trash by hand it is a volume again.
    std::fs::rename(trashed, dir(1)).unwrap();
    assert_eq!(named(&world.open(), "pg").fault, None);
}

#[test]
fn a_released_image_is_not_overwritten_by_the_next_of_its_name() {
    let world = World::new();
    let mut catalogue = world.open();
    let mut release = |number| {
        world.add(&mut catalogue, "main", record(number, "pg"));
        std::fs::write(world.volume_dir("main", id(number)).join("base.img"), [number]).unwrap();
        catalogue.release_volume(id(number)).unwrap()
    };
    let (first, second) = (release(1), release(2));
    assert_eq!((std::fs::read(first).unwrap(), std::fs::read(second).unwrap()), (vec![1], vec![2]));
}

#[test]
fn removed_peers_are_gone_with_their_authority() {
    let (world, _, peers) = World::filled();
    let mut catalogue = world.open();
    let ca = catalogue.peer_ca(&peers[0]).unwrap();
    catalogue.remove_peer(&name("b")).unwrap();
    catalogue.remove_peer(&name("b")).unwrap();
    assert!(!ca.exists());
    drop(catalogue);
    let catalogue = world.open();
    assert_eq!((content(&catalogue).1.len(), catalogue.findings()), (1, [].as_slice()));
}

#[test]
fn a_peer_that_loses_its_own_authority_leaves_no_file_of_it() {
    let (world, _, peers) = World::filled();
    let mut catalogue = world.open();
    let ca = catalogue.peer_ca(&peers[0]).unwrap();
    let now = catalogue.put_peer(peer("b"), None).unwrap();
    assert_eq!((catalogue.peer_ca(&now), ca.exists()), (None, false));
}

#[cfg(feature = "rocksdb")]
#[test]
fn a_damaged_record_keeps_its_name_and_a_damaged_peer_is_told() {
    let (world, _, _) = World::filled();
    std::fs::write(world.volume_dir("main", id(1)).join(VOLUME_FILE), "\0\0\0").unwrap();
    std::fs::write(world.dir.path().join("state/peers/b.toml"), "rubbish").unwrap();
    for _ in 0..2 {
        let mut catalogue = world.open();
        let damaged = named(&catalogue, "pg");
        assert!(damaged.fault.as_ref().unwrap().contains(VOLUME_FILE), "{damaged:?}");
        assert_eq!(found(&catalogue), ["unreadable", "unreadable", "peer_lost"]);
        assert_eq!(content(&catalogue).1.len(), 1);
        let change = catalogue.set_attached(id(1), Some(FrontendKind::Nbd));
        assert!(matches!(change, Err(CatalogueError::NoVolume(_))), "it is left alone");
    }
    std::fs::remove_dir_all(world.index_dir()).unwrap();
    let catalogue = world.open();
    assert!(named(&catalogue, &id(1).to_string()).fault.is_some(), "without the index it goes by its identity");
}

#[test]
fn damaged_copied_and_rival_volumes_are_listed_with_the_reason_and_the_rest_serves() {
    let (world, _, peers) = World::filled();
    std::fs::create_dir(world.volume_dir("main", id(3))).unwrap();
    world.make("main", &CopyRecord { created: WallMs(99), ..record(5, "pg") });
    world.make("fast", &CopyRecord { created: WallMs(0), ..record(6, "logs") });
    world.make("main", &record(7, "twin"));
    world.make("fast", &record(7, "twin"));
    std::fs::write(world.dir.path().join("state/peers/x.toml"), "rubbish").unwrap();

    let catalogue = world.open();
    assert_eq!(content(&catalogue).1, peers);
    let fault = |text: &str| named(&catalogue, text).fault.clone().unwrap_or_default();
    assert_eq!(fault("pg"), "");
    assert_eq!((named(&catalogue, "logs").record.id, fault("logs")), (id(6), String::new()), "the older has the name");
    assert!(fault(&id(2).to_string()).contains("belongs to the older volume"));
    assert!(fault(&id(3).to_string()).contains("it is not there"));
    assert!(fault(&id(5).to_string()).contains("belongs to the older volume"));
    assert!(fault("twin").contains("the same volume"));
    let mut kinds = found(&catalogue);
    kinds.sort();
    let rivals = ["name_taken", "name_taken", "twice", "unreadable", "unreadable"];
    assert_eq!(
        kinds.iter().filter(|kind| **kind != "reindexed").collect::<Vec<_>>(),
        rivals.iter().collect::<Vec<_>>()
    );
}

#[test]
fn a_state_directory_has_one_agent() {
    let world = World::new();
    let first = world.open();
    assert!(matches!(world.try_open(), Err(CatalogueError::InUse { .. })));
    drop(first);
    world.open();
}

#[test]
fn what_was_found_is_counted() {
    let (world, _, _) = World::filled();
    std::fs::create_dir(world.volume_dir("main", id(3))).unwrap();
    let _ = std::fs::remove_dir_all(world.index_dir()); // not there without RocksDB
    let telemetry = crate::telemetry::Telemetry::new();
    let state = world.dir.path().join("state");
    drop(Catalogue::open(&state, &world.pools(), telemetry.catalogue.clone()).unwrap());
    let text = telemetry.counters().unwrap();
    let rebuilds = u8::from(cfg!(feature = "rocksdb"));
    for line in [
        format!("tidemark_catalogue_rebuilds_total{{reason=\"missing\"}} {rebuilds}"),
        "tidemark_catalogue_findings{kind=\"unreadable\"} 1".to_owned(),
        "tidemark_catalogue_findings{kind=\"missing\"} 0".to_owned(),
        "tidemark_catalogue_write_errors_total 0".to_owned(),
    ] {
        assert!(text.contains(&line), "{line} is not in {text}");
    }
}

/// A group "db" of the volumes 1 and 2, the second one joined later.
fn group(world: &World, catalogue: &mut Catalogue) {
    let record = CopyRecord::of_one(name("db"), volume(1, "data"));
    catalogue.reserve(id(1), &[name("data")], Joined::New(&name("db")), LIMIT).unwrap();
    let dir = world.make("main", &record);
    catalogue.enlist(&name("main"), &dir, record).unwrap();
    catalogue.reserve(id(2), &[name("wal")], Joined::Known(id(1)), LIMIT).unwrap();
    catalogue.enlist_volume(id(1), VolumeRecord { pending: true, ..volume(2, "wal") }).unwrap();
}

#[test]
fn a_group_and_its_volumes_survive_a_restart_and_the_loss_of_the_index() {
    let world = World::new();
    let mut catalogue = world.open();
    group(&world, &mut catalogue);
    catalogue.settle_volume(id(2)).unwrap();
    catalogue.set_attached(id(2), Some(FrontendKind::Nbd)).unwrap();
    let before = content(&catalogue);
    drop(catalogue);
    assert_eq!(content(&world.open()), before);
    let _ = std::fs::remove_dir_all(world.index_dir());
    let mut catalogue = world.open();
    assert_eq!(content(&catalogue), before);
    let attached = |record: &CopyRecord| record.volumes.iter().map(|volume| volume.attached).collect::<Vec<_>>();
    assert_eq!(attached(&named(&catalogue, "db").record), [None, Some(FrontendKind::Nbd)]);
    catalogue.drop_volume(id(1), id(1)).unwrap();
    drop(catalogue);
    let catalogue = world.open();
    let record = &named(&catalogue, "db").record;
    assert_eq!((record.id, &record.volumes), (id(1), &vec![before.0[0].record.volumes[1].clone()]));
}

#[test]
fn names_are_unique_over_volumes_and_groups() {
    let world = World::new();
    let mut catalogue = world.open();
    group(&world, &mut catalogue);
    for taken in ["data", "wal", "db"] {
        let new = catalogue.reserve(id(3), &[name(taken)], Joined::New(&name("other")), LIMIT);
        assert!(matches!(new, Err(CatalogueError::NameTaken(_))), "{taken}");
        let group = catalogue.reserve(id(3), &[name("other")], Joined::New(&name(taken)), LIMIT);
        assert!(matches!(group, Err(CatalogueError::NameTaken(_))), "{taken}");
    }
    let twice = catalogue.reserve(id(3), &[name("wal")], Joined::Known(id(1)), LIMIT);
    assert!(matches!(twice, Err(CatalogueError::NameTaken(_))));
    let known = catalogue.reserve(id(2), &[name("new")], Joined::Known(id(1)), LIMIT);
    assert!(matches!(known, Err(CatalogueError::Known(_))));
    let full = catalogue.reserve(id(3), &[name("new")], Joined::Known(id(1)), 2);
    assert!(matches!(full, Err(CatalogueError::TooMany { limit: 2 })), "each volume counts");
    catalogue.reserve(id(3), &[name("db")], Joined::Known(id(1)), LIMIT).unwrap();
    catalogue.unreserve(id(3));
    drop(catalogue);
    world.make("fast", &CopyRecord { created: WallMs(99), ..record(5, "wal") });
    let catalogue = world.open();
    assert_eq!(found(&catalogue), ["name_taken"]);
    assert!(named(&catalogue, "db").fault.is_none());
}
