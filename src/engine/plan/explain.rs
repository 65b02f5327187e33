//! Finds the causes why a table is not fresh.

use arrow::array::{Array, AsArray};

use super::{
    cause::{Cause, RowChanges, compare},
    state::{Pending, TableStates},
    work::{Planner, TableWork},
};
use crate::engine::{
    Result,
    pipeline::{Input, Table},
    store::{KEY, Manifest, Store, ids_of, project, read_table},
};

/// Returns a cause for each input that is stale itself. A table that is read twice has one.
fn pending(table: &Table, views: &TableStates) -> Vec<Cause> {
    let mut causes = Vec::new();
    for Input { table: name, .. } in &table.inputs {
        let rows = match &views[name].pending {
            Pending::Nothing => continue,
            Pending::Rows(rows) => Some(rows.len() as u64),
            Pending::Everything => None,
        };
        let cause = Cause::Pending { table: name.clone(), rows };
        if !causes.contains(&cause) {
            causes.push(cause);
        }
    }
    causes
}

/// Returns the causes why a table is not fresh: its differences from the published version, in order. `views` holds the
/// published version and the tables above.
pub fn explain(work: &TableWork<'_>, planner: &Planner<'_>, views: &TableStates) -> Result<Vec<Cause>> {
    if work.forced {
        return Ok(vec![Cause::Forced]);
    }
    let table = work.table;
    let previous = views.get(&table.name).map(|view| &view.manifest);
    let Some(previous) = previous.filter(|manifest| !manifest.retired) else {
        return Ok(vec![Cause::New { known: work.stale.is_empty() }]);
    };
    let pending = pending(table, views);
    let mut causes = Vec::new();
    let has_lost = planner.has_lost(previous)? || !work.lost.is_empty() || !work.damaged.is_empty();
    if has_lost {
        causes.push(Cause::Damaged);
    }
    causes.extend(compare(&previous.made, &work.made));
    // Changes of rows are counted once, over all causes, and shown with the first change of an input or the predicate.
    let mut rows = None;
    let comparable = previous.made.fingerprint == work.made.fingerprint && table.is_keyed();
    if comparable && pending.is_empty() && !has_lost {
        rows = Some(row_changes(work, planner.store, previous)?);
    }
    if previous.made.filter != work.made.filter {
        let (from, to) = (previous.made.filter.clone(), work.made.filter.clone());
        causes.push(Cause::Where { from, to, rows: rows.take() });
    }
    let is_pending = |name: &str| pending.iter().any(|c| matches!(c, Cause::Pending { table, .. } if table == name));
    // A table that is read at several ports has a digest for each, and is named once.
    let before = &previous.made.inputs;
    let mut named: Vec<&String> = Vec::new();
    for input in work.made.inputs.iter().filter(|(name, _)| !is_pending(name)) {
        let (name, _) = input;
        let is_changed = before.iter().any(|(other, _)| other == name) && !before.contains(input);
        if is_changed && !named.contains(&name) {
            named.push(name);
            causes.push(Cause::Input { table: name.clone(), rows: rows.take() });
        }
    }
    causes.extend(pending);
    if causes.is_empty() {
        causes.push(match previous.errors.len() as u64 {
            _ if previous.made.model != work.made.model => Cause::Model,
            0 => Cause::Schema,
            rows => Cause::Failed { rows },
        });
    }
    Ok(causes)
}

/// Compares the rows' keys with those of the published table.
fn row_changes(work: &TableWork<'_>, store: &Store, previous: &Manifest) -> Result<RowChanges> {
    if work.kept.is_some() {
        let ids = &work.joined.ids;
        let example = (!ids.is_empty()).then(|| ids.value(0).to_owned());
        return Ok(RowChanges { new: ids.len() as u64, example, ..RowChanges::default() });
    }
    let stored = previous.schema()?;
    let columns = vec![stored.field(0).name().clone(), KEY.to_owned()];
    let batch = read_table(store, &previous.parts, &columns, &project(&stored, &columns)?)?;
    let (ids, keys) = (ids_of(&batch)?, batch.column(1).as_fixed_size_binary());
    let before = ids.iter().flatten().zip(keys.iter().flatten());
    Ok(RowChanges::between(
        before,
        work.joined.ids.iter().flatten().zip(work.keys.iter().map(|key| &key.as_bytes()[..])),
    ))
}
