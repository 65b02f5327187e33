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
    Digest, Error, Hasher, Result,
    identity::{self, content},
    pipeline::{Filter, Input, Table},
    stage::{Reads, row_of_piece},
    store::{Note, PartRef, Store, ids_of, in_order, light_names, project, read_table, row_digests},
};

/// Joined rows, ascending by id.
pub struct Joined {
    /// Their ids.
    pub ids: StringArray,
    /// Their addresses in each input that is read row by row.
    pub places: Vec<RowAddresses>,
    /// Their pieces, if an input is read by pieces.
    pub pieces: Option<JoinedPieces>,
    /// A note if `where:` chooses none of the rows, most likely because of a misspelt value.
    pub(in crate::engine) none_chosen: Option<Note>,
    /// For each input, the digest of the values that are read of each row; the pieces of a row have one together.
    pub(super) digests: Vec<Vec<Digest>>,
}

/// The pieces of joined rows, one row after another.
pub struct JoinedPieces {
    /// The end of the pieces of each row.
    pub ends: Vec<usize>,
    /// Their ids, ascending in each row.
    pub ids: StringArray,
    /// Their addresses in each input that is read by pieces.
    pub places: Vec<RowAddresses>,
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
        Ok(Self { ids, digests: vec![digests], places: Vec::new(), pieces: None, none_chosen: None })
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

/// Joins the inputs that are read row by row on their ids, ascending, and with their pieces. `where:` first selects rows
/// of the first input.
pub(in crate::engine) fn join(table: &Table, store: &Store, views: &TableStates) -> Result<Joined> {
    let inputs = |reads| table.inputs.iter().filter(move |input| input.reads == reads);
    let read = |input: &Input, filter| InputRows::read(store, &views[&input.table], input, filter);
    let mut by_row = inputs(Reads::Rows);
    let Some(first) = by_row.next() else {
        let ids = StringArray::new_null(0);
        return Ok(Joined { ids, digests: Vec::new(), places: Vec::new(), pieces: None, none_chosen: None });
    };
    let mut rows = vec![read(first, table.filter.as_ref())?];
    for input in by_row {
        rows.push(read(input, None)?);
    }
    let pieces = inputs(Reads::Pieces).map(|input| read(input, None)).collect::<Result<Vec<_>>>()?;
    let pieces = if pieces.is_empty() { None } else { Some(Aligned::of(pieces, |_| true)?) };
    let pieces = pieces.as_ref().map(|pieces| (pieces, pieces.by_row()));
    let (all_rows, chosen) = (views[&first.table].rows(), rows[0].ids.len());
    let has_pieces = |id: &str| pieces.as_ref().is_none_or(|(_, by_row)| by_row.contains_key(id));
    let Aligned { ids, mut digests, places } = Aligned::of(rows, has_pieces)?;
    let names: Vec<&str> = inputs(Reads::Rows).chain(inputs(Reads::Pieces)).map(|input| input.table.as_str()).collect();
    if ids.is_empty() && table.stage.needs_rows() && !table.is_keyed() {
        return Err(Error::Input(no_rows(table, &names, all_rows, chosen)).in_table(&table.name));
    }
    let none_chosen = table.filter.as_ref().filter(|_| chosen == 0 && all_rows > 0);
    let none_chosen = none_chosen.map(|filter| Note::new(fits_none(filter, names[0], all_rows)));
    let mut joined_pieces = None;
    if let Some((pieces, by_row)) = pieces {
        let of: Vec<&[u32]> = ids.iter().flatten().map(|id| by_row[id].as_slice()).collect();
        digests.push(of.iter().map(|of| pieces.digest(of)).collect());
        joined_pieces = Some(pieces.of_rows(&of)?);
    }
    Ok(Joined { ids, digests, places, pieces: joined_pieces, none_chosen })
}

/// Inputs that are joined on their ids, ascending.
struct Aligned {
    ids: StringArray,
    /// For each input, the digest of the values that are read of each row.
    digests: Vec<Vec<Digest>>,
    /// Their addresses in each input.
    places: Vec<RowAddresses>,
}

impl Aligned {
    /// Joins inputs, of which there is at least one. Ids that are not wanted are left out.
    fn of(inputs: Vec<InputRows>, is_wanted: impl Fn(&str) -> bool) -> Result<Self> {
        let (first, others) = (&inputs[0], &inputs[1..]);
        let lookups: Vec<HashMap<&str, u32>> = others.iter().map(InputRows::positions).collect();
        let shared = |row: &u32| {
            let id = first.ids.value(*row as usize);
            lookups.iter().all(|lookup| lookup.contains_key(id)) && is_wanted(id)
        };
        let mut order: Vec<u32> = (0..first.ids.len() as u32).filter(shared).collect();
        order.sort_by(|a, b| first.ids.value(*a as usize).cmp(first.ids.value(*b as usize)));
        let order = UInt32Array::from(order);
        let ids = take(&first.ids, &order, None)?.as_string::<i32>().clone();
        let positions = lookups.iter().map(|lookup| ids.iter().flatten().map(|id| lookup[id]).collect());
        let positions: Vec<Vec<u32>> = std::iter::once(order.values().to_vec()).chain(positions).collect();
        let (mut digests, mut places) = (Vec::new(), Vec::new());
        for (light, order) in inputs.into_iter().zip(positions) {
            digests.push(order.iter().map(|row| light.digests[*row as usize]).collect());
            let at = order.iter().map(|row| light.places[*row as usize]).collect();
            places.push(RowAddresses { port: light.port, parts: light.parts, at });
        }
        Ok(Self { ids, digests, places })
    }

