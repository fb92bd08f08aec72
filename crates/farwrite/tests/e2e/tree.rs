//! A Linux source tree, and a working day in it.

use crate::harness::{LONG, Listing, Pair, SHORT, git, now, rsync_differences, sh};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// From the Debian package linux-source-6.12, which `scripts/setup test` installs.
const ARCHIVE: &str = "/usr/src/linux-source-6.12.tar.xz";
/// Files that are appended to.
const APPENDED: usize = 1000;

/// What is restored of a moment at which the tree was there twice, as files and as git's objects.
const PARTS: [&str; 3] = ["drivers/net", "fs", "include"];

/// A moment at which everything was flushed, and what stood then.
struct Moment {
    what: &'static str,
    at: String,
    stood: Listing,
}

impl Moment {
    fn take(what: &'static str, pair: &Pair) -> Moment {
        pair.source.flush_within(LONG);
        let at = now();
        let stood = Listing::of(&pair.dir);
        println!("{what}: {} entries at {at}", stood.0.len());
        Moment { what, at, stood }
    }

    /// What stood below a path, which no hard link leads out of.
    fn below(&self, path: &Path) -> Listing {
        let top = path.as_os_str().as_bytes();
        let relative = |p: &[u8]| match p.strip_prefix(top)? {
            rest if top.is_empty() || rest.is_empty() => Some(rest.to_vec()),
            rest => rest.strip_prefix(b"/").map(<[u8]>::to_vec),
        };
        let entries = self.stood.0.iter().filter_map(|(p, e)| {
            let mut e = e.clone();
            e.first_link = relative(&e.first_link)?;
            Some((relative(p)?, e))
        });
        Listing(entries.collect())
    }
}

fn unpack(tar: &Path, into: &Path) {
    let args = [
        OsStr::new("-xf"),
        tar.as_os_str(),
        OsStr::new("-C"),
        into.as_os_str(),
    ];
    sh("tar", args, LONG);
}

/// All regular files below, in the order of their names.
fn files(top: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    let mut stack = vec![top.to_owned()];
    while let Some(dir) = stack.pop() {
        let mut entries: Vec<_> = fs::read_dir(&dir).unwrap().map(|e| e.unwrap()).collect();
        entries.sort_by_key(|e| e.file_name());
        for e in entries {
            match e.file_type().unwrap() {
                t if t.is_dir() => stack.push(e.path()),
                t if t.is_file() => out.push(e.path()),
                _ => {}
            }
        }
    }
    out
}

fn with(args: &[&'static str], dir: &Path) -> Vec<std::ffi::OsString> {
    let args = args.iter().map(|a| OsStr::new(*a).to_owned());
    args.chain([dir.as_os_str().to_owned()]).collect()
}

/// Renames top-level directories, deletes a third of them, changes modes and owners, appends to many files.
fn reorganise(tree: &Path) {
    for (from, to) in [
        ("drivers", "treiber"),
        ("arch", "fs-new"),
        ("fs", "arch"),
        ("fs-new", "fs"),
    ] {
        fs::rename(tree.join(from), tree.join(to)).unwrap();
    }
    fs::rename(tree.join("treiber/net"), tree.join("net/drivers")).unwrap();
    let mut dirs: Vec<PathBuf> = fs::read_dir(tree.join("treiber"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.is_dir())
        .collect();
    dirs.sort();
    for dir in dirs.iter().step_by(3) {
        fs::remove_dir_all(dir).unwrap();
    }
    fs::remove_dir_all(tree.join("Documentation")).unwrap();
    fs::remove_dir_all(tree.join("tools")).unwrap();
    sh(
        "chmod",
        with(&["-R", "g+w,o-r"], &tree.join("include")),
        SHORT,
    );
    sh("chown", with(&["-R", "1000:1000"], &tree.join("fs")), SHORT);
}

fn append(tree: &Path) {
    let all = files(tree);
    for path in all.iter().step_by(all.len() / APPENDED) {
        let mut f = File::options().append(true).open(path).unwrap();
        writeln!(f, "/* one more line in {} */", path.display()).unwrap();
    }
}

#[test]
fn heavy_kernel_tree() {
    assert!(
        Path::new(ARCHIVE).exists(),
        "{ARCHIVE} is missing: scripts/setup test"
    );
    let mut pair = Pair::new();
    // Unpacked twice: the slow part is done once.
    let tar = pair.place.path("linux.tar");
    sh(
        "sh",
        [
            "-c",
            r#"xz -dc -T0 "$0" > "$1""#,
            ARCHIVE,
            tar.to_str().unwrap(),
        ],
        LONG,
    );
    unpack(&tar, &pair.dir);
    let tree = pair.dir.join("linux-source-6.12");
    pair.source.start(&[]);
    let mut moments = vec![Moment::take("first backup", &pair)];
    let entries = moments[0].stood.0.len() as u64;
    assert!(entries > 80_000, "{entries} entries are no kernel tree");
    let looked = pair.source.number("/backup/entries");
    assert!(looked < 2 * entries, "{looked} looks at {entries} entries");

    unpack(&tar, &pair.dir);
    fs::remove_file(&tar).unwrap();
    git(&tree, &["init", "-q"], LONG);
    // Debian's .gitignore leaves everything out.
    git(&tree, &["add", "-A", "-f"], LONG);
    git(&tree, &["commit", "-q", "-m", "all"], LONG);
    moments.push(Moment::take("committed", &pair));
    // How well git packs is not what is tested.
    let quickly = ["-c", "pack.window=1", "-c", "pack.compression=1"];
    git(&tree, &[&quickly[..], &["gc", "-q"]].concat(), LONG);
    let renamed_inode = fs::metadata(tree.join("drivers")).unwrap().ino();
    reorganise(&tree);
    assert_eq!(
        fs::metadata(tree.join("treiber")).unwrap().ino(),
        renamed_inode
    );
    moments.push(Moment::take("reorganised", &pair));
    append(&tree);
    pair.source.flush_within(LONG);

    assert_eq!(rsync_differences(&pair.dir, &pair.mirror(), &[], LONG), "");
    Listing::of(&pair.dir).assert_equals(&Listing::of(&pair.mirror()), "mirror");
    let to = pair.place.path("back");
    for (i, m) in moments.iter().enumerate() {
        let paths: Vec<PathBuf> = match i {
            1 => PARTS.iter().map(|p| tree.join(p)).collect(),
            _ => vec![pair.dir.clone()],
        };
        for path in paths {
            let back = pair.source.restore(&path, Some(&m.at), &to, LONG);
            let stood = m.below(path.strip_prefix(&pair.dir).unwrap());
            assert!(stood.0.len() > 1000, "{path:?}");
            stood.assert_equals(&Listing::of(&back), &format!("{}: {path:?}", m.what));
            fs::remove_dir_all(&to).unwrap();
        }
    }
    let status = pair.source.status();
    assert_eq!(status["vaults"][0]["problem_count"], 0, "{status:#}");
    assert_eq!(
        status["vaults"][0]["reconnects"], 0,
        "the vault ended a session"
    );
}
