//! The right answer. Each table is computed from the values of the sources without code of the engine, and so is the
//! information that each row depends on, which determines the number of rows that must be computed.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher},
};

use serde_json::{Value, json};

use super::{
    pipeline::{Filter, Instance, Makes, Stage},
    sources::{Class, Picture, Row, SIDE, Sources, mask_path},
};

/// The right content of a table.
#[derive(Clone, Debug)]
pub(super) struct Made {
    pub(super) rows: Vec<Row>,
    /// The number of rows that fail.
    pub(super) failed: usize,
    /// A digest of all that each row is computed from, with all differences that the engine promises to distinguish;
    /// a single one for a table that is computed as a whole. A row whose key occurred before must not be computed
    /// again.
    pub(super) keys: Vec<u64>,
    /// These digests without the names and the order of inputs. A row whose key never occurred must be computed.
    pub(super) least: Vec<u64>,
    pub(super) stage: Stage,
    /// The stages above the table, which determine the types of its columns.
    lineage: String,
}

/// The reason why a table cannot be made.
#[derive(Debug)]
pub(super) enum Wrong {
    /// An input is refused.
    Input,
    /// Rows fail although none may; the others succeed.
    Rows(Made),
}

impl Made {
    /// Returns the number of rows to compute, given which of the keys are already computed.
    pub(super) fn missing(&self, is_known: impl Fn(usize) -> bool) -> usize {
        let missing = (0..self.keys.len()).filter(|at| !is_known(*at)).count();
        if self.stage.makes() == Makes::RowPerRow { missing } else { missing * self.rows.len() }
    }

    fn row(&self, id: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row[self.stage.id()] == id)
    }

    fn ids(&self) -> BTreeSet<&str> {
        self.rows.iter().filter_map(|row| row[self.stage.id()].as_str()).collect()
    }
}

