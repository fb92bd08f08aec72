//! Invites and keys on disk.

use crate::common::name;
use farwrite_core::Timestamp;
use farwrite_transfer::net::tls::{Fingerprint, Identity, IdentityError};
use farwrite_transfer::pairing::*;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

const HOUR: Duration = Duration::from_secs(3600);

fn at(sec: i64) -> Timestamp {
    Timestamp { sec, nsec: 0 }
}

fn key(n: u8) -> Fingerprint {
    Fingerprint::from_bytes([n; 32])
}

fn redeemed<T: std::fmt::Debug>(r: Result<T, PairingError>) -> RedeemError {
    match r {
        Err(PairingError::Redeem(e)) => e,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_invite_is_good_once_for_one_key_and_not_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let (invites, peers) = (InviteStore::new(dir.path()), PeerStore::new(dir.path()));
    let make = |n: &str| {
        invites
            .create(&name(n), vec![], key(0), at(100), HOUR)
            .unwrap()
    };
    let invite = make("web");
    let pair = |token: &[u8], k, t| peers.pair(&invites, token, &key(k), at(t));
    assert_eq!(redeemed(pair(&[0; 32], 1, 200)), RedeemError::Unknown);
    assert_eq!(
        redeemed(pair(&invite.token, 1, 100 + 3600)),
        RedeemError::Expired
    );
    assert_eq!(pair(&invite.token, 1, 200).unwrap(), name("web"));
    assert_eq!(
        pair(&invite.token, 1, 201).unwrap(),
        name("web"),
        "the answer got lost"
    );
    assert_eq!(redeemed(pair(&invite.token, 2, 202)), RedeemError::Used);
    assert_eq!(peers.identify(&key(1)).unwrap(), Some(name("web")));
    assert_eq!(peers.identify(&key(2)).unwrap(), None);

    // Another key for the same name: only with an invite for that name, and the old key is out for good.
    let again = make("web");
    assert_eq!(pair(&again.token, 2, 300).unwrap(), name("web"));
    assert_eq!(peers.identify(&key(1)).unwrap(), None);
    assert_ne!(pair(&invite.token, 1, 301).ok(), Some(name("web")));
    assert_eq!(peers.list().unwrap(), [(name("web"), key(2))]);
    assert!(invites.list(at(302)).unwrap().is_empty());
}

#[test]
fn of_two_that_redeem_at_once_one_wins() {
    let dir = tempfile::tempdir().unwrap();
    let (invites, peers) = (InviteStore::new(dir.path()), PeerStore::new(dir.path()));
    for round in 0..20 {
        let invite = invites
            .create(&name("web"), vec![], key(0), at(1), HOUR)
            .unwrap();
        let won: usize = std::thread::scope(|s| {
            let threads: Vec<_> = (1..=4u8)
                .map(|k| {
                    let (invites, peers, token) = (&invites, &peers, &invite.token);
                    s.spawn(move || peers.pair(invites, token, &key(k), at(2)).is_ok())
                })
                .collect();
            threads
                .into_iter()
                .map(|t| usize::from(t.join().unwrap()))
                .sum()
        });
        assert_eq!(won, 1, "round {round}");
    }
}

#[test]
fn the_token_is_nowhere_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let invites = InviteStore::new(dir.path());
    let invite = invites
        .create(&name("web"), vec![], key(0), at(1), HOUR)
        .unwrap();
    let hex: String = invite.token.iter().map(|b| format!("{b:02x}")).collect();
    for entry in std::fs::read_dir(dir.path().join("invites")).unwrap() {
        let entry = entry.unwrap();
        assert!(!entry.file_name().to_str().unwrap().contains(&hex));
        let bytes = std::fs::read(entry.path()).unwrap();
        assert!(!bytes.windows(32).any(|w| w == invite.token));
    }
}

#[test]
fn an_identity_is_made_once_kept_private_and_never_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let first = Identity::load_or_create(dir.path()).unwrap();
    let again = Identity::load_or_create(dir.path()).unwrap();
    assert_eq!(first.fingerprint(), again.fingerprint());
    let path = dir.path().join("identity.pem");
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    assert_eq!(
        std::fs::read_dir(dir.path()).unwrap().count(),
        1,
        "no leftovers"
    );
    std::fs::write(&path, "nonsense").unwrap();
    let damaged = Identity::load_or_create(dir.path());
    assert!(matches!(damaged, Err(IdentityError::Damaged { .. })));
    assert_eq!(std::fs::read(&path).unwrap(), b"nonsense");
}
