//! The PKI end to end, in a directory, with the clock as an argument.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tempfile::TempDir;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::ca::{Authority, Site};
use super::certificate::Certificate;
use super::identity::Identity;
use super::leaf::{self, Leaf, Node};
use super::name::Name;
use super::renew::Renewal;
use super::store::Existing;
use super::validity::Validity;
use super::verify::Check;
use super::*;

struct World {
    dir: TempDir,
    now: Timestamp,
}

impl World {
    fn new() -> Self {
        let now = "2030-06-01T00:00:00Z".parse().expect("a moment");
        Self { dir: tempfile::tempdir().expect("a directory"), now }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn ca(&self, name: &str) -> Authority {
        let site = Site::random(Name::parse(name).expect("a valid name")).expect("random");
        let validity = Validity::from_now(self.now, 3650).expect("valid");
        Authority::create(&self.path(name), &site, validity, Existing::Keep).expect("a CA")
    }

    fn node(&self, ca: &Authority, name: &str, days: u32) -> (Node, PathBuf) {
        let node = Node::random(Name::parse(name).expect("a valid name")).expect("random");
        let ips = ["127.0.0.1", "::1"].map(|ip| ip.parse::<IpAddr>().expect("an address"));
        let leaf = Leaf::node(&ca.site, &node, &["n1.example.org".to_owned()], &ips).expect("a leaf");
        let validity = Validity::from_now(self.now, days).expect("valid");
        let out = self.path(name);
        leaf::issue_node(ca, &node, &leaf, (validity, self.now), (&out, Existing::Keep)).expect("issued");
        (node, out)
    }

    fn after_days(&self, days: i64) -> Timestamp {
        self.now + SignedDuration::from_hours(24 * days)
    }
}

fn check(dir: &Path) -> Check {
    Check { cert: dir.join("node.crt"), ca: dir.join("ca.crt"), key: Some(dir.join("node.key")), host: None }
}

fn renewal(dir: &Path) -> Renewal {
    Renewal { cert: dir.join("node.crt"), key: None, days: None, rekey: false, if_within: None }
}

fn problems(outcome: Result<Certificate, PkiError>) -> String {
    match outcome {
        Err(PkiError::Unverified { problems, .. }) => problems.join("; "),
        other => panic!("no problems: {other:?}"),
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("there").permissions().mode() & 0o777
}

#[test]
fn a_node_certificate_serves_and_calls_and_names_its_site_and_node() {
    let world = World::new();
    let ca = world.ca("site-a");
    let (node, dir) = world.node(&ca, "n1", 365);

    let certificate = Certificate::read(&dir.join("node.crt")).expect("readable");
    assert_eq!(certificate.identity, Some(Identity::Node(ca.site.site_id, node.node_id)));
    let uri = format!("spiffe://tidemark/site/{}/node/{}", ca.site.site_id, node.node_id);
    assert_eq!(certificate.identity.as_ref().map(ToString::to_string), Some(uri));
    assert!(certificate.server_auth && certificate.client_auth && !certificate.is_ca);
    assert_eq!(certificate.dns, ["n1.example.org"]);
    assert_eq!(certificate.ips.len(), 2);
    assert_eq!(certificate.issuer_key_id, ca.certificate.key_id);
    assert_eq!(certificate.validity.days_left(world.now), 365);

    for host in ["n1.example.org", "127.0.0.1", "::1"] {
        Check { host: Some(host.to_owned()), ..check(&dir) }.run(world.now).expect(host);
    }
    let wrong = Check { host: Some("other.example.org".to_owned()), ..check(&dir) };
    assert!(problems(wrong.run(world.now)).contains("other.example.org"));
}

#[test]
fn the_ca_is_constrained_and_carries_the_sites_name_and_id() {
    let world = World::new();
    let ca = world.ca("site-a");
    assert_eq!(ca.certificate.identity, Some(Identity::Site(ca.site.site_id)));
    assert_eq!(ca.certificate.common_name, format!("site-a {}", ca.site.site_id));

    let (_, x509) = X509Certificate::from_der(&ca.certificate.der).expect("valid DER");
    let constraints = x509.basic_constraints().expect("once").expect("there").value;
    assert!(constraints.ca && constraints.path_len_constraint == Some(0));
    let usage = x509.key_usage().expect("once").expect("there").value;
    assert!(usage.key_cert_sign() && !usage.digital_signature());
    assert_eq!(x509.subject(), x509.issuer());
}

#[test]
fn keys_are_for_their_owner_and_certificates_for_all() {
    let world = World::new();
    let ca = world.ca("site-a");
    let (_, dir) = world.node(&ca, "n1", 365);
    for secret in [ca.dir.join("ca.key"), dir.join("node.key")] {
        assert_eq!(mode(&secret), 0o600, "{}", secret.display());
    }
    for public in [ca.dir.join("ca.crt"), ca.dir.join("site.toml"), dir.join("node.crt"), dir.join("node.toml")] {
        assert_eq!(mode(&public), 0o644, "{}", public.display());
    }
    assert!(dir.join("ca.crt").exists() && dir.join("site.toml").exists());
    assert_eq!(Site::read(&dir).expect("readable"), ca.site);
}

#[test]
fn nothing_is_overwritten_unless_forced() {
    let world = World::new();
    let ca = world.ca("site-a");
    let again = Authority::create(&ca.dir, &ca.site, ca.certificate.validity, Existing::Keep);
    assert!(matches!(again, Err(PkiError::Exists { .. })));
    assert_eq!(Authority::load(&ca.dir).expect("unharmed").certificate, ca.certificate);

    let forced = Authority::create(&ca.dir, &ca.site, ca.certificate.validity, Existing::Replace).expect("forced");
    assert_ne!(forced.certificate.serial, ca.certificate.serial);
}

#[test]
fn a_renewed_certificate_keeps_identity_names_and_key() {
    let world = World::new();
    let ca = world.ca("site-a");
    let (_, dir) = world.node(&ca, "n1", 365);
    let old = Certificate::read(&dir.join("node.crt")).expect("readable");
    let key = fs::read(dir.join("node.key")).expect("readable");

    let later = world.after_days(400);
    assert!(problems(check(&dir).run(later)).contains("it is expired"));
    let renewed = renewal(&dir).run(&ca, later).expect("renewed");
    assert!(renewed.renewed && !renewed.rekeyed);
    let new = renewed.certificate;
    assert_eq!((&new.identity, &new.dns, &new.ips, &new.spki), (&old.identity, &old.dns, &old.ips, &old.spki));
    assert_eq!(new.common_name, old.common_name);
    assert_ne!(new.serial, old.serial);
    assert_eq!(new.validity.days_left(later), 365, "as long as the old one");
    assert_eq!(fs::read(dir.join("node.key")).expect("readable"), key);
    check(&dir).run(later).expect("valid again");
}

#[test]
fn a_renewal_waits_until_the_end_is_near() {
    let world = World::new();
    let ca = world.ca("site-a");
    let (_, dir) = world.node(&ca, "n1", 365);
    let timer = Renewal { if_within: Some(Duration::from_secs(30 * 86_400)), ..renewal(&dir) };
    let before = fs::read(dir.join("node.crt")).expect("readable");
    assert!(!timer.run(&ca, world.after_days(334)).expect("looked at").renewed);
    assert_eq!(fs::read(dir.join("node.crt")).expect("readable"), before);
    assert!(timer.run(&ca, world.after_days(336)).expect("renewed").renewed);
    assert!(!timer.run(&ca, world.after_days(337)).expect("looked at").renewed);
}

#[test]
fn a_rekey_that_crashed_between_its_two_files_is_mended_by_the_next_renewal() {
    let world = World::new();
    let ca = world.ca("site-a");
    let (_, dir) = world.node(&ca, "n1", 365);
    let old_cert = fs::read(dir.join("node.crt")).expect("readable");
    assert!(Renewal { rekey: true, ..renewal(&dir) }.run(&ca, world.now).expect("renewed").rekeyed);
    check(&dir).run(world.now).expect("a pair");

    fs::write(dir.join("node.crt"), old_cert).expect("as after the crash");
    assert!(problems(check(&dir).run(world.now)).contains("is not its key"));
    renewal(&dir).run(&ca, world.now).expect("renewed");
    check(&dir).run(world.now).expect("a pair again");
}

#[test]
fn the_ca_can_renew_without_the_nodes_key() {
    let world = World::new();
    let ca = world.ca("site-a");
    let (_, dir) = world.node(&ca, "n1", 365);
    let away = world.path("away.key");
    fs::rename(dir.join("node.key"), &away).expect("moved");
    renewal(&dir).run(&ca, world.after_days(100)).expect("renewed");
    Check { key: Some(away), ..check(&dir) }.run(world.after_days(100)).expect("still a pair");
}

#[test]
fn a_renewed_ca_keeps_what_it_signed_valid() {
    let world = World::new();
    let ca = world.ca("site-a");
    let (_, dir) = world.node(&ca, "n1", 365);
    let renew_ca = Renewal { cert: ca.dir.join("ca.crt"), ..renewal(&dir) };
    renew_ca.run(&ca, world.after_days(30)).expect("renewed");
    let renewed = Authority::load(&ca.dir).expect("loads");
    assert_ne!(renewed.certificate.serial, ca.certificate.serial);
    Check { ca: ca.dir.join("ca.crt"), ..check(&dir) }.run(world.after_days(30)).expect("signed by the same CA");
    assert!(Renewal { rekey: true, ..renew_ca }.run(&ca, world.now).is_err(), "a CA's key never changes");
}

#[test]
fn a_leaf_does_not_outlive_its_ca_and_an_expired_ca_signs_nothing() {
    let world = World::new();
    let ca = world.ca("site-a");
    let (_, dir) = world.node(&ca, "n1", 36_500);
    let certificate = Certificate::read(&dir.join("node.crt")).expect("readable");
    assert_eq!(certificate.validity.not_after, ca.certificate.validity.not_after);

    let refused = renewal(&dir).run(&ca, world.after_days(3651));
    assert!(matches!(refused, Err(PkiError::CaExpired { .. })));
    assert!(problems(check(&dir).run(world.after_days(3651))).contains("its CA is expired"));
}

#[test]
fn another_sites_ca_neither_verifies_nor_renews() {
    let world = World::new();
    let (ca_a, ca_b) = (world.ca("site-a"), world.ca("site-b"));
    let (_, dir) = world.node(&ca_a, "n1", 365);
    let other = Check { ca: ca_b.dir.join("ca.crt"), ..check(&dir) };
    let found = problems(other.run(world.now));
    assert!(found.contains("is not the CA of site") && found.contains("this CA did not sign it"), "{found}");
    assert!(matches!(renewal(&dir).run(&ca_b, world.now), Err(PkiError::Mismatch { .. })));
}

#[test]
fn an_admin_may_call_and_not_serve() {
    let world = World::new();
    let ca = world.ca("site-a");
    let name = Name::parse("alice").expect("a valid name");
    let validity = Validity::from_now(world.now, 90).expect("valid");
    let out = world.path("alice");
    leaf::issue_admin(&ca, &name, (validity, world.now), (&out, Existing::Keep)).expect("issued");
    let check = Check { cert: out.join("alice.crt"), key: Some(out.join("alice.key")), ..check(&out) };
    let certificate = check.run(world.now).expect("valid");
    assert_eq!(certificate.identity, Some(Identity::Admin(ca.site.site_id, name)));
    assert!(certificate.client_auth && !certificate.server_auth);

    let reserved = Name::parse("ca").expect("a valid name");
    let refused = leaf::issue_admin(&ca, &reserved, (validity, world.now), (&ca.dir, Existing::Replace));
    assert!(matches!(refused, Err(PkiError::Invalid { .. })), "the CA would be overwritten");
}

#[test]
fn an_exposed_key_is_a_problem() {
    let world = World::new();
    let (_, dir) = world.node(&world.ca("site-a"), "n1", 365);
    fs::set_permissions(dir.join("node.key"), fs::Permissions::from_mode(0o640)).expect("changed");
    assert!(problems(check(&dir).run(world.now)).contains("others can read"));
}

#[test]
fn a_directory_keeps_the_ca_it_trusts() {
    let world = World::new();
    let (ca_a, ca_b) = (world.ca("site-a"), world.ca("site-b"));
    let (node, dir) = world.node(&ca_a, "n1", 365);
    for file in ["node.crt", "node.key", "node.toml", "site.toml"] {
        fs::remove_file(dir.join(file)).expect("removed");
    }
    let leaf = Leaf::node(&ca_b.site, &node, &[], &[]).expect("a leaf");
    let validity = Validity::from_now(world.now, 1).expect("valid");
    let refused = leaf::issue_node(&ca_b, &node, &leaf, (validity, world.now), (&dir, Existing::Keep));
    assert!(matches!(refused, Err(PkiError::Mismatch { .. })));
}

#[test]
fn a_mixed_up_ca_directory_is_refused() {
    let world = World::new();
    let (ca_a, ca_b) = (world.ca("site-a"), world.ca("site-b"));
    fs::copy(ca_b.dir.join("ca.key"), ca_a.dir.join("ca.key")).expect("copied");
    assert!(matches!(Authority::load(&ca_a.dir), Err(PkiError::Mismatch { .. })));
    fs::write(ca_b.dir.join("ca.crt"), "no certificate").expect("written");
    assert!(matches!(Authority::load(&ca_b.dir), Err(PkiError::Malformed { .. })));
}
