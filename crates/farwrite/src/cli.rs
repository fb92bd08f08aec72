//! The command line: what there is and what it is called.

use crate::{config, doctor, history, source, state::State, try_it, vault};
use clap::{Args, Parser, Subcommand};
use farwrite_core::SourceName;
use std::path::PathBuf;
use std::time::Duration;

/// Real-time remote backup for Linux.
#[derive(Debug, Parser)]
#[command(name = "farwrite", version, about, long_about = LONG_ABOUT, after_help = "Try it:  farwrite try ~/Documents", max_term_width = 110)]
pub struct Cli {
    /// Where this source keeps its keys, journal and configuration
    /// [default: /var/lib/farwrite as root, else ~/.local/state/farwrite]
    #[arg(long, global = true, env = "FARWRITE_STATE", value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// Say more on standard error (-v, -vv, -vvv); FARWRITE_LOG sets it too
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    #[command(subcommand)]
    command: Command,
}

const LONG_ABOUT: &str = "Real-time remote backup for Linux: every change of a protected directory reaches a vault on another \
machine as it happens. The vault holds a live mirror and every earlier moment.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Protect a directory on this machine for a first look: vault, source and a live view in one
    #[command(
        after_help = "Examples:\n  farwrite try ~/Documents\n  farwrite try /srv/data --vault /mnt/usb/vault"
    )]
    Try(TryArgs),
    /// Keep backups of other machines: make and serve a vault
    #[command(subcommand)]
    Vault(VaultCommand),
    /// Protect directories of this machine: choose them and run the daemon
    #[command(subcommand)]
    Source(SourceCommand),
    /// What is protected, how far behind it is, and what is wrong
    #[command(
        after_help = "Examples:\n  farwrite status\n  farwrite status --watch\n  farwrite status --json | jq '.vaults[].lag_ms'"
    )]
    Status(StatusArgs),
    /// Wait until every change made so far is durable in every vault and stands in its mirror
    #[command(after_help = "Examples:\n  farwrite flush && reboot\n  farwrite flush --timeout 30s")]
    Flush(FlushArgs),
    /// Switch automatic backup on; what happened meanwhile is caught up first
    #[command(after_help = "Examples:\n  farwrite on\n  farwrite on /srv/data")]
    On(SwitchArgs),
    /// Switch automatic backup off: the sensor lets go of the kernel
    #[command(after_help = "Examples:\n  farwrite off\n  farwrite off /srv/data /srv/other")]
    Off(SwitchArgs),
    /// The overview in a terminal, live
    Top,
    /// Open the GUI of the running daemon in a browser
    #[command(
        after_help = "Examples:\n  farwrite ui\n  sudo farwrite ui          # prints a link that is good once, for five minutes\n\nFrom another machine:  ssh -L 9874:127.0.0.1:9874 HOST, then open the link there"
    )]
    Ui,
    /// Alerts: who is told when something is wrong
    #[command(subcommand)]
    Alert(AlertCommand),
    /// Change the scheduling interval of the running daemon
    #[command(after_help = "Examples:\n  farwrite interval auto\n  farwrite interval 500ms")]
    Interval(IntervalArgs),
    /// List every version of a file
    #[command(
        after_help = "Examples:\n  farwrite versions ~/report.odt\n  farwrite versions /etc/fstab --json"
    )]
    Versions(VersionsArgs),
    /// List a directory as it was
    #[command(
        after_help = "Examples:\n  farwrite ls /srv/data\n  farwrite ls /srv/data --at \"10 minutes ago\"\n  farwrite ls --at \"yesterday 14:00\""
    )]
    Ls(LsArgs),
    /// Give a moment a name, so that it is kept; without a name: list the marks
    #[command(
        after_help = "Examples:\n  farwrite flush && farwrite mark before-upgrade\n  farwrite mark good --at \"yesterday 14:00\"\n  farwrite restore /etc --at mark:before-upgrade --to /tmp/back"
    )]
    Mark(MarkArgs),
    /// What changed between two moments
    #[command(
        after_help = "Examples:\n  farwrite diff /srv/data --from \"1 hour ago\"\n  farwrite diff --from 2026-05-01T12:00:00Z --to yesterday"
    )]
    Diff(DiffArgs),
    /// Bring files or directories back, from now or any earlier moment
    #[command(
        after_help = "Examples:\n  farwrite restore /srv/data/report.odt --at \"10 minutes ago\" --to /tmp/back\n  farwrite restore /srv/data --at \"yesterday 14:00\" --to /srv --dry-run\n  farwrite restore /srv/data --to /mnt --vault-dir /mnt/usb/vault --source web1"
    )]
    Restore(RestoreArgs),
    /// What this machine allows, and what to do about what it lacks
    #[command(after_help = "Examples:\n  farwrite doctor\n  farwrite doctor --json")]
    Doctor(DoctorArgs),
}

