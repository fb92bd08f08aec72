//! `farwrite source add`: pairs with a vault if need be and writes the configuration.

use crate::cli::AddArgs;
use crate::config::{self, Config, Directory, Vault};
use crate::state::State;
use anyhow::{Context, bail};
use farwrite_core::BytePath;
use farwrite_core::SourceName;
use farwrite_core::exclude::Excludes;
use farwrite_transfer::net::pair_blocking;
use farwrite_transfer::pairing::Invite;

/// See the module.
pub fn add(state: &State, args: &AddArgs) -> anyhow::Result<()> {
    let mut config = Config::load(state)?;
    let dirs = args
        .dirs
        .iter()
        .map(|d| config::canonical_dir(d))
        .collect::<anyhow::Result<Vec<_>>>()?;
    for dir in &dirs {
        check_against(&config, dir)?;
        Excludes::new(BytePath::new(dir)?, &args.exclude, vec![])?;
    }
    let name = choose_vault(
        state,
        &mut config,
        &Wanted {
            to: &args.to,
            vault_name: args.vault_name.as_ref(),
            source_name: args.name.as_ref(),
        },
    )?;
    for dir in dirs {
        put(&mut config, &dir, &name, |known| {
            let new = args.exclude.iter().filter(|p| !known.contains(p));
            known.iter().chain(new).cloned().collect()
        })?;
        println!("{dir} will be protected in {name}");
    }
    config.save(state)?;
    match farwrite_control::Client::connect(&state.socket_path()) {
        Ok(daemon) => {
            daemon.reload().context(
                "it is in the configuration, but the running daemon does not take it up",
            )?;
            println!("The running daemon has taken it up.");
        }
        Err(_) => println!("Start the daemon: farwrite source run"),
    }
    Ok(())
}

/// `farwrite source reload`.
pub fn reload(state: &State) -> anyhow::Result<()> {
    let daemon = farwrite_control::Client::connect(&state.socket_path())?;
    daemon.reload()?;
    println!("The daemon works by {}", state.config_path().display());
    Ok(())
}

/// Protects a directory in a vault of the configuration. `exclude` gets the patterns so far and gives the new ones.
pub(super) fn put(
    config: &mut Config,
    dir: &str,
    vault: &SourceName,
    exclude: impl FnOnce(&[String]) -> Vec<String>,
) -> anyhow::Result<()> {
    match config.directories.iter_mut().find(|d| d.path == dir) {
        Some(known) => {
            known.exclude = exclude(&known.exclude);
            known.enabled = true;
        }
        None => {
            let slot = config.new_slot();
            config.directories.push(Directory {
                path: dir.to_owned(),
                slot,
                exclude: exclude(&[]),
                enabled: true,
            });
        }
    }
    let vault = config
        .vaults
        .iter_mut()
        .find(|v| v.name == *vault)
        .context("there is no vault of that name")?;
    if !vault.directories.iter().any(|d| d == dir) {
        vault.directories.push(dir.to_owned());
    }
    Ok(())
}

/// Which vault somebody wants.
pub(super) struct Wanted<'a> {
    /// A known vault's name, an invite or an `ssh://` address.
    pub to: &'a str,
    /// What to call a new one here.
    pub vault_name: Option<&'a SourceName>,
    /// With ssh: what it shall call this source.
    pub source_name: Option<&'a SourceName>,
}

/// Is the directory neither inside of nor around another that is protected?
pub(super) fn check_against(config: &Config, dir: &str) -> anyhow::Result<()> {
    let path = BytePath::new(dir)?;
    for other in config.directories.iter().filter(|o| o.path != dir) {
        let o = BytePath::new(&other.path)?;
        if path.starts_with(&o) {
            bail!("{dir} is inside {}, which is protected already", other.path);
        }
        if o.starts_with(&path) {
            bail!(
                "{} is inside {dir} and is protected already: protect one of them",
                other.path
            );
        }
    }
    Ok(())
}