    /// Returns the pieces of each row that has any, ascending by id.
    fn by_row(&self) -> HashMap<&str, Vec<u32>> {
        let mut rows: HashMap<&str, Vec<u32>> = HashMap::new();
        for (id, number) in self.ids.iter().flatten().zip(0..) {
            if let Some(row) = row_of_piece(id) {
                rows.entry(row).or_default().push(number);
            }
        }
        rows
    }

    /// Returns the digest of some pieces: of their ids and of what is read of them.
    fn digest(&self, pieces: &[u32]) -> Digest {
        let mut hasher = Hasher::new("pieces");
        for piece in pieces.iter().map(|piece| *piece as usize) {
            hasher.field(self.ids.value(piece).as_bytes());
            self.digests.iter().for_each(|digests| {
                hasher.field(digests[piece].as_bytes());
            });
        }
        hasher.finish()
    }

    /// Returns the pieces of rows, one row after another.
    fn of_rows(&self, rows: &[&[u32]]) -> Result<JoinedPieces> {
        let count = |end: &mut usize, pieces: &&[u32]| {
            *end += pieces.len();
            Some(*end)
        };
        let ends = rows.iter().scan(0, count).collect();
        let order: UInt32Array = rows.iter().flat_map(|pieces| pieces.iter().copied()).collect::<Vec<u32>>().into();
        let ids = take(&self.ids, &order, None)?.as_string::<i32>().clone();
        let places = self.places.iter().map(|RowAddresses { port, parts, at }| RowAddresses {
            port: port.clone(),
            parts: parts.clone(),
            at: order.values().iter().map(|piece| at[*piece as usize]).collect(),
        });
        Ok(JoinedPieces { ends, ids, places: places.collect() })
    }
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
    use crate::engine::{
        run::toys::{CHAIN, PIECES, World, edited},
        store::sort_by_id,
    };

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

    /// Returns the rows of `sums`, as `id number`.
    fn sums(world: &World) -> Vec<String> {
        let (_, manifest) = world.store.published("toy", "sums").unwrap().whole().unwrap().unwrap();
        let columns = ["id", "number"].map(str::to_owned);
        let schema = project(&manifest.schema().unwrap(), &columns).unwrap();
        let rows = sort_by_id(read_table(&world.store, &manifest.parts, &columns, &schema).unwrap()).unwrap();
        let numbers = rows.column(1).as_primitive::<arrow::datatypes::Int64Type>().clone();
        ids_of(&rows).unwrap().iter().flatten().zip(numbers.values()).map(|(id, sum)| format!("{id} {sum}")).collect()
    }

    #[test]
    fn row_is_joined_with_its_pieces_and_left_out_without_any() {
        let world = World::after(PIECES);
        assert_eq!(sums(&world), ["a 31", "c 33"]);
        world.run(&edited(PIECES, "d@1: 40", "b@1: 40, d: 5")).unwrap();
        assert_eq!(sums(&world), ["a 31", "b 42", "c 33"]);
    }

    #[test]
    fn pieces_are_those_that_all_inputs_have() {
        let others = "  others: { stage: list, with: { rows: { a@2: 100, a@3: 200, c@1: 300 } } }\n  sums:";
        let text = edited(&edited(PIECES, "  sums:", others), "[numbers, pieces]", "[numbers, pieces, others]");
        assert_eq!(sums(&World::after(&text)), ["a 121", "c 333"]);
    }

    #[test]
    fn row_with_a_changed_piece_is_the_only_stale_one() {
        let world = World::after(PIECES);
        let plans = world.plan(&edited(PIECES, "a@2: 20", "a@2: 25"));
        assert_eq!(plans[2], "sums: at most 1 of 2: 1 row of pieces is computed first");
        for (part, by) in [("a@2: 20", "a@2: 25"), (", a@2: 20", ""), ("d@1: 40", "b@1: 40"), ("b: 2", "b: 2, d: 4")] {
            let computed = World::after(PIECES).run(&edited(PIECES, part, by)).unwrap();
            assert_eq!(computed.last().unwrap(), "sums 1", "{by}");
        }
        let removed = World::after(PIECES).run(&edited(PIECES, ", c@1: 30", "")).unwrap();
        assert_eq!(removed, ["pieces 0", "sums 0"]);
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
            pieces: None,
            none_chosen: None,
            digests: vec![vec![Digest::of(content)]],
        };
        let key = |id, content, base| joined(id, content).keys(Digest::of(base))[0];
        let keys = [key("a", b"1", b"x"), key("b", b"1", b"x"), key("a", b"2", b"x"), key("a", b"1", b"y")];
        assert_eq!(keys.iter().collect::<std::collections::BTreeSet<_>>().len(), 4);
        assert_eq!(keys[0], key("a", b"1", b"x"));
    }
}
