//! `tidemark pki`: thin, everything is in [`crate::pki`].

use jiff::Timestamp;
use serde::Serialize;

use crate::cli::pki::{InitCa, Issue, IssueClient, Pki, Renew, Show, Start, Verify};
use crate::failure::Failure;
use crate::output::{self, Paint, Printer, Report};
use crate::pki::ca::{Authority, CA_CERT, SITE_FILE, Site};
use crate::pki::certificate::Certificate;
use crate::pki::identity::Identity;
use crate::pki::leaf::{self, Leaf, NODE_FILE, Node};
use crate::pki::renew::{Renewal, key_beside};
use crate::pki::store::Existing;
use crate::pki::validity::Validity;
use crate::pki::verify::Check;
use crate::pki::{PkiError, name::Name};

pub(super) fn run(command: Pki, printer: &Printer) -> Result<(), Failure> {
    let now = Timestamp::now();
    let report = match command {
        Pki::InitCa(args) => CertificateReport::of(&init_ca(&args, now)?.certificate, now),
        Pki::Issue(args) => CertificateReport::of(&issue(&args, now)?, now),
        Pki::IssueClient(args) => CertificateReport::of(&issue_client(&args, now)?, now),
        Pki::Renew(args) => renew(args, now)?,
        Pki::Show(Show { file }) => CertificateReport::of(&Certificate::read(&file)?, now),
        Pki::Verify(args) => verify(args, now)?,
    };
    printer.print(&report)
}

fn init_ca(args: &InitCa, now: Timestamp) -> Result<Authority, PkiError> {
    let validity = validity(now, args.days, &args.start)?;
    let site = Site { site_id: site_id(args)?, site_name: args.site_name.clone() };
    Authority::create(&args.dir, &site, validity, Existing::from_force(args.force))
}

/// A site that gets a new CA stays the site that it is: its id is in every volume's superblock.
fn site_id(args: &InitCa) -> Result<tidemark_core::types::SiteId, PkiError> {
    match args.site_id {
        Some(id) => Ok(id),
        None if args.dir.join(SITE_FILE).exists() => Ok(Site::read(&args.dir)?.site_id),
        None => Ok(Site::random(args.site_name.clone())?.site_id),
    }
}

fn issue(args: &Issue, now: Timestamp) -> Result<Certificate, PkiError> {
    let ca = Authority::load(&args.ca)?;
    let node = node(args)?;
    let leaf = Leaf::node(&ca.site, &node, &args.dns, &args.ip)?;
    let validity = validity(now, args.days, &args.start)?;
    leaf::issue_node(&ca, &node, &leaf, (validity, now), (&args.out, Existing::from_force(args.force)))
}

fn node(args: &Issue) -> Result<Node, PkiError> {
    let name: &Name = &args.node_name;
    if let Some(node_id) = args.node_id {
        return Ok(Node { node_id, node_name: name.clone() });
    }
    if args.out.join(NODE_FILE).exists() {
        let old = Node::read(&args.out)?;
        if old.node_name == *name {
            return Ok(old);
        }
    }
    Node::random(name.clone())
}

fn issue_client(args: &IssueClient, now: Timestamp) -> Result<Certificate, PkiError> {
    let ca = Authority::load(&args.ca)?;
    let validity = validity(now, args.days, &args.start)?;
    leaf::issue_admin(&ca, &args.name, (validity, now), (&args.out, Existing::from_force(args.force)))
}

fn renew(args: Renew, now: Timestamp) -> Result<CertificateReport, PkiError> {
    let ca = Authority::load(&args.ca)?;
    let Renew { file: cert, key, days, rekey, if_within, .. } = args;
    let renewed = Renewal { cert, key, days, rekey, if_within }.run(&ca, now)?;
    let mut report = CertificateReport::of(&renewed.certificate, now);
    report.renewed = Some(renewed.renewed);
    report.rekeyed = Some(renewed.rekeyed);
    Ok(report)
}

fn verify(args: Verify, now: Timestamp) -> Result<CertificateReport, PkiError> {
    let ca = args.ca.unwrap_or_else(|| args.file.with_file_name(CA_CERT));
    let beside = key_beside(&args.file);
    let key = args.key.or_else(|| beside.exists().then_some(beside));
    let certificate = Check { cert: args.file, ca, key, host: args.host }.run(now)?;
    let mut report = CertificateReport::of(&certificate, now);
    report.verified = Some(true);
    Ok(report)
}

fn validity(now: Timestamp, days: u32, start: &Start) -> Result<Validity, PkiError> {
    match start.not_before {
        Some(moment) => Validity::starting(moment, days),
        None => Validity::from_now(now, days),
    }
}

/// What every verb of `pki` prints.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CertificateReport {
    file: String,
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    identity: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    site_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_id: Option<String>,
    name: String,
    site_name: String,
    issuer: String,
    dns: Vec<String>,
    ips: Vec<String>,
    not_before: String,
    not_after: String,
    days_left: i64,
    state: &'static str,
    serial: String,
    key_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    renewed: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rekeyed: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    verified: Option<bool>,
}

impl CertificateReport {
    fn of(certificate: &Certificate, now: Timestamp) -> Self {
        let identity = certificate.identity.as_ref();
        Self {
            file: certificate.path.display().to_string(),
            kind: identity.map_or("other", Identity::kind),
            identity: identity.map(ToString::to_string),
            site_id: identity.map(|identity| identity.site().to_string()),
            node_id: match identity {
                Some(Identity::Node(_, node)) => Some(node.to_string()),
                _ => None,
            },
            name: certificate.common_name.clone(),
            site_name: certificate.organisation.clone(),
            issuer: certificate.issuer.clone(),
            dns: certificate.dns.clone(),
            ips: certificate.ips.iter().map(ToString::to_string).collect(),
            not_before: certificate.validity.not_before.to_string(),
            not_after: certificate.validity.not_after.to_string(),
            days_left: certificate.validity.days_left(now),
            state: certificate.validity.state(now),
            serial: certificate.serial.clone(),
            key_id: certificate.key_id.clone(),
            renewed: None,
            rekeyed: None,
            verified: None,
        }
    }
}

impl Report for CertificateReport {
    fn table(&self, _: Paint) -> String {
        let yes_no = |flag: Option<bool>| flag.map_or("", |flag| if flag { "yes" } else { "no" }).to_owned();
        output::fields(&[
            ("file", self.file.clone()),
            ("kind", self.kind.to_owned()),
            ("identity", self.identity.clone().unwrap_or_default()),
            ("name", self.name.clone()),
            ("site", self.site_name.clone()),
            ("issuer", self.issuer.clone()),
            ("dns", self.dns.join(", ")),
            ("ips", self.ips.join(", ")),
            ("valid", format!("{} to {}", self.not_before, self.not_after)),
            ("state", format!("{}, {} days left", self.state, self.days_left)),
            ("serial", self.serial.clone()),
            ("key id", self.key_id.clone()),
            ("renewed", yes_no(self.renewed)),
            ("new key", yes_no(self.rekeyed)),
            ("verified", yes_no(self.verified)),
        ])
    }
}