/// The vault that is meant; adds it to the configuration, in memory, if it is new. One that an invite leads to is in the
/// file, too, when this returns: the invite is used up.
pub(super) fn choose_vault(
    state: &State,
    config: &mut Config,
    args: &Wanted<'_>,
) -> anyhow::Result<SourceName> {
    let to = args.to.trim();
    if let Some(known) = config.vaults.iter().find(|v| v.name.as_str() == to) {
        return Ok(known.name.clone());
    }
    if to.starts_with("ssh://") {
        return add_ssh(config, args, to);
    }
    let invite: Invite = to.parse().map_err(|e| {
        let names: Vec<&str> = config.vaults.iter().map(|v| v.name.as_str()).collect();
        let known = if names.is_empty() {
            String::new()
        } else {
            format!("; known vaults: {}", names.join(", "))
        };
        anyhow::anyhow!("--to: {e}{known}")
    })?;
    let default = || {
        let host = invite
            .addresses
            .first()
            .map_or("vault", |a| a.rsplit_once(':').map_or(a, |(h, _)| h));
        named_after(host)
    };
    let name = free_name(
        config,
        args.vault_name.cloned().unwrap_or_else(default),
        args.vault_name.is_some(),
    )?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let identity = state.identity()?;
    let software = concat!("farwrite/", env!("CARGO_PKG_VERSION"));
    let paired = pair_blocking(runtime.handle(), &invite, &identity, software)?;
    config.vaults.push(Vault {
        name: name.clone(),
        source: paired.name,
        directories: vec![],
        addresses: invite.addresses.clone(),
        fingerprint: Some(invite.vault.to_string()),
        ssh: None,
        ssh_command: vec![],
    });
    // The invite is used up: what came of it must not be lost to a later error.
    config.save(state)?;
    Ok(name)
}

fn add_ssh(config: &mut Config, args: &Wanted<'_>, url: &str) -> anyhow::Result<SourceName> {
    let source = match args.source_name {
        Some(n) => n.clone(),
        None => named_after(&rustix::system::uname().nodename().to_string_lossy()),
    };
    let target = config::parse_ssh_url(url, &source)?;
    if let Some(known) = config.vaults.iter().find(|v| v.ssh.as_deref() == Some(url)) {
        return Ok(known.name.clone());
    }
    let wanted = args
        .vault_name
        .cloned()
        .unwrap_or_else(|| named_after(&target.host));
    let name = free_name(config, wanted, args.vault_name.is_some())?;
    config.vaults.push(Vault {
        name: name.clone(),
        source,
        directories: vec![],
        addresses: vec![],
        fingerprint: None,
        ssh: Some(url.to_owned()),
        ssh_command: vec![],
    });
    Ok(name)
}

/// A valid name made of a host name.
fn named_after(host: &str) -> SourceName {
    let keep = |c: char| {
        if c.is_ascii_alphanumeric() || "._-".contains(c) {
            c
        } else {
            '-'
        }
    };
    let text: String = host.chars().map(keep).take(64).collect();
    let text = text.trim_start_matches(['.', '-']).to_owned();
    SourceName::new(text).unwrap_or_else(|_| SourceName::new("vault").expect("a valid name"))
}

/// The name, or with a number behind it if it is taken and was not asked for.
fn free_name(config: &Config, wanted: SourceName, asked: bool) -> anyhow::Result<SourceName> {
    let taken = |n: &SourceName| config.vaults.iter().any(|v| v.name == *n);
    if !taken(&wanted) {
        return Ok(wanted);
    }
    if asked {
        bail!("there is a vault named {wanted} already: choose another --vault-name");
    }
    let base: String = wanted.as_str().chars().take(58).collect();
    (2..10_000)
        .filter_map(|i| SourceName::new(format!("{base}-{i}")).ok())
        .find(|n| !taken(n))
        .context("too many vaults of one name")
}
