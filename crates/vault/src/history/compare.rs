//! What differs between two moments: both trees are walked side by side. The answer is cut at a bound, never the walk
//! of one directory in the middle.

use super::{Result, resolve};
use crate::catalog::{NodeRow, View};
use farwrite_core::history::{Difference, DifferenceKind, Response};
use farwrite_core::{BytePath, Kind, Name, NodeId};
use std::collections::BTreeMap;

/// Most differences in one answer.
const DIFFERENCES: usize = 10_000;
/// Entries asked of the catalog at once.
const PAGE: usize = 4096;

type Pair = (BytePath, Option<NodeId>, Option<NodeId>);

/// See the module.
pub(super) fn diff(from: View<'_>, to: View<'_>, path: &BytePath) -> Result {
    let mut changes = Vec::new();
    let mut truncated = false;
    let mut todo: Vec<Pair> = vec![(path.clone(), resolve(from, path)?, resolve(to, path)?)];
    while let Some((path, a, b)) = todo.pop() {
        if changes.len() >= DIFFERENCES {
            truncated = true;
            break;
        }
        let row = |view: View<'_>, node: Option<NodeId>| match node {
            Some(n) => view.node(n),
            None => Ok(None),
        };
        let (row_a, row_b) = (row(from, a)?, row(to, b)?);
        changes.extend(difference(&path, (from, a, &row_a), (to, b, &row_b))?);
        let dir = |node: Option<NodeId>, row: &Option<NodeRow>| {
            node.filter(|_| row.as_ref().is_some_and(|r| r.meta.kind == Kind::Dir))
        };
        let mut names: BTreeMap<Name, (Option<NodeId>, Option<NodeId>)> = BTreeMap::new();
        for_each(from, dir(a, &row_a), |n, node| {
            names.entry(n).or_default().0 = Some(node)
        })?;
        for_each(to, dir(b, &row_b), |n, node| {
            names.entry(n).or_default().1 = Some(node)
        })?;
        let below = names.into_iter().rev();
        todo.extend(below.map(|(n, (x, y))| (path.join(&n), x, y)));
    }
    changes.sort_by(|x, y| x.path.cmp(&y.path));
    Ok(Response::Diff { changes, truncated })
}

fn for_each(view: View<'_>, dir: Option<NodeId>, mut f: impl FnMut(Name, NodeId)) -> Result<()> {
    let Some(dir) = dir else {
        return Ok(());
    };
    let mut after = None;
    loop {
        let page = view.list(dir, after.as_ref(), PAGE)?;
        let Some((last, _)) = page.last() else {
            return Ok(());
        };
        after = Some(last.clone());
        page.into_iter().for_each(|(n, node)| f(n, node));
    }
}

type Side<'a, 'v> = (View<'v>, Option<NodeId>, &'a Option<NodeRow>);

fn difference(path: &BytePath, a: Side<'_, '_>, b: Side<'_, '_>) -> Result<Option<Difference>> {
    let size = |r: &Option<NodeRow>| {
        let meta = r.as_ref().map(|r| &r.meta);
        meta.filter(|m| m.kind == Kind::File).map(|m| m.size)
    };
    let (kind, what) = match (a.2, b.2) {
        (None, None) => return Ok(None),
        (None, Some(y)) => (y.meta.kind, DifferenceKind::Added),
        (Some(x), None) => (x.meta.kind, DifferenceKind::Removed),
        (Some(x), Some(y)) => {
            let kind = y.meta.kind;
            if x.meta.kind != kind || !same_content(a, b, x, y)? {
                (kind, DifferenceKind::Content)
            } else if x.meta != y.meta {
                (kind, DifferenceKind::Attributes)
            } else {
                return Ok(None);
            }
        }
    };
    Ok(Some(Difference {
        path: path.clone(),
        kind,
        what,
        size_from: size(a.2),
        size_to: size(b.2),
    }))
}

fn same_content(a: Side<'_, '_>, b: Side<'_, '_>, x: &NodeRow, y: &NodeRow) -> Result<bool> {
    if x.meta.target != y.meta.target || x.meta.rdev != y.meta.rdev || x.meta.size != y.meta.size {
        return Ok(false);
    }
    if x.meta.kind != Kind::File || (a.1 == b.1 && x.content == y.content) {
        return Ok(true);
    }
    let (Some(na), Some(nb)) = (a.1, b.1) else {
        return Ok(false);
    };
    let mut at = 0;
    loop {
        let (p, q) = (a.0.extents(na, at, PAGE)?, b.0.extents(nb, at, PAGE)?);
        if p != q {
            return Ok(false);
        }
        match p.last() {
            Some(last) if p.len() == PAGE => at = last.offset + last.len,
            _ => return Ok(true),
        }
    }
}
