//! Under which addresses other machines may reach this one.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};

/// Most addresses in one invite, as the transfer crate has it.
const MOST: usize = 8;

/// This machine's host name; "vault" where it has none that can be read.
pub(super) fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match name.trim() {
        "" | "(none)" | "localhost" => "vault".into(),
        name => name.into(),
    }
}

/// `host:port` for every way to this machine that can be thought of, best first: the host name if it leads anywhere but to
/// this machine itself, then its addresses. `listen` is where the vault was last served.
pub(super) fn guess(listen: SocketAddr) -> Vec<String> {
    let port = listen.port();
    if !listen.ip().is_unspecified() {
        return vec![listen.to_string()];
    }
    let mut list = Vec::new();
    let name = host_name();
    let outward = |a: SocketAddr| !a.ip().is_loopback() && (a.is_ipv4() || listen.is_ipv6());
    if (name.as_str(), port)
        .to_socket_addrs()
        .is_ok_and(|mut all| all.any(outward))
    {
        list.push(format!("{name}:{port}"));
    }
    let mut found: Vec<(bool, IpAddr)> = if_addrs::get_if_addrs()
        .unwrap_or_default()
        .into_iter()
        .map(|i| (is_virtual(&i.name), i.ip()))
        .filter(|(_, ip)| is_reachable(*ip) && (ip.is_ipv4() || listen.is_ipv6()))
        .collect();
    found.sort_by_key(|(inner, ip)| (*inner, ip.is_ipv6()));
    list.extend(
        found
            .iter()
            .map(|(_, ip)| SocketAddr::new(*ip, port).to_string()),
    );
    list.dedup();
    list.truncate(MOST);
    list
}

/// Of containers and virtual machines on this host: tried last.
fn is_virtual(interface: &str) -> bool {
    ["docker", "br-", "veth", "virbr", "lxc", "cni", "podman"]
        .iter()
        .any(|p| interface.starts_with(p))
}

fn is_reachable(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local() && !v4.is_unspecified(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local() && !v6.is_unspecified(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vault_on_one_address_is_invited_to_at_that_address() {
        assert_eq!(guess("10.1.2.3:99".parse().unwrap()), ["10.1.2.3:99"]);
        assert_eq!(guess("[::1]:99".parse().unwrap()), ["[::1]:99"]);
    }

    #[test]
    fn no_guess_leads_back_to_the_machine_itself() {
        for a in guess("0.0.0.0:99".parse().unwrap()) {
            assert!(a.ends_with(":99"), "{a}");
            assert!(!a.starts_with("127.") && !a.starts_with('['), "{a}");
        }
    }
}
