//! The rows of a table: its inputs joined on their ids, from light columns alone.

use std::collections::HashMap;

use arrow::{
    array::{Array, AsArray, RecordBatch, StringArray, UInt32Array},
    compute::{take, take_record_batch},
    datatypes::SchemaRef,
};
use rayon::prelude::*;

use super::state::{PENDING, Pending, TableState, TableStates};
use crate::engine::{
    Digest, Error, Result,
    identity::{self, content},
    pipeline::{Filter, Input, Table},
    stage::Reads,
    store::{Note, PartRef, Store, ids_of, in_order, light_names, project, read_table, row_digests},
};

/// Joined rows, ascending by id.
pub struct Joined {
    /// Their ids.
    pub ids: StringArray,
    /// Their addresses in each input that is read row by row.
    pub places: Vec<RowAddresses>,
    /// A note if `where:` chooses none of the rows, most likely because of a misspelt value.
    pub(in crate::engine) none_chosen: Option<Note>,
    /// For each input, the digest of the values that are read of each row.
    pub(super) digests: Vec<Vec<Digest>>,
}

/// The addresses of joined rows in one input.
pub struct RowAddresses {
    /// The port.
    pub port: String,
    /// The parts, which `part` in an address counts.
    pub parts: Vec<Digest>,
    /// The address `(part, row)` of each joined row.
    pub at: Vec<(u32, u64)>,
}

/// The address of a row that is not computed yet.
const NOWHERE: (u32, u64) = (u32::MAX, 0);

impl Joined {
    /// Makes the rows of a stage without inputs from its listing, which is sorted by id. An id that is listed twice is
    /// an error.
    pub fn listed(batch: &RecordBatch, digests: Vec<Digest>) -> Result<Self> {
        let ids = ids_of(batch)?;
        if let Some(row) = (1..ids.len()).find(|row| ids.value(*row) == ids.value(row - 1)) {
            return Err(Error::Input(format!("the id `{}` is listed twice", ids.value(row))));
        }
        Ok(Self { ids, digests: vec![digests], places: Vec::new(), none_chosen: None })
    }

    /// Returns the keys of the rows; `base` is the digest of what all rows have in common.
    pub fn keys(&self, base: Digest) -> Vec<Digest> {
        let key = |row| {
            identity::row_key(base, self.ids.value(row), self.digests.iter().map(|digests: &Vec<_>| digests[row]))
        };
        (0..self.ids.len()).into_par_iter().map(key).collect()
    }
}

/// Returns the digest of the values of chosen columns, over all rows of a table.
pub(in crate::engine) fn table_content(store: &Store, view: &TableState, columns: &[String]) -> Result<Digest> {
    if view.pending != Pending::Nothing {
        return Ok(view.content());
    }
    let stored = view.manifest.schema()?;
    let columns = light_names(&stored, columns);
    let read = |columns: &[String], schema: &SchemaRef| read_table(store, &view.manifest.parts, columns, schema);
    Ok(content(&row_digests(&in_order(view.manifest.keyed, &stored, &columns, read)?)?))
}

/// Joins the inputs that are read row by row on their ids, ascending. `where:` first selects rows of the first input.
pub(in crate::engine) fn join(table: &Table, store: &Store, views: &TableStates) -> Result<Joined> {
    let inputs: Vec<&Input> = table.inputs.iter().filter(|input| input.reads == Reads::Rows).collect();
    let Some((first, others)) = inputs.split_first() else {
        let ids = StringArray::new_null(0);
        return Ok(Joined { ids, digests: Vec::new(), places: Vec::new(), none_chosen: None });
    };
    let all_rows = views[&first.table].rows();
    let names: Vec<&str> = inputs.iter().map(|input| input.table.as_str()).collect();
    let first = InputRows::read(store, &views[&first.table], first, table.filter.as_ref())?;
    let others = others
        .iter()
        .map(|input| InputRows::read(store, &views[&input.table], input, None))
        .collect::<Result<Vec<_>>>()?;
    let lookups: Vec<HashMap<&str, u32>> = others.iter().map(InputRows::positions).collect();
    let shared = |row: &u32| lookups.iter().all(|lookup| lookup.contains_key(first.ids.value(*row as usize)));
    let mut order: Vec<u32> = (0..first.ids.len() as u32).filter(shared).collect();
    if order.is_empty() && table.stage.needs_rows() && !table.is_keyed() {
        return Err(Error::Input(no_rows(table, &names, all_rows, first.ids.len())).in_table(&table.name));
    }
    let none_chosen = table.filter.as_ref().filter(|_| first.ids.is_empty() && all_rows > 0);
    let none_chosen = none_chosen.map(|filter| Note::new(fits_none(filter, names[0], all_rows)));
    order.sort_by(|a, b| first.ids.value(*a as usize).cmp(first.ids.value(*b as usize)));
    let order = UInt32Array::from(order);
    let ids = take(&first.ids, &order, None)?.as_string::<i32>().clone();
    let positions = lookups.iter().map(|lookup| ids.iter().flatten().map(|id| lookup[id]).collect());
    let positions: Vec<Vec<u32>> = std::iter::once(order.values().to_vec()).chain(positions).collect();
    let (mut digests, mut places) = (Vec::new(), Vec::new());
    for (light, order) in std::iter::once(first).chain(others).zip(positions) {
        digests.push(order.iter().map(|row| light.digests[*row as usize]).collect());
        let at = order.iter().map(|row| light.places[*row as usize]).collect();
        places.push(RowAddresses { port: light.port, parts: light.parts, at });
    }
    Ok(Joined { ids, digests, places, none_chosen })
}

