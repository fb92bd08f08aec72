//! What stands at a clean point is what a program can go on with: databases and repositories, restored to moments at which
//! they were idle.

use crate::harness::{LONG, Pair, SHORT, git, now};
use farwrite_testkit::Chance;
use rusqlite::Connection;
use std::fs;
use std::path::Path;

/// Moments to restore.
const MOMENTS: usize = 10;

fn open(path: &Path) -> Connection {
    let db = Connection::open(path).unwrap();
    let mode: String = db
        .query_row("PRAGMA journal_mode = WAL", [], |r| r.get(0))
        .unwrap();
    assert_eq!(mode, "wal");
    // Small, so that checkpoints happen in the middle of bursts too.
    db.pragma_update(None, "wal_autocheckpoint", 50).unwrap();
    db
}

/// A burst of inserts, updates and deletes in transactions of all sizes.
fn burst(db: &mut Connection, chance: &mut Chance) {
    for _ in 0..5 + chance.below(20) {
        let tx = db.transaction().unwrap();
        for _ in 0..1 + chance.below(50) {
            let length = chance.below(2000) as usize;
            let id = chance.below(5000) as i64;
            match chance.below(4) {
                0 => tx.execute("DELETE FROM t WHERE id = ?1", [id]).unwrap(),
                1 => tx
                    .execute(
                        "UPDATE t SET b = ?2 WHERE id > ?1 AND id < ?1 + 9",
                        (id, chance.bytes(length)),
                    )
                    .unwrap(),
                _ => tx
                    .execute(
                        "INSERT OR REPLACE INTO t VALUES (?1, ?2)",
                        (id, chance.bytes(length)),
                    )
                    .unwrap(),
            };
        }
        tx.commit().unwrap();
    }
}

/// Number of rows, and a sum over what is in them.
fn count(db: &Connection) -> (i64, i64) {
    db.query_row(
        "SELECT count(*), coalesce(sum(id * (1 + length(b))), 0) FROM t",
        [],
        |r| Ok((r.get(0)?, r.get(1)?)),
    )
    .unwrap()
}

#[test]
fn sqlite_is_whole_at_every_idle_moment() {
    let mut chance = Chance::from_env();
    let mut pair = Pair::new();
    let path = pair.dir.join("app.db");
    let mut db = open(&path);
    db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, b BLOB)", [])
        .unwrap();
    pair.source.start(&[]);
    let mut moments = Vec::new();
    while moments.len() < MOMENTS {
        for _ in 0..1 + chance.below(4) {
            burst(&mut db, &mut chance);
        }
        if chance.one_in(3) {
            // The application ends and starts again: the log is folded into the database.
            db.close().unwrap();
            db = open(&path);
        }
        pair.source.flush();
        moments.push((now(), count(&db)));
    }
    burst(&mut db, &mut chance);
    pair.source.flush();

    for (i, (at, counted)) in moments.iter().enumerate() {
        let to = pair.place.path(&format!("back {i}"));
        let back = pair.source.restore(&pair.dir, Some(at), &to, SHORT);
        let db = Connection::open(back.join("app.db")).unwrap();
        let check: String = db
            .query_row("PRAGMA integrity_check", [], |r| r.get(0))
            .unwrap();
        assert_eq!(check, "ok", "moment {i}, {at}");
        assert_eq!(count(&db), *counted, "moment {i}, {at}");
    }
}

#[test]
fn a_git_repository_is_whole_at_every_idle_moment() {
    let mut chance = Chance::from_env();
    let mut pair = Pair::new();
    let repo = pair.dir.join("repo");
    fs::create_dir(&repo).unwrap();
    git(&repo, &["init", "-q"], SHORT);
    pair.source.start(&[]);
    let mut moments = Vec::new();
    while moments.len() < MOMENTS {
        for _ in 0..1 + chance.below(5) {
            for _ in 0..1 + chance.below(6) {
                let length = chance.below(20_000) as usize;
                let file = format!("file {}", chance.below(30));
                fs::write(repo.join(file), chance.bytes(length)).unwrap();
            }
            git(&repo, &["add", "-A"], SHORT);
            git(
                &repo,
                &["commit", "-q", "--allow-empty", "-m", "more"],
                SHORT,
            );
        }
        match chance.below(4) {
            0 => git(&repo, &["gc", "-q", "--prune=now"], SHORT),
            1 => git(&repo, &["repack", "-q", "-d"], SHORT),
            _ => String::new(),
        };
        pair.source.flush();
        moments.push((now(), git(&repo, &["rev-parse", "HEAD"], SHORT)));
    }
    git(&repo, &["checkout", "-q", "--orphan", "other"], SHORT);
    git(&repo, &["gc", "-q", "--prune=now"], SHORT);
    pair.source.flush();

    for (i, (at, head)) in moments.iter().enumerate() {
        let to = pair.place.path(&format!("back {i}"));
        let back = pair.source.restore(&repo, Some(at), &to, LONG);
        git(&back, &["fsck", "--full", "--strict"], SHORT);
        assert_eq!(
            git(&back, &["rev-parse", "HEAD"], SHORT),
            *head,
            "moment {i}, {at}"
        );
        assert_eq!(
            git(&back, &["status", "--porcelain"], SHORT),
            "",
            "moment {i}, {at}"
        );
    }
}