/// `farwrite try`.
#[derive(Debug, Args)]
pub struct TryArgs {
    /// The directory to protect
    #[arg(default_value = ".")]
    pub dir: PathBuf,
    /// Keep the vault here instead of in a temporary directory
    #[arg(long, value_name = "VAULT_DIR")]
    pub vault: Option<PathBuf>,
    /// Which sensor to use
    #[arg(long, default_value = "auto", value_name = "SENSOR")]
    pub sensor: config::Sensor,
    /// Leave out what matches (as in .gitignore); may be repeated
    #[arg(long, value_name = "PATTERN")]
    pub exclude: Vec<String>,
    /// End after the first backup
    #[arg(long)]
    pub once: bool,
}

/// `farwrite vault ...`.
#[derive(Debug, Subcommand)]
pub enum VaultCommand {
    /// Make a vault in an empty or new directory
    #[command(
        after_help = "Examples:\n  farwrite vault init /srv/vault\n  farwrite vault init /srv/vault --no-mirror"
    )]
    Init {
        /// Where
        vault_dir: PathBuf,
        /// Keep the history only, no plain tree of the present
        #[arg(long)]
        no_mirror: bool,
    },
    /// Take backups from sources, in the foreground
    #[command(
        after_help = "Examples:\n  farwrite vault serve /srv/vault\n  farwrite vault serve /srv/vault --listen 10.0.0.5:9873\n  farwrite vault serve /srv/vault --ui\n\nWith --ui, standard output begins with a link that lets one browser in, once, for five minutes; `farwrite vault ui` prints another"
    )]
    Serve {
        /// The vault
        vault_dir: PathBuf,
        /// Address and port to listen on
        #[arg(long, default_value = "0.0.0.0:9873", value_name = "ADDR:PORT")]
        listen: String,
        /// Serve the vault's GUI from the start and print a link to it [default address: loopback, port 9876 if it is free]
        #[arg(long, value_name = "ADDR:PORT", num_args = 0..=1, default_missing_value = "")]
        ui: Option<String>,
        /// Serve numbers for a monitoring system at /metrics there, to whoever asks
        #[arg(long, value_name = "ADDR:PORT")]
        metrics: Option<String>,
        /// Verify each source this often, slowly, in the background; 0s: never
        #[arg(long, default_value = "168h", value_name = "DUR", value_parser = config::parse_duration)]
        verify_every: Duration,
    },
    /// Open the GUI of a vault that is being served in a browser
    #[command(after_help = "Examples:\n  farwrite vault ui /srv/vault")]
    Ui {
        /// The vault
        vault_dir: PathBuf,
    },
    /// Send a test alert by every channel that alerts.toml in the vault names, and say how that went
    #[command(after_help = "Examples:\n  farwrite vault alert-test /srv/vault")]
    AlertTest {
        /// The vault
        vault_dir: PathBuf,
    },
    /// Print a line with which one new source may join; used once, expires
    #[command(
        after_help = "Examples:\n  farwrite vault invite /srv/vault --name web1 --address backup.example.org:9873\n\nOn the source:  farwrite source add /srv/data --to LINE"
    )]
    Invite {
        /// The vault
        vault_dir: PathBuf,
        /// What the source will be called here
        #[arg(long, value_name = "SOURCE")]
        name: SourceName,
        /// Where sources reach this vault; may be repeated [default: this machine's name and addresses, port 9873]
        #[arg(long, value_name = "HOST:PORT")]
        address: Vec<String>,
        /// How long the line is good for
        #[arg(long, default_value = "24h", value_name = "DUR", value_parser = config::parse_duration)]
        expires: Duration,
    },
    /// What the vault holds, per source; works while it is being served
    #[command(
        after_help = "Examples:\n  farwrite vault status /srv/vault\n  farwrite vault status /srv/vault --json"
    )]
    Status {
        /// The vault
        vault_dir: PathBuf,
        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// Read everything in the vault and compare it with its checksums
    #[command(
        after_help = "Examples:\n  farwrite vault verify /srv/vault\n  farwrite vault verify /srv/vault --name web1 --json"
    )]
    Verify {
        /// The vault
        vault_dir: PathBuf,
        /// Only this source
        #[arg(long, value_name = "SOURCE")]
        name: Option<SourceName>,
        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// Take away what is older than the policy keeps, and free its space; also while the vault is served
    #[command(
        after_help = "Examples:\n  farwrite vault prune /srv/vault --dry-run\n  farwrite vault prune /srv/vault --source web1 --keep-all 30d --daily 1y --dry-run"
    )]
    Prune {
        /// The vault
        vault_dir: PathBuf,
        /// Only this source
        #[arg(long, value_name = "SOURCE")]
        source: Option<SourceName>,
        /// Only say what would be taken away
        #[arg(long)]
        dry_run: bool,
        /// For programs
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        policy: PolicyArgs,
    },
    /// Show or set how long history is kept; a vault that is served prunes once a day
    #[command(
        after_help = "Examples:\n  farwrite vault retention /srv/vault --keep-all 30d --hourly 90d --daily 1y --monthly forever\n  farwrite vault retention /srv/vault --source web1 --keep-all 7d\n  farwrite vault retention /srv/vault --keep-all none --hourly none --daily none --monthly none"
    )]
    Retention {
        /// The vault
        vault_dir: PathBuf,
        /// Of this source, instead of the vault's own
        #[arg(long, value_name = "SOURCE")]
        source: Option<SourceName>,
        /// Remove what is set, so that the source has the vault's (the vault: keep everything)
        #[arg(long)]
        inherit: bool,
        /// For programs
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        policy: PolicyArgs,
    },
    /// Let go of the ransomware brake, which keeps a source from being pruned
    #[command(
        after_help = "Examples:\n  farwrite vault status /srv/vault\n  farwrite vault release /srv/vault web1"
    )]
    Release {
        /// The vault
        vault_dir: PathBuf,
        /// The source
        source: SourceName,
    },
    /// Give a moment a name, so that it is kept; without a name: list the marks
    #[command(
        after_help = "Examples:\n  farwrite vault mark /srv/vault web1\n  farwrite vault mark /srv/vault web1 before-upgrade --at \"yesterday 14:00\"\n  farwrite vault mark /srv/vault web1 before-upgrade --remove"
    )]
    Mark {
        /// The vault
        vault_dir: PathBuf,
        /// The source
        source: SourceName,
        /// The mark
        name: Option<String>,
        /// When: RFC 3339, "10 minutes ago", "yesterday 14:00" [default: the last moment]
        #[arg(
            long,
            value_name = "TIME",
            conflicts_with = "remove",
            requires = "name"
        )]
        at: Option<String>,
        /// Take the mark away
        #[arg(long, requires = "name")]
        remove: bool,
        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// Serve one source on standard input and output; started by the source through ssh
    #[command(
        after_help = "Not to be typed by hand: `farwrite source add DIR --to ssh://USER@HOST/VAULT_DIR` makes a source run it."
    )]
    Stdio {
        /// The vault
        vault_dir: PathBuf,
        /// The source
        #[arg(long, value_name = "SOURCE")]
        name: SourceName,
    },
}

