//! Brings a TOML document to another's values and keeps what a person wrote around them: comments, order, spacing.

use toml_edit::{ArrayOfTables, Item, Table};

/// Keys by which tables of one array are known again.
const NAMES: [&str; 2] = ["path", "name"];

/// Gives `old` the keys and values of `new`.
pub fn merge(old: &mut Table, new: &Table) {
    let gone: Vec<String> = old
        .iter()
        .map(|(key, _)| key.to_owned())
        .filter(|key| !new.contains_key(key))
        .collect();
    for key in gone {
        old.remove(&key);
    }
    for (key, wanted) in new {
        match (old.get_mut(key), wanted) {
            (None, _) => {
                old.insert(key, wanted.clone());
            }
            (Some(Item::Table(a)), Item::Table(b)) => merge(a, b),
            (Some(Item::ArrayOfTables(a)), Item::ArrayOfTables(b)) => merge_arrays(a, b),
            (Some(Item::Value(a)), Item::Value(b)) => {
                if a.to_string().trim() != b.to_string().trim() {
                    let decor = a.decor().clone();
                    *a = b.clone();
                    *a.decor_mut() = decor;
                }
            }
            // Of another shape: the key is written anew, too.
            (Some(_), _) => {
                old.remove(key);
                old.insert(key, wanted.clone());
            }
        }
    }
}

fn name(table: &Table) -> Option<&str> {
    NAMES.iter().find_map(|key| table.get(key)?.as_str())
}

fn merge_arrays(old: &mut ArrayOfTables, new: &ArrayOfTables) {
    let mut merged = ArrayOfTables::new();
    for wanted in new {
        let known = old
            .iter()
            .find(|t| name(t).is_some() && name(t) == name(wanted));
        merged.push(match known {
            Some(known) => {
                let mut table = known.clone();
                merge(&mut table, wanted);
                table
            }
            None => wanted.clone(),
        });
    }
    *old = merged;
}
