//! The generated code in git is what the `.proto` files say.

mod codegen;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(&path).unwrap()))
        .collect()
}

#[test]
fn regenerated_code_equals_the_code_in_git() {
    let fresh = tempfile::tempdir().unwrap();
    codegen::generate(fresh.path()).unwrap();
    let (fresh, kept) = (contents(fresh.path()), contents(&codegen::checked_in()));
    assert_eq!(fresh.keys().collect::<Vec<_>>(), kept.keys().collect::<Vec<_>>(), "run hack/gen-proto");
    for (name, bytes) in &fresh {
        assert!(kept[name] == *bytes, "{name} is out of date: run hack/gen-proto");
    }
}

#[test]
fn the_descriptor_set_names_both_packages() {
    use prost::Message;
    let set = prost_types::FileDescriptorSet::decode(tidemark_proto::FILE_DESCRIPTOR_SET).unwrap();
    let packages: Vec<_> = set.file.iter().map(|file| file.package()).collect();
    assert!(packages.contains(&"tidemark.peer.v1") && packages.contains(&"tidemark.admin.v1"), "{packages:?}");
}
