//! `farwrite vault invite`: makes the line with which one source joins. Standard output has that line and nothing else.

use super::{address, init, serve};
use anyhow::{Context, bail};
use farwrite_core::{SourceName, Timestamp};
use farwrite_transfer::net::tls::Identity;
use farwrite_transfer::pairing::{InviteStore, PeerStore};
use std::path::Path;
use std::time::{Duration, SystemTime};

/// Makes and prints an invite.
pub(super) fn run(
    vault_dir: &Path,
    name: &SourceName,
    addresses: Vec<String>,
    ttl: Duration,
) -> anyhow::Result<()> {
    let vault = init::open(vault_dir)?;
    let listen = serve::last_listen(vault.dir());
    let addresses = match addresses.is_empty() {
        true => address::guess(listen),
        false => addresses
            .into_iter()
            .map(|a| checked(a, listen.port()))
            .collect::<anyhow::Result<_>>()?,
    };
    if addresses.is_empty() {
        bail!(
            "this machine has no address that others could reach: say where with --address HOST:PORT"
        );
    }
    let identity = Identity::load_or_create(vault.dir()).context("this vault's key")?;
    let known = PeerStore::new(vault.dir())
        .list()?
        .iter()
        .any(|(n, _)| n == name);
    let now = Timestamp::from(SystemTime::now());
    let store = InviteStore::new(vault.dir());
    let invite = store.create(name, addresses, identity.fingerprint(), now, ttl)?;
    println!("{invite}");
    explain(name, &invite.addresses, invite.expires, known);
    Ok(())
}

fn explain(name: &SourceName, addresses: &[String], expires: Timestamp, known: bool) {
    let zone = jiff::tz::TimeZone::system();
    let until = jiff::Timestamp::from_second(expires.sec)
        .map(|t| t.to_zoned(zone).strftime("%Y-%m-%d %H:%M %Z").to_string());
    eprintln!(
        "The line above lets one machine join as {name}, once, until {}.",
        until.unwrap_or_default()
    );
    eprintln!(
        "It holds these addresses of this vault: {}",
        addresses.join(", ")
    );
    eprintln!("On that machine:  farwrite source add DIR --to LINE");
    if known {
        eprintln!(
            "{name} has joined before: whoever uses this line takes its place and goes on with its history."
        );
    }
}

/// `HOST:PORT`; a host alone gets the port of the last serve.
fn checked(address: String, port: u16) -> anyhow::Result<String> {
    let bad = || format!("not of the form HOST:PORT: {address:?}");
    let (host, given) = match address.rsplit_once(':') {
        Some((h, p)) if !h.contains(':') || h.starts_with('[') && h.ends_with(']') => (h, Some(p)),
        None => (address.as_str(), None),
        // An IPv6 address without brackets leaves open where the port begins.
        Some(_) => bail!("{}: an IPv6 address is written [::1]:{port}", bad()),
    };
    let port = match given {
        Some(p) => p.parse::<u16>().ok().filter(|p| *p > 0).with_context(bad)?,
        None => port,
    };
    if host.is_empty() || host.contains(|c: char| c.is_whitespace() || c.is_control() || c == '/') {
        bail!(bad());
    }
    Ok(format!("{host}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::checked;

    #[test]
    fn addresses_are_checked_where_they_are_given() {
        let ok = |s: &str| checked(s.into(), 7).unwrap();
        assert_eq!(ok("h:1"), "h:1");
        assert_eq!(ok("h"), "h:7");
        assert_eq!(ok("[::1]:5"), "[::1]:5");
        for bad in [
            "",
            ":5",
            "h:",
            "h:x",
            "h:0",
            "h:99999",
            "::1",
            "http://h:5",
            "a b:5",
        ] {
            assert!(checked(bad.into(), 7).is_err(), "{bad:?}");
        }
    }
}
