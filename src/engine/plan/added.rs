//! Rows that are added to a table. If its inputs have only gained rows, its published rows stay.
//!
//! A published table names the content of its inputs. If that is the content that was published of them before, and all
//! of their parts then are among their parts now, the published rows are made from the same values as before, and only
//! ids that are new in an input can be new in the table. Only these are joined and given keys here; nothing else is
//! read.

use std::collections::{HashMap, HashSet};

use arrow::array::StringArray;

use super::{
    rows::{InputRows, Joined, RowAddresses},
    state::{Pending, TableStates},
};
use crate::engine::{
    Digest, Result,
    pipeline::{Filter, Input, Table},
    stage::Reads,
    store::{PartRef, Store, ids_of, project, read_table},
};

/// The rows that an input has gained since the table was published.
struct Added {
    rows: InputRows,
    /// The ids of the added rows, including those that `where:` leaves out.
    ids: HashSet<String>,
}

/// Returns the rows that are added to a table, ascending by id; `None` if its inputs changed in another way.
pub(super) fn join_added(table: &Table, store: &Store, views: &TableStates) -> Result<Option<Joined>> {
    let inputs: Vec<&Input> = table.inputs.iter().filter(|input| input.reads == Reads::Rows).collect();
    let mut added = Vec::new();
    for (input, number) in inputs.iter().zip(0..) {
        let filter = table.filter.as_ref().filter(|_| number == 0);
        match read(store, views, input, filter)? {
            Some(rows) => added.push(rows),
            None => return Ok(None),
        }
    }
    let positions: Vec<HashMap<&str, u32>> = added.iter().map(|added| added.rows.positions()).collect();
    let mut ids: Vec<&str> = positions.iter().flat_map(HashMap::keys).copied().collect();
    ids.sort_unstable();
    ids.dedup();
    // An id may be new in one input and old in another; the old row is not read here, so the table is then joined as a
    // whole.
    for ((input, added), positions) in inputs.iter().zip(&added).zip(&positions) {
        ids.retain(|id| positions.contains_key(id) || !added.ids.contains(*id));
        let others: HashSet<&str> = ids.iter().filter(|id| !positions.contains_key(*id)).copied().collect();
        if has_any(store, views, input, &others)? {
            return Ok(None);
        }
        ids.retain(|id| !others.contains(id));
    }
    let (mut digests, mut places) = (Vec::new(), Vec::new());
    for (Added { rows, .. }, positions) in added.iter().zip(&positions) {
        let order: Vec<usize> = ids.iter().map(|id| positions[id] as usize).collect();
        digests.push(order.iter().map(|row| rows.digests[*row]).collect());
        let at = order.iter().map(|row| rows.places[*row]).collect();
        places.push(RowAddresses { port: rows.port.clone(), parts: rows.parts.clone(), at });
    }
    Ok(Some(Joined { ids: StringArray::from_iter_values(&ids), places, pieces: None, none_chosen: None, digests }))
}

/// Reads the rows that were added to an input; `None` if rows of it were removed, changed or stored anew.
fn read(store: &Store, views: &TableStates, input: &Input, filter: Option<&Filter>) -> Result<Option<Added>> {
    let view = &views[&input.table];
    let before = view.before();
    let Some(parts) = added_parts(&before.parts, &view.manifest.parts) else { return Ok(None) };
    if before.schema != view.manifest.schema || view.pending == Pending::Everything {
        return Ok(None);
    }
    let rows = InputRows::of(store, view, &parts, input, filter)?;
    let mut ids: HashSet<String> = rows.ids.iter().flatten().map(str::to_owned).collect();
    if let (Some(_), Pending::Rows(pending)) = (filter, &view.pending) {
        ids.extend(pending.iter().cloned());
    }
    if filter.is_some() && !parts.is_empty() {
        ids.extend(read_ids(store, views, input, &parts)?.iter().flatten().map(str::to_owned));
    }
    Ok(Some(Added { rows, ids }))
}

/// Returns the parts that are new; `None` if an earlier part is gone, or other rows of it are chosen.
fn added_parts(before: &[PartRef], now: &[PartRef]) -> Option<Vec<PartRef>> {
    let old: HashMap<Digest, &PartRef> = before.iter().map(|part| (part.part, part)).collect();
    let (kept, added): (Vec<&PartRef>, Vec<&PartRef>) = now.iter().partition(|part| old.contains_key(&part.part));
    let is_kept = kept.len() == before.len() && kept.iter().all(|part| old[&part.part].chosen == part.chosen);
    is_kept.then(|| added.into_iter().cloned().collect())
}

/// Returns true if an input had a row with one of these ids before.
fn has_any(store: &Store, views: &TableStates, input: &Input, ids: &HashSet<&str>) -> Result<bool> {
    if ids.is_empty() {
        return Ok(false);
    }
    let old = read_ids(store, views, input, &views[&input.table].before().parts)?;
    Ok(old.iter().flatten().any(|id| ids.contains(id)))
}

fn read_ids(store: &Store, views: &TableStates, input: &Input, parts: &[PartRef]) -> Result<StringArray> {
    let stored = views[&input.table].manifest.schema()?;
    let column = [stored.field(0).name().clone()];
    ids_of(&read_table(store, parts, &column, &project(&stored, &column)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_added_where_all_others_stay() {
        let part = |name: &str, chosen: Option<Vec<(u64, u64)>>| PartRef {
            part: Digest::of(name.as_bytes()),
            bytes: 1,
            rows: 9,
            chosen,
        };
        let (a, b, c) = (part("a", None), part("b", Some(vec![(0, 3)])), part("c", None));
        let of = |before: &[&PartRef], now: &[&PartRef]| {
            let all = |parts: &[&PartRef]| parts.iter().map(|part| (*part).clone()).collect::<Vec<_>>();
            added_parts(&all(before), &all(now))
        };
        assert_eq!(of(&[&a, &b], &[&a, &b]), Some(vec![]));
        assert_eq!(of(&[&a, &b], &[&b, &c, &a]), Some(vec![c.clone()]));
        assert_eq!(of(&[], &[&c]), Some(vec![c.clone()]));
        assert_eq!(of(&[&a, &b], &[&a, &c]), None);
        assert_eq!(of(&[&b], &[&part("b", Some(vec![(0, 4)])), &c]), None, "other rows of a part");
    }
}