/// Returns the message about a table that needs rows and has none. Its first input has `all` rows, of which `where:`
/// selects `chosen`.
fn no_rows(table: &Table, inputs: &[&str], all: u64, chosen: usize) -> String {
    let first = inputs.first().copied().unwrap_or_default();
    match &table.filter {
        _ if all == 0 => format!("there is nothing to make it of: `{first}` has no rows"),
        Some(filter) if chosen == 0 => format!("there is nothing to make it of: {}", fits_none(filter, first, all)),
        _ => format!(
            "there is nothing to make it of: none of the {chosen} rows chosen of `{first}` is in all of {}",
            inputs.join(", ")
        ),
    }
}

fn fits_none(filter: &Filter, input: &str, rows: u64) -> String {
    format!("none of the {rows} rows of `{input}` fits `where: {}`", filter.text)
}

/// The light columns of one input.
pub(super) struct InputRows {
    pub(super) port: String,
    pub(super) ids: StringArray,
    pub(super) digests: Vec<Digest>,
    pub(super) parts: Vec<Digest>,
    pub(super) places: Vec<(u32, u64)>,
}

impl InputRows {
    /// Returns the number of each row by its id.
    pub(super) fn positions(&self) -> HashMap<&str, u32> {
        (0..self.ids.len()).map(|row| (self.ids.value(row), row as u32)).collect()
    }

    fn read(store: &Store, view: &TableState, input: &Input, filter: Option<&Filter>) -> Result<Self> {
        Self::of(store, view, &view.manifest.parts, input, filter)
    }

    /// Reads the rows of some parts, and appends the rows of the table that are still to be computed.
    pub(super) fn of(
        store: &Store,
        view: &TableState,
        parts: &[PartRef],
        input: &Input,
        filter: Option<&Filter>,
    ) -> Result<Self> {
        let stored = view.manifest.schema()?;
        let declared = light_names(&stored, &input.columns);
        let mut columns = vec![stored.field(0).name().clone()];
        for name in declared.iter().chain(filter.iter().flat_map(|f| &f.columns)) {
            if !columns.contains(name) {
                columns.push(name.clone());
            }
        }
        let schema = project(&stored, &columns)?;
        let mut batch = read_table(store, parts, &columns, &schema)?;
        let mut places = places(parts);
        if let Some(filter) = filter {
            let kept = filter.evaluate(&batch)?;
            let chosen: UInt32Array = (0..batch.num_rows())
                .filter(|row| kept.is_valid(*row) && kept.value(*row))
                .map(|row| row as u32)
                .collect();
            batch = take_record_batch(&batch, &chosen)?;
            places = chosen.values().iter().map(|row| places[*row as usize]).collect();
        }
        let indices = declared.iter().map(|name| schema.index_of(name)).collect::<Result<Vec<_>, _>>()?;
        let mut digests = row_digests(&batch.project(&indices)?)?;
        let mut ids = ids_of(&batch)?;
        if let Pending::Rows(pending) = &view.pending {
            let may_be_chosen = pending_choice(filter, view.known.as_ref())?;
            let pending = pending.iter().zip(may_be_chosen).filter(|(_, may)| *may).map(|(id, _)| id.as_str());
            ids = ids.iter().flatten().chain(pending).map(Some).collect();
            digests.resize(ids.len(), Digest::of(PENDING));
            places.resize(ids.len(), NOWHERE);
        }
        let parts = parts.iter().map(|part| part.part).collect();
        Ok(Self { port: input.port.clone(), ids, digests, parts, places })
    }
}

