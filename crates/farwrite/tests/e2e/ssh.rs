//! The vault behind ssh: a real sshd on loopback, with keys of the test's own.

use crate::harness::*;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const SHORT: Duration = Duration::from_secs(30);

fn key(place: &Place, name: &str) -> std::path::PathBuf {
    let path = place.path(name);
    let args = ["-q", "-t", "ed25519", "-N", "", "-f"];
    run(Command::new("ssh-keygen").args(args).arg(&path), SHORT).good();
    path
}

/// An sshd that lets this user in with the test's key and finds our binary; its port.
fn sshd(place: &Place, client_key: &Path, vault: &Path) -> (Daemon, u16) {
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let host_key = key(place, "host-key");
    let authorized = place.path("authorized");
    let public = fs::read_to_string(client_key.with_extension("pub")).unwrap();
    // The key is good for this one command, as the README advises.
    let vault = vault.display();
    let line = format!("restrict,command=\"farwrite vault stdio '{vault}' --name me\" {public}");
    fs::write(&authorized, line).unwrap();
    fs::set_permissions(&authorized, fs::Permissions::from_mode(0o600)).unwrap();
    let bin = Path::new(env!("CARGO_BIN_EXE_farwrite")).parent().unwrap();
    let config = place.path("sshd_config");
    let text = format!(
        "Port {port}\nListenAddress 127.0.0.1\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\n\
         PidFile none\nPermitRootLogin yes\nPasswordAuthentication no\nSetEnv PATH={}:/usr/bin:/bin\n",
        host_key.display(),
        authorized.display(),
        bin.display()
    );
    fs::write(&config, text).unwrap();
    // sshd wants its directory for privilege separation.
    fs::create_dir_all("/run/sshd").unwrap();
    let mut command = Command::new("/usr/sbin/sshd");
    command.args(["-D", "-e", "-f"]).arg(&config);
    let daemon = Daemon::start(&mut command, place.path("sshd.log"));
    wait_for("sshd to listen", SHORT, || {
        std::net::TcpStream::connect(("127.0.0.1", port)).ok()
    });
    (daemon, port)
}

#[test]
fn a_vault_behind_ssh_takes_and_gives_back() {
    let place = Place::new();
    let dir = place.dir("src");
    fs::write(dir.join("a"), "first").unwrap();
    let client_key = key(&place, "client-key");
    let vault = place.path("vault with a space");
    let (_sshd, port) = sshd(&place, &client_key, &vault);
    run(farwrite().args(["vault", "init"]).arg(&vault), SHORT).good();
    let mut source = SourceSide::new(&place, "me");
    let mut add = source.command();
    add.args(["source", "add"])
        .arg(&dir)
        .args(["--name", "me", "--vault-name", "nas", "--to"]);
    add.arg(format!("ssh://127.0.0.1:{port}{}", vault.display()));
    run(&mut add, SHORT).good();
    // Known hosts and the key are the test's own; a person has them in ~/.ssh.
    let config = source.state.join("config.toml");
    let ssh = format!(
        "ssh_command = [\"ssh\", \"-i\", \"{}\", \"-o\", \"StrictHostKeyChecking=no\", \"-o\", \"UserKnownHostsFile=/dev/null\"]",
        client_key.display()
    );
    fs::write(
        &config,
        format!("{}\n{ssh}\n", fs::read_to_string(&config).unwrap()),
    )
    .unwrap();
    source.start(&[]);
    source.flush();
    let mirror = vault
        .join("sources/me/mirror")
        .join(dir.strip_prefix("/").unwrap());
    assert_same("the first backup", &dir, &mirror);
    let then = now();
    fs::write(dir.join("a"), "second").unwrap();
    fs::write(dir.join("b"), vec![7; 3 << 20]).unwrap();
    source.flush();
    assert_same("after a change", &dir, &mirror);
    let back = source.restore(&dir.join("a"), Some(&then), &place.path("back"), SHORT);
    assert_eq!(fs::read_to_string(back).unwrap(), "first");
    source.end(rustix::process::Signal::TERM);
}