/// `farwrite alert ...`.
#[derive(Debug, Subcommand)]
pub enum AlertCommand {
    /// Send a test alert by every channel that the configuration names, and say how that went
    #[command(
        after_help = "Examples:\n  farwrite alert test\n\nCommand, webhook and mail are set in config.toml in the state directory, or on the GUI's page Settings"
    )]
    Test,
}

/// How long history is kept. Times: 12h, 30d, 8w, 12mo, 2y, forever; `none` takes one away.
#[derive(Debug, Args)]
pub struct PolicyArgs {
    /// Keep every change for this long; at least 1h
    #[arg(long, value_name = "TIME")]
    pub keep_all: Option<String>,
    /// Behind that, keep one moment of each hour for this long
    #[arg(long, value_name = "TIME")]
    pub hourly: Option<String>,
    /// One of each day
    #[arg(long, value_name = "TIME")]
    pub daily: Option<String>,
    /// One of each week
    #[arg(long, value_name = "TIME")]
    pub weekly: Option<String>,
    /// One of each month
    #[arg(long, value_name = "TIME")]
    pub monthly: Option<String>,
}

impl PolicyArgs {
    /// Is anything given?
    pub fn is_any(&self) -> bool {
        let all = [
            &self.keep_all,
            &self.hourly,
            &self.daily,
            &self.weekly,
            &self.monthly,
        ];
        all.iter().any(|a| a.is_some())
    }
}

