//! NBD over TCP of a real agent: who shows a certificate of the right authority is served, nobody else.

use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use tidemark_tests::agents::{Plan, Programs, Site, TwoSites};
use tidemark_tests::process;

const SIZE: usize = 4 << 20;
/// The agents have other ports below.
const PORT: u16 = 9;

/// An agent that serves an attached volume on TCP, and where.
fn serving() -> Result<(TwoSites, SocketAddr)> {
    let mut sites = TwoSites::new(&Plan { name: "nbd-tls".to_owned(), ..Plan::default() })?;
    let address = SocketAddr::new(sites.a.address().ip(), sites.a.address().port() + PORT);
    let file = |name: &str| sites.a.pki().join(name).display().to_string();
    let (cert, key, ca) = (file("node.crt"), file("node.key"), file("ca.crt"));
    let mut config = fs::OpenOptions::new().append(true).open(sites.a.config_path())?;
    writeln!(config, "\n[nbd]\nlisten = \"{address}\"")?;
    writeln!(config, "[nbd.tls]\ncert = \"{cert}\"\nkey = \"{key}\"\nca = \"{ca}\"")?;
    sites.a.start(&sites.stage)?;
    let size = SIZE.to_string();
    sites.a.cli().json(&["volume", "create", "pg", "--size", &size, "--log-size", "16Mi", "--frontend", "nbd"])?;
    sites.a.cli().attach("pg", "nbd")?;
    Ok((sites, address))
}

/// A directory as libnbd wants it: `authority` is trusted, and a certificate of `issuer` is shown, if any.
fn client(sites: &TwoSites, name: &str, authority: &Site, issuer: Option<(&Site, &[&str])>) -> Result<PathBuf> {
    let dir = sites.stage.subdir(name)?;
    fs::copy(authority.ca().join("ca.crt"), dir.join("ca-cert.pem"))?;
    let Some((issuer, options)) = issuer else { return Ok(dir) };
    let (ca, made) = (issuer.ca(), dir.join("made"));
    let mut issue = Command::new(Programs::find()?.cli);
    issue.args(["pki", "issue", "--node-name", name, "--ca"]).arg(ca).arg("--out").arg(&made).args(options);
    process::checked(&mut issue)?;
    fs::copy(made.join("node.crt"), dir.join("client-cert.pem"))?;
    fs::copy(made.join("node.key"), dir.join("client-key.pem"))?;
    Ok(dir)
}

fn uri(address: SocketAddr, certificates: &Path) -> String {
    format!("nbds://{address}/pg?tls-certificates={}", certificates.display())
}

/// What nbdinfo says, or why it is refused.
fn info(uri: &str) -> Result<serde_json::Value> {
    let text = process::checked(Command::new("nbdinfo").args(["--json", uri]))?;
    serde_json::from_str(&text).with_context(|| text.clone())
}

fn tls_failures(site: &Site) -> Result<u64> {
    let metrics = site.metrics()?;
    let line = metrics.lines().find_map(|line| line.strip_prefix("tidemark_nbd_tls_failures_total "));
    Ok(line.context("the metric")?.trim().parse()?)
}

#[test]
fn only_a_certificate_of_the_right_authority_is_served() -> Result<()> {
    let (sites, address) = serving()?;
    let (a, b) = (&sites.a, &sites.b);
    let right = client(&sites, "right", a, Some((a, &[])))?;
    let shown = info(&uri(address, &right))?;
    ensure!(shown.pointer("/TLS").and_then(serde_json::Value::as_bool) == Some(true), "{shown}");
    ensure!(shown.to_string().contains(&format!("\"export-size\":{SIZE}")), "{shown}");

    let expired: &[&str] = &["--not-before", "2024-01-31T12:00:00Z", "--days", "30"];
    let refused = [("stranger", Some((b, [].as_slice()))), ("nameless", None), ("expired", Some((a, expired)))];
    for (number, (name, issuer)) in (1..).zip(refused) {
        let answer = info(&uri(address, &client(&sites, name, a, issuer)?));
        ensure!(answer.is_err(), "{name} is served: {answer:?}");
        ensure!(tls_failures(a)? == number, "{name} is not counted: {} failures", tls_failures(a)?);
    }
    let distrustful = client(&sites, "distrustful", b, Some((a, &[])))?;
    ensure!(info(&uri(address, &distrustful)).is_err(), "a client speaks to a server of an unknown authority");
    ensure!(info(&format!("nbd://{address}/pg")).is_err(), "plain text is served");
    info(&uri(address, &right)).context("the right one, after all the others")?;
    Ok(())
}

#[test]
fn what_is_written_over_tls_is_read_over_tls() -> Result<()> {
    let (sites, address) = serving()?;
    let uri = uri(address, &client(&sites, "right", &sites.a, Some((&sites.a, &[])))?);
    let [from, to] = ["from", "to"].map(|name| sites.stage.dir().join(name));
    let content: Vec<u8> = (0..SIZE as u32).map(|at| (at / 512 * 7 + at % 251) as u8).collect();
    fs::write(&from, &content)?;
    process::checked(Command::new("nbdcopy").arg("--flush").arg(&from).arg(&uri))?;
    process::checked(Command::new("nbdcopy").arg(&uri).arg(&to))?;
    ensure!(fs::read(&to)? == content, "another content");
    Ok(())
}
