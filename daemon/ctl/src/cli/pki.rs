//! `tidemark pki`.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use jiff::Timestamp;
use tidemark_core::types::{NodeId, SiteId};

use crate::pki::name::Name;
use crate::units;

/// Make, renew and check the keys and certificates of a site.
#[derive(Subcommand, Debug)]
pub enum Pki {
    /// Make the CA of a site
    ///
    /// Writes ca.crt, ca.key (mode 0600) and site.toml. Peer sites need ca.crt, nobody else needs ca.key: keep it offline
    /// when you can.
    #[command(after_long_help = "Examples:\n  tidemark pki init-ca --dir /etc/tidemark/ca --site-name berlin")]
    InitCa(InitCa),
    /// Make the certificate of a node
    ///
    /// Writes node.crt, node.key (mode 0600), node.toml, and copies of ca.crt and site.toml. The certificate serves and
    /// calls; its identity is spiffe://tidemark/site/SITE/node/NODE. The names and addresses are those by which peers and
    /// admins dial the node.
    #[command(
        after_long_help = "Examples:\n  tidemark pki issue --ca /etc/tidemark/ca --node-name n1 --out /etc/tidemark/pki \\\n      --dns n1.example.org --ip 10.0.0.1"
    )]
    Issue(Issue),
    /// Make the certificate of an admin, for the admin API over the network
    ///
    /// Writes NAME.crt, NAME.key (mode 0600) and a copy of ca.crt.
    #[command(
        after_long_help = "Examples:\n  tidemark pki issue-client --ca /etc/tidemark/ca --name alice --out ~/.tidemark"
    )]
    IssueClient(IssueClient),
    /// Renew a certificate: same identity and names, later end
    ///
    /// The file is replaced in one step; running agents take it without a restart. The key stays unless --rekey is given.
    /// Works for ca.crt too: what the CA has signed stays valid, and peers need the new ca.crt before the old one ends.
    /// Meant for a timer: with --if-within it does nothing until the end is near.
    #[command(
        after_long_help = "Examples:\n  tidemark pki renew /etc/tidemark/pki/node.crt --ca /etc/tidemark/ca --if-within 30d"
    )]
    Renew(Renew),
    /// Show what a certificate says
    #[command(after_long_help = "Examples:\n  tidemark pki show node.crt -o json")]
    Show(Show),
    /// Check that an agent would take a certificate
    ///
    /// Checks the signature, the dates, the identity, the purposes, that the CA is the same site's, and the key. Exits 1
    /// and names every problem when it would not.
    #[command(after_long_help = "Examples:\n  tidemark pki verify node.crt --host n1.example.org")]
    Verify(Verify),
}

/// How long a new certificate lives.
#[derive(Args, Clone, Debug)]
pub struct Start {
    /// First moment of validity, for example 2026-01-31T12:00:00Z; by default now, less five minutes for slow clocks
    #[arg(long, value_name = "TIME")]
    pub not_before: Option<Timestamp>,
}

/// `pki init-ca`.
#[derive(Args, Debug)]
pub struct InitCa {
    /// Directory of the CA; made when it is not there
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// Name of the site, for people
    #[arg(long, value_name = "NAME", value_parser = Name::parse)]
    pub site_name: Name,
    /// Id of the site; by default that of site.toml in DIR, else a new one
    #[arg(long, value_name = "UUID", value_parser = site_id)]
    pub site_id: Option<SiteId>,
    /// Life of the CA
    #[arg(long, value_name = "N", default_value_t = 3650)]
    pub days: u32,
    /// Start of its life.
    #[command(flatten)]
    pub start: Start,
    /// Replace what lies there: everything that the old CA signed becomes worthless
    #[arg(long)]
    pub force: bool,
}

/// `pki issue`.
#[derive(Args, Debug)]
pub struct Issue {
    /// Directory of the CA
    #[arg(long, value_name = "DIR")]
    pub ca: PathBuf,
    /// Name of the node, for people
    #[arg(long, value_name = "NAME", value_parser = Name::parse)]
    pub node_name: Name,
    /// Id of the node; by default that of node.toml in DIR when the name is the same, else a new one
    #[arg(long, value_name = "UUID", value_parser = node_id)]
    pub node_id: Option<NodeId>,
    /// Directory of the node's files; made when it is not there
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Host name of the node; may be repeated
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub dns: Vec<String>,
    /// Address of the node; may be repeated
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
    pub ip: Vec<IpAddr>,
    /// Life of the certificate; it never outlives the CA
    #[arg(long, value_name = "N", default_value_t = 365)]
    pub days: u32,
    /// Start of its life.
    #[command(flatten)]
    pub start: Start,
    /// Replace what lies there
    #[arg(long)]
    pub force: bool,
}

/// `pki issue-client`.
#[derive(Args, Debug)]
pub struct IssueClient {
    /// Directory of the CA
    #[arg(long, value_name = "DIR")]
    pub ca: PathBuf,
    /// Name of the admin; the agents write it to their logs
    #[arg(long, value_name = "NAME", value_parser = Name::parse)]
    pub name: Name,
    /// Directory of the files; made when it is not there
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Life of the certificate; it never outlives the CA
    #[arg(long, value_name = "N", default_value_t = 90)]
    pub days: u32,
    /// Start of its life.
    #[command(flatten)]
    pub start: Start,
    /// Replace what lies there
    #[arg(long)]
    pub force: bool,
}

/// `pki renew`.
#[derive(Args, Debug)]
pub struct Renew {
    /// The certificate
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Directory of the CA
    #[arg(long, value_name = "DIR")]
    pub ca: PathBuf,
    /// Private key of the certificate; by default FILE with .key at its end
    #[arg(long, value_name = "FILE")]
    pub key: Option<PathBuf>,
    /// New life; by default as long as the old one was
    #[arg(long, value_name = "N")]
    pub days: Option<u32>,
    /// Make a new key too
    #[arg(long)]
    pub rekey: bool,
    /// Do nothing while the certificate has longer than this to live
    #[arg(long, value_name = "SPAN", value_parser = units::parse_span)]
    pub if_within: Option<Duration>,
}

/// `pki show`.
#[derive(Args, Debug)]
pub struct Show {
    /// The certificate
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
}

/// `pki verify`.
#[derive(Args, Debug)]
pub struct Verify {
    /// The certificate
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Certificate of the CA; by default ca.crt beside FILE
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Private key; by default FILE with .key at its end, when that is there
    #[arg(long, value_name = "FILE")]
    pub key: Option<PathBuf>,
    /// Host name or address that the certificate must be good for
    #[arg(long, value_name = "HOST")]
    pub host: Option<String>,
}

fn site_id(text: &str) -> Result<SiteId, String> {
    SiteId::parse(text).filter(|id| !id.is_nil()).ok_or_else(|| "is no UUID".to_owned())
}

fn node_id(text: &str) -> Result<NodeId, String> {
    NodeId::parse(text).filter(|id| !id.is_nil()).ok_or_else(|| "is no UUID".to_owned())
}