/// `farwrite mark`.
#[derive(Debug, Args)]
pub struct MarkArgs {
    /// The mark: letters, digits, '.', '_', '-'
    pub name: Option<String>,
    /// When: RFC 3339, "10 minutes ago", "yesterday 14:00" [default: the last moment in the vault]
    #[arg(long, value_name = "TIME", requires = "name")]
    pub at: Option<String>,
    #[command(flatten)]
    pub from: HistoryFrom,
    /// For programs
    #[arg(long)]
    pub json: bool,
}

/// `farwrite source ...`.
#[derive(Debug, Subcommand)]
pub enum SourceCommand {
    /// Protect directories in a vault; for several vaults run it once for each
    #[command(
        after_help = "Examples:\n  farwrite source add /srv/data /etc --to farwrite1:...\n  farwrite source add ~/work --to ssh://me@nas/volume1/vault --exclude '*.o'"
    )]
    Add(AddArgs),
    /// The daemon: watch, compare, send; in the foreground
    #[command(
        after_help = "Examples:\n  farwrite source run\n  farwrite source run --sensor inotify --interval 2s"
    )]
    Run(RunArgs),
    /// The running daemon takes up its configuration file after it has been edited
    #[command(after_help = "Example:\n  farwrite source reload")]
    Reload,
}

/// `farwrite source add`.
#[derive(Debug, Args)]
pub struct AddArgs {
    /// Directories to protect
    #[arg(required = true)]
    pub dirs: Vec<PathBuf>,
    /// The line that `farwrite vault invite` printed, or ssh://[USER@]HOST[:PORT]/VAULT_DIR; or the name of a vault
    /// that this source already has
    #[arg(long, value_name = "INVITE|SSH_URL|VAULT")]
    pub to: String,
    /// Leave out what matches (as in .gitignore, relative to the directory); may be repeated
    #[arg(long, value_name = "PATTERN")]
    pub exclude: Vec<String>,
    /// What to call the vault here [default: its host name]
    #[arg(long, value_name = "V")]
    pub vault_name: Option<SourceName>,
    /// With ssh: what the vault shall call this source [default: this machine's name]
    #[arg(long, value_name = "SOURCE")]
    pub name: Option<SourceName>,
}

/// `farwrite source run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Which sensor to use [default: from the configuration, else auto]
    #[arg(long, value_name = "SENSOR")]
    pub sensor: Option<config::Sensor>,
    /// Scheduling interval: "auto" or a time [default: from the configuration, else auto]
    #[arg(long, value_name = "auto|DUR")]
    pub interval: Option<farwrite_schedule::Interval>,
}

/// `farwrite status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// For programs
    #[arg(long)]
    pub json: bool,
    /// Go on showing it, once a second, until Ctrl-C
    #[arg(long)]
    pub watch: bool,
}

/// `farwrite on` and `farwrite off`.
#[derive(Debug, Args)]
pub struct SwitchArgs {
    /// Only these protected directories, each by itself; this stays over a restart [default: all, by the one switch]
    pub dirs: Vec<PathBuf>,
}

/// `farwrite flush`.
#[derive(Debug, Args)]
pub struct FlushArgs {
    /// Give up after this time
    #[arg(long, value_name = "DUR", value_parser = config::parse_duration)]
    pub timeout: Option<Duration>,
}

/// `farwrite interval`.
#[derive(Debug, Args)]
pub struct IntervalArgs {
    /// "auto", or a time such as 200ms, 5s
    pub interval: farwrite_schedule::Interval,
}

