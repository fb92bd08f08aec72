//! The catalog's tables. Every temporal table is a pair: rows that are valid now, and rows that were (`to_seq` is
//! the batch that ended them), so that reading or changing the present never wades through the past.

use rusqlite::Connection;

/// `PRAGMA user_version` of the tables below. Another value: the catalog is made anew.
pub const CATALOG_VERSION: i64 = 1;

/// Tables that must exist.
pub const TABLES: &[&str] = &[
    "meta",
    "batches",
    "blocks",
    "names",
    "names_old",
    "attrs",
    "attrs_old",
    "extents",
    "extents_old",
    "staged",
];

const SQL: &str = "
CREATE TABLE meta(key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE batches(
    seq INTEGER PRIMARY KEY, sec INTEGER NOT NULL, nsec INTEGER NOT NULL, clean INTEGER NOT NULL,
    segment INTEGER NOT NULL, end_offset INTEGER NOT NULL, ops INTEGER NOT NULL, blocks INTEGER NOT NULL,
    bytes INTEGER NOT NULL, epoch BLOB NOT NULL, next_node INTEGER NOT NULL, chain BLOB NOT NULL, damage TEXT);
CREATE INDEX batches_time ON batches(sec, nsec);
CREATE TABLE blocks(
    id INTEGER PRIMARY KEY, segment INTEGER NOT NULL, offset INTEGER NOT NULL, stored INTEGER NOT NULL,
    raw INTEGER NOT NULL, codec INTEGER NOT NULL, seq INTEGER NOT NULL);
CREATE TABLE names(
    parent INTEGER NOT NULL, name BLOB NOT NULL, node INTEGER NOT NULL, from_seq INTEGER NOT NULL,
    PRIMARY KEY(parent, name)) WITHOUT ROWID;
CREATE INDEX names_node ON names(node);
CREATE TABLE names_old(
    parent INTEGER NOT NULL, name BLOB NOT NULL, to_seq INTEGER NOT NULL, node INTEGER NOT NULL,
    from_seq INTEGER NOT NULL, PRIMARY KEY(parent, name, to_seq)) WITHOUT ROWID;
CREATE INDEX names_old_time ON names_old(parent, to_seq);
CREATE INDEX names_old_node ON names_old(node, to_seq);
CREATE TABLE attrs(
    node INTEGER PRIMARY KEY, from_seq INTEGER NOT NULL, content_seq INTEGER NOT NULL, meta BLOB NOT NULL);
CREATE TABLE attrs_old(
    node INTEGER NOT NULL, to_seq INTEGER NOT NULL, from_seq INTEGER NOT NULL, content_seq INTEGER NOT NULL,
    meta BLOB NOT NULL, PRIMARY KEY(node, to_seq)) WITHOUT ROWID;
CREATE TABLE extents(
    node INTEGER NOT NULL, offset INTEGER NOT NULL, len INTEGER NOT NULL, block INTEGER NOT NULL,
    block_off INTEGER NOT NULL, from_seq INTEGER NOT NULL, PRIMARY KEY(node, offset)) WITHOUT ROWID;
CREATE TABLE extents_old(
    node INTEGER NOT NULL, to_seq INTEGER NOT NULL, offset INTEGER NOT NULL, len INTEGER NOT NULL,
    block INTEGER NOT NULL, block_off INTEGER NOT NULL, from_seq INTEGER NOT NULL,
    PRIMARY KEY(node, to_seq, offset)) WITHOUT ROWID;
CREATE TABLE staged(node INTEGER PRIMARY KEY);
";

/// Makes the tables and the root node in an empty database.
pub(super) fn create(conn: &mut Connection, root: &[u8]) -> rusqlite::Result<()> {
    let tx = conn.transaction()?;
    tx.execute_batch(SQL)?;
    tx.execute("INSERT INTO attrs VALUES(1, 0, 0, ?1)", [root])?;
    tx.pragma_update(None, "user_version", CATALOG_VERSION)?;
    tx.commit()
}

/// Are all tables there, in this version?
pub(super) fn is_current(conn: &Connection) -> rusqlite::Result<bool> {
    let version: i64 = conn.pragma_query_value(None, "user_version", |r| r.get(0))?;
    let mut find = conn.prepare("SELECT 1 FROM sqlite_master WHERE type='table' AND name=?1")?;
    for table in TABLES {
        if !find.exists([table])? {
            return Ok(false);
        }
    }
    Ok(version == CATALOG_VERSION)
}