/// Returns for each row that is still to be computed true if `where:` may select it. If a column that it names is not
/// known yet, it may select every row.
fn pending_choice(filter: Option<&Filter>, known: Option<&RecordBatch>) -> Result<Box<dyn Iterator<Item = bool>>> {
    if let (Some(filter), Some(known)) = (filter, known)
        && filter.columns.iter().all(|column| known.column_by_name(column).is_some())
    {
        let chosen = filter.evaluate(known)?;
        return Ok(Box::new((0..chosen.len()).map(move |row| chosen.is_valid(row) && chosen.value(row))));
    }
    Ok(Box::new(std::iter::repeat(true)))
}

/// Returns the address of each row of a table: part and row.
fn places(parts: &[PartRef]) -> Vec<(u32, u64)> {
    let rows = |(part, number): (&PartRef, u32)| part.row_numbers().into_iter().map(move |row| (number, row));
    parts.iter().zip(0..).flat_map(rows).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::run::toys::{CHAIN, World, edited};

    /// A table made of two others, which have some ids in common.
    fn joined() -> String {
        let others = "  others: { stage: list, with: { rows: { d: 1, c: 1, a: 1 } } }\n  more:";
        edited(&edited(CHAIN, "  more:", others), "from: [numbers]", "from: [numbers, others]")
    }

    fn ids(world: &World, text: &str) -> Vec<String> {
        world.work(text, "more", |work, _| work.joined.ids.iter().flatten().map(str::to_owned).collect())
    }

    /// Makes a store in which the tables above `more` are published.
    fn above(text: &str) -> World {
        World::after(text.split("  more:").next().unwrap())
    }

    #[test]
    fn rows_are_those_that_all_inputs_have_ascending_by_id() {
        let text = joined();
        assert_eq!(ids(&above(&text), &text), ["a", "c"]);
        above(&text).work(&text, "more", |work, _| {
            let ports: Vec<&str> = work.joined.places.iter().map(|places| places.port.as_str()).collect();
            assert_eq!(ports, ["numbers", "others"]);
            assert!(work.joined.places.iter().all(|places| places.at.len() == 2));
        });
    }

    #[test]
    fn predicate_chooses_from_the_first_input_alone() {
        let text = edited(&joined(), "from: [numbers, others]", "from: [numbers, others], where: number > 1");
        // In `others`, the number of every row is 1.
        assert_eq!(ids(&above(&text), &text), ["c"]);
    }

    #[test]
    fn predicate_on_null_chooses_no_row() {
        let text = edited(CHAIN, "c: 3 }", "c: 3 }, notes: { b: x, c: z }");
        let text = edited(&text, "from: [numbers]", "from: [numbers], where: \"note <> 'x'\"");
        assert_eq!(ids(&above(&text), &text), ["c"]);
    }

    #[test]
    fn predicate_that_chooses_no_row_is_a_note() {
        let text = edited(CHAIN, "from: [numbers]", "from: [numbers], where: number > 9");
        let note = above(&text).work(&text, "more", |work, _| work.joined.none_chosen.clone());
        assert_eq!(note.unwrap().to_string(), "none of the 3 rows of `numbers` fits `where: number > 9`");
        let none = edited(&text, "rows: { a: 1, b: 2, c: 3 }", "rows: {}");
        assert!(above(&none).work(&none, "more", |work, _| work.joined.none_chosen.is_none()), "there are no rows");
    }

    #[test]
    fn id_that_is_listed_twice_is_an_error() {
        let ids: arrow::array::ArrayRef = std::sync::Arc::new(StringArray::from(vec!["a", "b", "b"]));
        let rows = RecordBatch::try_from_iter([("id", ids)]).unwrap();
        let error = Joined::listed(&rows, vec![Digest::of(b"row"); 3]).err().unwrap();
        assert_eq!(error.to_string(), "the id `b` is listed twice");
    }

    #[test]
    fn keys_differ_by_id_content_and_what_all_rows_have_in_common() {
        let joined = |id: &str, content: &[u8]| Joined {
            ids: StringArray::from_iter_values([id]),
            places: Vec::new(),
            none_chosen: None,
            digests: vec![vec![Digest::of(content)]],
        };
        let key = |id, content, base| joined(id, content).keys(Digest::of(base))[0];
        let keys = [key("a", b"1", b"x"), key("b", b"1", b"x"), key("a", b"2", b"x"), key("a", b"1", b"y")];
        assert_eq!(keys.iter().collect::<std::collections::BTreeSet<_>>().len(), 4);
        assert_eq!(keys[0], key("a", b"1", b"x"));
    }
}
