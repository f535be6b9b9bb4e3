//! A network of its own for two sites and their witness: a namespace each, joined by a bridge in a fourth, and partitions by nftables.
//!
//! What is cut is dropped without a word, as a network does it: nobody is told that nobody listens. The host's own network is not
//! touched, and every network has the same addresses. Namespaces are written down in the stage's directory, so that they are
//! taken down whatever way a test ends.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, ensure};

use crate::process;

/// File in the stage's directory with one namespace a line.
const NAMES: &str = "namespaces";
/// The namespace with the bridge.
const HUB: &str = "hub";

/// Who is on the network.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Place {
    /// Site A.
    A,
    /// Site B.
    B,
    /// The witness.
    W,
}

use Place::{A, B, W};

impl Place {
    /// Everybody.
    pub const ALL: [Self; 3] = [A, B, W];

    /// Its address.
    pub fn ip(self) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(10, 77, 0, 1 + self as u8))
    }

    fn letter(self) -> &'static str {
        ["a", "b", "w"][self as usize]
    }
}

/// Both ways between two.
pub fn between(one: Place, other: Place) -> [(Place, Place); 2] {
    [(one, other), (other, one)]
}

/// A network.
#[derive(Clone, Debug)]
pub struct Net {
    id: String,
}

impl Net {
    /// Makes it; it ends with the stage in `dir`.
    ///
    /// # Errors
    /// Without root, or without iproute2 and nftables.
    pub fn new(dir: &Path) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let net = Self { id: format!("tm{}-{number}", std::process::id()) };
        let hub = net.name(HUB);
        let names = Place::ALL.map(|place| net.namespace(place));
        for name in names.iter().chain([&hub]) {
            writeln!(OpenOptions::new().create(true).append(true).open(dir.join(NAMES))?, "{name}")?;
            ip(&["netns", "add", name])?;
            ip(&["-n", name, "link", "set", "lo", "up"])?;
        }
        ip(&["-n", &hub, "link", "add", "bridge", "type", "bridge"])?;
        ip(&["-n", &hub, "link", "set", "bridge", "up"])?;
        Place::ALL.iter().try_for_each(|place| net.join(*place, &hub))?;
        let count = "table inet count {\nchain input {\ntype filter hook input priority -10;\n\
            tcp flags & (syn | ack) == syn counter\n}\n}\n";
        Place::ALL.iter().try_for_each(|place| net.nft(*place, count))?;
        Ok(net)
    }

    fn join(&self, place: Place, hub: &str) -> Result<()> {
        let (name, port) = (self.namespace(place), &format!("port-{}", place.letter()));
        ip(&["-n", hub, "link", "add", "name", port, "type", "veth", "peer", "name", "eth", "netns", &name])?;
        ip(&["-n", hub, "link", "set", port, "master", "bridge", "up"])?;
        ip(&["-n", &name, "addr", "add", &format!("{}/24", place.ip()), "dev", "eth"])?;
        ip(&["-n", &name, "link", "set", "eth", "up"])
    }

    fn name(&self, part: &str) -> String {
        format!("{}-{part}", self.id)
    }

    fn namespace(&self, place: Place) -> String {
        self.name(place.letter())
    }

    /// `program`, to be run at `place`. It becomes the program: its process id is that of the command.
    pub fn command(&self, place: Place, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.namespace(place))).arg("--").arg(program);
        command
    }

    /// Whether somebody listens at `place`.
    pub fn listens(&self, place: Place, port: u16) -> bool {
        let connect = format!("exec 3<>/dev/tcp/{}/{port}", place.ip());
        let status = self.command(place, "bash").args(["-c", &connect]).stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    }

    /// From now on just these ways are cut, each from the first to the second.
    ///
    /// # Errors
    /// When nftables refuses.
    pub fn cut(&self, ways: &[(Place, Place)]) -> Result<()> {
        Place::ALL.iter().try_for_each(|to| {
            let from: BTreeSet<Place> = ways.iter().filter(|(_, end)| end == to).map(|(from, _)| *from).collect();
            self.drop_at(*to, &from)
        })
    }

    /// Nothing is cut any more.
    ///
    /// # Errors
    /// As [`Self::cut`].
    pub fn heal(&self) -> Result<()> {
        self.cut(&[])
    }

    /// What comes from these is dropped at `to`.
    fn drop_at(&self, to: Place, from: &BTreeSet<Place>) -> Result<()> {
        let rules: String = from.iter().map(|from| format!("ip saddr {} drop\n", from.ip())).collect();
        let chain = format!("chain input {{ type filter hook input priority 0;\n{rules}}}\n");
        self.nft(to, &format!("table inet cut\ndelete table inet cut\ntable inet cut {{ {chain} }}\n"))
    }

    /// Connections that others tried to make to `place` so far.
    ///
    /// # Errors
    /// When nftables does not say.
    pub fn count_connections(&self, place: Place) -> Result<u64> {
        let listed = process::checked(self.command(place, "nft").args(["list", "table", "inet", "count"]))?;
        let (_, counted) = listed.split_once("packets ").with_context(|| format!("no counter in {listed}"))?;
        Ok(counted.split_whitespace().next().unwrap_or_default().parse()?)
    }

    fn nft(&self, place: Place, script: &str) -> Result<()> {
        let mut nft = self.command(place, "nft");
        let mut child = nft.args(["-f", "-"]).stdin(Stdio::piped()).spawn().context("nftables is needed")?;
        let mut stdin = child.stdin.take().context("a pipe")?;
        stdin.write_all(script.as_bytes())?;
        drop(stdin);
        ensure!(child.wait()?.success(), "nft refuses {script}");
        Ok(())
    }
}

/// Takes down the networks of the stage in `dir`. Can be called again and again.
pub(crate) fn take_down(dir: &Path) {
    let names = fs::read_to_string(dir.join(NAMES)).unwrap_or_default();
    for name in names.lines() {
        // One that is gone already is what is wanted.
        let _ = ip(&["netns", "del", name]);
    }
}

fn ip(args: &[&str]) -> Result<()> {
    process::checked(Command::new("ip").args(args)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_that_is_cut_lets_nothing_through_in_that_direction_and_all_is_gone_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let net = Net::new(dir.path()).unwrap();
        // Nobody listens: who is reached says so.
        let reaches = |from: Place, to: Place| {
            let ping = format!("(echo > /dev/tcp/{}/9) 2>&1 | grep -q refused", to.ip());
            let status = net.command(from, "timeout").args(["1", "bash", "-c", &ping]).status().unwrap();
            status.success()
        };
        assert!(reaches(A, B) && reaches(B, A) && reaches(A, W));
        net.cut(&[(A, B)]).unwrap();
        assert!(!reaches(A, B) && !reaches(B, A), "an answer needs both ways");
        assert!(reaches(A, W) && reaches(B, W));
        net.heal().unwrap();
        assert!(reaches(A, B));
        take_down(dir.path());
        assert!(!Path::new("/run/netns").join(net.namespace(A)).exists());
    }
}