/// Which vault's history.
#[derive(Debug, Args)]
pub struct HistoryFrom {
    /// Ask this vault, by its name here, if there are several
    #[arg(long, value_name = "V", conflicts_with = "vault_dir")]
    pub vault: Option<SourceName>,
    /// Read this vault's directory on this machine directly, without a daemon
    #[arg(long, value_name = "VAULT_DIR", requires = "source")]
    pub vault_dir: Option<PathBuf>,
    /// With --vault-dir: which source's history
    #[arg(long, value_name = "SOURCE", requires = "vault_dir")]
    pub source: Option<SourceName>,
}

/// `farwrite versions`.
#[derive(Debug, Args)]
pub struct VersionsArgs {
    /// The file, or directory
    pub path: PathBuf,
    #[command(flatten)]
    pub from: HistoryFrom,
    /// For programs
    #[arg(long)]
    pub json: bool,
    /// Most versions to show, newest first
    #[arg(long, default_value_t = 100, value_name = "N")]
    pub limit: u32,
}

/// `farwrite ls`.
#[derive(Debug, Args)]
pub struct LsArgs {
    /// A directory or file [default: the protected directories]
    pub path: Option<PathBuf>,
    /// When: RFC 3339, "10 minutes ago", "yesterday 14:00", mark:NAME [default: now]
    #[arg(long, value_name = "TIME")]
    pub at: Option<String>,
    #[command(flatten)]
    pub from: HistoryFrom,
    /// For programs
    #[arg(long)]
    pub json: bool,
}

/// `farwrite diff`.
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// Only below this path [default: the protected directories]
    pub path: Option<PathBuf>,
    /// The earlier moment
    #[arg(long = "from", value_name = "TIME", id = "from_time")]
    pub from_time: String,
    /// The later moment [default: now]
    #[arg(long = "to", value_name = "TIME", id = "to_time")]
    pub to_time: Option<String>,
    #[command(flatten)]
    pub from: HistoryFrom,
    /// For programs
    #[arg(long)]
    pub json: bool,
}

/// `farwrite restore`.
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// What to bring back: paths as they were on the source
    #[arg(required = true)]
    pub paths: Vec<PathBuf>,
    /// From when: RFC 3339, "10 minutes ago", "yesterday 14:00", mark:NAME [default: now]
    #[arg(long, value_name = "TIME")]
    pub at: Option<String>,
    /// Into this directory; made if it does not exist
    #[arg(long, value_name = "DIR")]
    pub to: PathBuf,
    /// Replace what is there
    #[arg(long)]
    pub overwrite: bool,
    /// Only say what would be done
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub from: HistoryFrom,
    /// For programs
    #[arg(long)]
    pub json: bool,
}

/// `farwrite doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// For programs
    #[arg(long)]
    pub json: bool,
}

impl Cli {
    /// Does what was asked.
    pub fn run(self) -> anyhow::Result<()> {
        let state = State::choose(self.state);
        match self.command {
            Command::Try(args) => try_it::run(&args),
            Command::Vault(command) => vault::run(command),
            Command::Source(SourceCommand::Add(args)) => source::add(&state?, &args),
            Command::Source(SourceCommand::Run(args)) => source::run(&state?, &args),
            Command::Source(SourceCommand::Reload) => source::reload(&state?),
            Command::Status(args) => crate::control::status(&state?, &args),
            Command::Flush(args) => crate::control::flush(&state?, &args),
            Command::On(args) => crate::control::switch(&state?, true, &args.dirs),
            Command::Off(args) => crate::control::switch(&state?, false, &args.dirs),
            Command::Top => crate::top::run(&state?),
            Command::Ui => crate::control::ui(&state?),
            Command::Alert(AlertCommand::Test) => crate::control::test_alerts(&state?),
            Command::Interval(args) => crate::control::interval(&state?, args.interval),
            Command::Versions(args) => history::versions(&state?, &args),
            Command::Ls(args) => history::ls(&state?, &args),
            Command::Mark(args) => history::mark(&state?, &args),
            Command::Diff(args) => history::diff(&state?, &args),
            Command::Restore(args) => history::restore(&state?, &args),
            Command::Doctor(args) => doctor::run(&state?, &args),
        }
    }
}
