//! Numbers for roots, over the lives of processes.
//!
//! Records name a root by its number and stay in the ring until they are released, so the number of a root that was given up
//! is not given to another one before the ring has been empty.

use super::shared::{ROOT_RECORDED, ROOT_RETIRED, ROOT_UNUSED, ROOTS_MAX, Root};

/// The table as it is to be now.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Numbered {
    /// By number.
    pub table: Vec<Root>,
    /// For each of the roots that were asked for: its number, and whether it is being recorded already.
    pub given: Vec<(usize, bool)>,
}

/// Gives numbers to `wanted` (with state recorded). `None`: there are none left.
pub(super) fn number(old: &[Root], ring_is_empty: bool, wanted: &[Root]) -> Option<Numbered> {
    let mut table = old.to_vec();
    table.resize(
        ROOTS_MAX,
        Root {
            dev: 0,
            ino: 0,
            sb_dev: 0,
            state: ROOT_UNUSED,
        },
    );
    for r in &mut table {
        r.state = match (r.state, wanted.contains(r)) {
            (ROOT_RECORDED, true) => ROOT_RECORDED,
            (ROOT_UNUSED, _) => ROOT_UNUSED,
            _ if ring_is_empty => ROOT_UNUSED,
            _ => ROOT_RETIRED,
        };
    }
    let mut given = Vec::new();
    for w in wanted {
        let known = table.iter().position(|r| r == w);
        let number = known.or_else(|| table.iter().position(|r| r.state == ROOT_UNUSED))?;
        let before = old.get(number).is_some_and(|r| r == w);
        table[number] = *w;
        given.push((number, before));
    }
    Some(Numbered { table, given })
}

#[cfg(test)]
mod tests {
    use super::super::shared::ROOT_GONE;
    use super::*;

    fn root(ino: u64) -> Root {
        Root {
            dev: 7,
            ino,
            sb_dev: 7,
            state: ROOT_RECORDED,
        }
    }

    fn given(old: &[Root], empty: bool, wanted: &[Root]) -> Vec<(usize, bool)> {
        number(old, empty, wanted).unwrap().given
    }

    #[test]
    fn a_root_keeps_its_number() {
        let first = number(&[], true, &[root(1), root(2)]).unwrap();
        assert_eq!(first.given, [(0, false), (1, false)]);
        let again = given(&first.table, false, &[root(3), root(2), root(1)]);
        assert_eq!(again, [(2, false), (1, true), (0, true)]);
    }

    #[test]
    fn a_number_is_given_again_only_after_the_ring_was_empty() {
        let first = number(&[], true, &[root(1)]).unwrap();
        let second = number(&first.table, false, &[root(2)]).unwrap();
        assert_eq!(second.given, [(1, false)]);
        assert_eq!(second.table[0].state, ROOT_RETIRED);
        assert_eq!(
            given(&second.table, false, &[root(3), root(2)]),
            [(2, false), (1, true)]
        );
        assert_eq!(
            given(&second.table, true, &[root(3), root(2)]),
            [(0, false), (1, true)]
        );
    }

    #[test]
    fn a_root_that_was_unmounted_is_another_one() {
        let mut old = number(&[], true, &[root(1)]).unwrap().table;
        old[0].state = ROOT_GONE;
        assert_eq!(given(&old, false, &[root(1)]), [(1, false)]);
        assert_eq!(given(&old, true, &[root(1)]), [(0, false)]);
    }

    #[test]
    fn numbers_end() {
        let all: Vec<Root> = (0..ROOTS_MAX as u64).map(root).collect();
        let full = number(&[], true, &all).unwrap().table;
        assert_eq!(number(&full, false, &[root(999)]), None);
        assert!(number(&full, true, &[root(999)]).is_some());
    }

    #[test]
    fn one_directory_given_twice_has_one_number() {
        assert_eq!(
            given(&[], true, &[root(1), root(1)]),
            [(0, false), (0, false)]
        );
    }
}