fn digest(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

/// Makes a table; `inputs` are in the order of the ports.
pub(super) fn make(instance: &Instance, inputs: &[&Made], sources: &Sources) -> Result<Made, Wrong> {
    let stage = &instance.table.stage;
    match stage {
        Stage::Read(file) => {
            let rows = &sources.records[file];
            let ids: BTreeSet<&str> = rows.iter().filter_map(|row| row["id"].as_str()).collect();
            if ids.len() < rows.len() {
                return Err(Wrong::Input);
            }
            let key = |row: &Row| format!("{stage:?} {}", json!(row));
            Ok(listed(stage, rows.iter().map(|row| (key(row), Some(row.clone())))))
        }
        Stage::Ingest { size } => {
            let classes = sources.classes.iter();
            let pictures = classes.flat_map(|(name, class)| {
                class.pictures.iter().map(move |(path, picture)| (name, class, path, picture))
            });
            let made = pictures.map(|(name, class, path, picture)| {
                let row = picture_row(name, class, path, picture);
                let Picture { colour, is_broken, .. } = picture;
                let mask = mask(class, path, picture);
                let key = format!("ingest {size} {} {colour:?} {is_broken} {mask}", json!(row));
                (key, (!picture.is_broken).then_some(row))
            });
            let made = listed(stage, made);
            if made.failed > 0 && !instance.table.skips { Err(Wrong::Rows(made)) } else { Ok(made) }
        }
        _ if stage.makes() == Makes::RowPerRow => Ok(row_by_row(instance, inputs)),
        _ => Ok(whole(instance, inputs, sources)),
    }
}

/// Returns the rows of a source, with the data that each is computed from. Rows that fail are `None`.
fn listed(stage: &Stage, rows: impl Iterator<Item = (String, Option<Row>)>) -> Made {
    let rows: Vec<(String, Option<Row>)> = rows.collect();
    let keys: Vec<u64> = rows.iter().filter(|(_, row)| row.is_some()).map(|(key, _)| digest(key)).collect();
    Made {
        failed: rows.iter().filter(|(_, row)| row.is_none()).count(),
        rows: rows.into_iter().filter_map(|(_, row)| row).collect(),
        least: keys.clone(),
        keys,
        stage: stage.clone(),
        lineage: format!("{stage:?}"),
    }
}

/// Returns true for each half of a picture that its mask marks, the left and the right one; `None` if there is no
/// mask.
fn halves(class: &Class, path: &str, picture: &Picture) -> Option<[bool; 2]> {
    match mask_path(path) {
        None => Some([false; 2]),
        Some(_) if class.has_masks => Some([picture.left, !picture.left]),
        Some(_) => None,
    }
}

fn mask(class: &Class, path: &str, picture: &Picture) -> Value {
    json!(mask_path(path).filter(|_| class.has_masks).map(|_| picture.left))
}

fn picture_row(class_name: &str, class: &Class, path: &str, picture: &Picture) -> Row {
    let parts: Vec<&str> = path.split('/').collect();
    let mut row = Row::from([
        ("image_id".to_owned(), json!(format!("{class_name}/{path}"))),
        ("class".to_owned(), json!(class_name)),
        ("split".to_owned(), json!(parts[0])),
        ("label".to_owned(), json!(parts[1] != "good")),
        ("defect".to_owned(), json!(parts[1])),
        ("width".to_owned(), json!(SIDE)),
        ("height".to_owned(), json!(SIDE)),
        ("file_digest".to_owned(), json!(blake3::hash(&picture.file()).to_hex()[..32])),
        ("first".to_owned(), json!(picture.colour[0])),
        ("last".to_owned(), json!(picture.colour[2])),
    ]);
    row.extend(picture.caption.iter().map(|caption| ("caption".to_owned(), json!(caption))));
    if let Some([left, right]) = halves(class, path, picture) {
        row.extend([("left".to_owned(), json!(left)), ("right".to_owned(), json!(right))]);
    }
    row
}

/// Returns some columns of a row.
fn only(row: &Row, columns: &[&str]) -> Value {
    columns.iter().map(|column| (*column).to_owned()).zip(columns.iter().map(|c| json!(row.get(*c)))).collect()
}

/// Returns some columns of a whole table, in the order of its ids.
fn content(made: &Made, columns: &[&str]) -> String {
    let mut rows: Vec<&Row> = made.rows.iter().collect();
    rows.sort_by_key(|row| row.get(made.stage.id()).map(ToString::to_string));
    json!(rows.iter().map(|row| only(row, columns)).collect::<Vec<_>>()).to_string()
}

/// Returns everything that a row or a table is computed from beside the inputs' values: with the names and the order
/// of inputs, and without them.
fn base(instance: &Instance, inputs: &[&Made], sources: Option<&Sources>) -> (String, String) {
    let stage = &instance.table.stage;
    let program = sources.filter(|_| *stage == Stage::Copy).map(Sources::tool_text);
    let least = format!("{stage:?} {program:?}");
    let inputs: Vec<String> =
        instance.port_order().iter().map(|at| format!("{} {}", stage.ports()[*at], inputs[*at].lineage)).collect();
    (format!("{least} {inputs:?}"), least)
}

fn lineage(instance: &Instance, inputs: &[&Made]) -> String {
    let above: Vec<&str> = inputs.iter().map(|made| made.lineage.as_str()).collect();
    let stage = format!("{:?}", instance.table.stage);
    format!("{}({})", stage.split([' ', '{']).next().unwrap(), above.join(","))
}

fn whole(instance: &Instance, inputs: &[&Made], sources: &Sources) -> Made {
    let stage = &instance.table.stage;
    let input = inputs[0];
    let numbers = || input.rows.iter().filter_map(|row| row.get("n").and_then(Value::as_i64));
    let rows = match stage {
        Stage::Keep { above, .. } => {
            let kept = |row: &&Row| Filter::Above(*above).chooses(row, "id");
            input.rows.iter().filter(kept).map(id_and_n).collect()
        }
        Stage::Total => {
            let mut row = Row::from([("c".to_owned(), json!(input.rows.len()))]);
            if numbers().next().is_some() {
                row.insert("n".to_owned(), json!(numbers().sum::<i64>()));
            }
            vec![row]
        }
        _ => input.rows.iter().map(id_and_n).collect(),
    };
    let (full, least) = base(instance, inputs, Some(sources));
    let read = content(input, stage.columns("rows"));
    let (keys, least) = (vec![digest(&(full + &read))], vec![digest(&(least + &read))]);
    Made { rows, failed: 0, keys, least, stage: stage.clone(), lineage: lineage(instance, inputs) }
}

fn id_and_n(row: &Row) -> Row {
    row.iter().filter(|(column, _)| *column == "id" || *column == "n").map(|(c, v)| (c.clone(), v.clone())).collect()
}

fn row_by_row(instance: &Instance, inputs: &[&Made]) -> Made {
    let stage = &instance.table.stage;
    let order = instance.port_order();
    let by_row: Vec<usize> = order.iter().copied().filter(|at| inputs[*at].stage.has_ids()).collect();
    let first = inputs[by_row[0]];
    let is_chosen = |id: &&str| {
        let row = first.row(id).unwrap();
        instance.table.filter.as_ref().is_none_or(|filter| filter.chooses(row, first.stage.id()))
    };
    let shared = first.ids().into_iter().filter(|id| by_row.iter().all(|at| inputs[*at].row(id).is_some()));
    let (full, least) = base(instance, inputs, None);
    let mut made = Made {
        rows: Vec::new(),
        failed: 0,
        keys: Vec::new(),
        least: Vec::new(),
        stage: stage.clone(),
        lineage: lineage(instance, inputs),
    };
    for id in shared.filter(is_chosen) {
        let read = |at: &usize| {
            let columns = stage.columns(stage.ports()[*at]);
            match by_row.contains(at) {
                true => only(inputs[*at].row(id).unwrap(), columns).to_string(),
                false => content(inputs[*at], columns),
            }
        };
        let read: BTreeMap<usize, String> = order.iter().map(|at| (*at, read(at))).collect();
        made.keys.push(digest(&format!("{full} {id} {read:?}")));
        made.least.push(digest(&format!("{least} {id} {read:?}")));
        made.rows.push(answer(stage, id, inputs));
    }
    made
}

/// Computes the row that a stage makes from the inputs' rows with an id.
fn answer(stage: &Stage, id: &str, inputs: &[&Made]) -> Row {
    let rows: Vec<Option<&Row>> =
        inputs.iter().map(|made| if made.stage == Stage::Total { made.rows.first() } else { made.row(id) }).collect();
    let value = |at: usize, column: &str| rows[at].and_then(|row| row.get(column)).cloned();
    let number = |at: usize| value(at, "n").and_then(|n| n.as_i64());
    let values: Vec<(&str, Option<Value>)> = match stage {
        Stage::Caption { default } => {
            let class = value(0, "class").unwrap();
            let caption =
                value(0, "caption").unwrap_or_else(|| json!(default.replace("{class}", class.as_str().unwrap())));
            vec![("caption", Some(caption))]
        }
        Stage::Lengths => vec![("n", value(0, "caption").map(|text| json!(text.as_str().unwrap().chars().count())))],
        Stage::Parts => {
            let item = |column: &str, at: usize| value(0, column).and_then(|list| list.get(at).cloned());
            let part = value(0, "part");
            let part = |name: &str| part.as_ref().and_then(|part| part.get(name).cloned());
            let word = part("words").and_then(|words| words.get(0).cloned());
            let items = [("v1", item("votes", 0)), ("v2", item("votes", 1)), ("g1", item("grades", 0))];
            [("n", value(0, "n"))].into_iter().chain(items).chain([("pa", part("a")), ("w1", word)]).collect()
        }
        Stage::Scale { by } => {
            let word = if number(0).is_some() { "some" } else { "none" };
            vec![("n", number(0).map(|n| json!(n * by))), ("t", Some(json!(word)))]
        }
        Stage::Add => vec![("n", number(0).zip(number(1)).map(|(l, r)| json!(l + r)))],
        Stage::Against => vec![("n", number(0).map(|n| json!(n - number(1).unwrap_or(0))))],
        Stage::Left => vec![("n", value(0, "n")), ("m", value(1, "n"))],
        _ => vec![("n", value(0, "n"))],
    };
    let present =
        values.into_iter().filter_map(|(column, value)| Some((column.to_owned(), value.filter(|v| !v.is_null())?)));
    std::iter::once((stage.id().to_owned(), json!(id))).chain(present).collect()
}
