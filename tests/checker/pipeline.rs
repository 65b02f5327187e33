//! Pipelines of the checker: tables of a few stages over numbers and pictures, and their YAML.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::sources::{File, Row};

/// The three kinds of results of a stage: a row for each row, rows with ids of their own, or a table without ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Makes {
    RowPerRow,
    Rows,
    Table,
}

/// A stage with its parameters. Most read tables with an `id` and a number `n`, which may be null, and make such
/// tables.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Stage {
    /// Reads the records of a file.
    Read(File),
    /// Reads the pictures.
    Ingest { size: u32 },
    /// Reads pictures' captions.
    Caption { default: String },
    /// Computes the lengths of captions.
    Lengths,
    /// Extracts items of the lists and structures in the Parquet file.
    Parts,
    /// Multiplies `n` by a number.
    Scale { by: i64 },
    /// Adds two tables' numbers, by id.
    Add,
    /// Keeps rows whose number is above a limit; `makes` is `Rows` or `Table`.
    Keep { above: i64, makes: Makes },
    /// Counts the rows and adds their numbers.
    Total,
    /// Subtracts a total from each number.
    Against,
    /// Puts each number beside that of another table, if that has the id.
    Left,
    /// Copies rows by a program that copies a Parquet file.
    Copy,
    /// Copies rows by a program that answers on its standard output.
    Pass,
}

impl Stage {
    pub(super) fn makes(&self) -> Makes {
        match self {
            Self::Keep { makes, .. } => *makes,
            Self::Total => Makes::Table,
            Self::Copy => Makes::Rows,
            _ => Makes::RowPerRow,
        }
    }

    pub(super) fn has_ids(&self) -> bool {
        self.makes() != Makes::Table
    }

    /// Returns the column that identifies a row.
    pub(super) fn id(&self) -> &'static str {
        if matches!(self, Self::Ingest { .. } | Self::Caption { .. }) { "image_id" } else { "id" }
    }

    /// Returns true for a stage whose table has an `id` and `n`.
    fn is_numeric(&self) -> bool {
        !matches!(self, Self::Ingest { .. } | Self::Caption { .. } | Self::Total)
    }

    /// Returns the inputs by name.
    pub(super) fn ports(&self) -> &'static [&'static str] {
        match self {
            Self::Read(_) | Self::Ingest { .. } => &[],
            Self::Caption { .. } => &["images"],
            Self::Add | Self::Against | Self::Left => &["l", "r"],
            _ => &["rows"],
        }
    }

    /// Returns true if a table of the other stage can be read at a port.
    pub(super) fn takes(&self, port: &str, other: &Self) -> bool {
        match (self, port) {
            (Self::Caption { .. }, _) => matches!(other, Self::Ingest { .. }),
            (Self::Lengths, _) => matches!(other, Self::Caption { .. }),
            (Self::Parts, _) => *other == Self::Read(File::Parquet),
            (Self::Against, "r") => *other == Self::Total,
            (Self::Left, "r") | (Self::Keep { .. } | Self::Total | Self::Copy, _) => other.is_numeric(),
            _ => other.is_numeric() && other.has_ids(),
        }
    }

    /// Returns the columns that it is declared to read from a port.
    pub(super) fn columns(&self, port: &str) -> &'static [&'static str] {
        match (self, port) {
            (Self::Caption { .. }, _) => &["caption", "class"],
            (Self::Lengths, _) => &["caption"],
            (Self::Parts, _) => &["n", "votes", "grades", "part"],
            (Self::Total, _) | (Self::Against, "r") => &["n"],
            (Self::Keep { .. } | Self::Copy | Self::Left, _) => &["id", "n"],
            _ => &["n"],
        }
    }

    /// Returns the query of a stage `sql`.
    fn query(&self) -> Option<String> {
        Some(match self {
            Self::Lengths => "select image_id as id, cast(character_length(caption) as bigint) as n from rows".into(),
            Self::Parts => "select id, n, votes[1] as v1, votes[2] as v2, grades[1] as g1, part['a'] as pa, \
                            part['words'][1] as w1 from rows"
                .into(),
            Self::Scale { by } => {
                format!("select id, n * {by} as n, case when n is null then 'none' else 'some' end as t from rows")
            }
            Self::Add => "select l.id, l.n + r.n as n from l join r on l.id = r.id".into(),
            Self::Keep { above, .. } => format!("select id, n from rows where n > {above}"),
            Self::Total => "select count(*) as c, sum(n) as n from rows".into(),
            Self::Against => "select l.id, l.n - coalesce(r.n, 0) as n from l cross join r".into(),
            Self::Left => "select l.id, l.n as n, r.n as m from l left join r on l.id = r.id".into(),
            _ => return None,
        })
    }

    /// Returns the stage's name and its parameters.
    fn yaml(&self) -> (&'static str, Value) {
        match self {
            Self::Read(File::Parquet) => ("read", json!({ "path": File::Parquet.name(), "id": "id" })),
            Self::Read(file) => ("read", json!({ "path": file.name(), "id": "id", "types": file.types() })),
            Self::Ingest { size } => ("ingest", json!({ "dataset": "folder", "root": "photos", "size": size })),
            Self::Caption { default } => ("caption", json!({ "model": "dataset", "default": default })),
            Self::Copy => {
                let output = json!({ "id": "utf8", "n": "int64?" });
                let run = "sh tool.sh {rows} {output}";
                ("command", json!({ "run": run, "columns": ["id", "n"], "output": output, "makes": "rows" }))
            }
            Self::Pass => ("command", json!({ "run": "cat", "columns": ["n"], "output": { "n": "int64?" } })),
            _ => {
                let makes = match self.makes() {
                    Makes::RowPerRow => "row_per_row",
                    Makes::Rows => "rows",
                    Makes::Table => "table",
                };
                ("sql", json!({ "query": self.query(), "makes": makes }))
            }
        }
    }

    /// Returns the parameter that a sweep or `--set` may set, and its value.
    pub(super) fn setting(&self) -> Option<(&'static str, String)> {
        match self {
            Self::Caption { default } => Some(("default", default.clone())),
            Self::Scale { .. } => Some(("query", self.query()?)),
            _ => None,
        }
    }
}

/// The predicate that selects rows of the first input.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Filter {
    Above(i64),
    Null,
    Even,
    UpTo(String),
    Train,
    Captioned,
}

impl Filter {
    /// Returns the predicate for a table with this column of ids.
    fn text(&self, id: &str) -> String {
        match self {
            Self::Above(n) => format!("n > {n}"),
            Self::Null => "n is null".into(),
            Self::Even => "n % 2 = 0".into(),
            Self::UpTo(last) => format!("{id} <= '{last}'"),
            Self::Train => "split = 'train'".into(),
            Self::Captioned => "caption is not null".into(),
        }
    }

    pub(super) fn fits(&self, input: &Stage) -> bool {
        match self {
            Self::Above(_) | Self::Null | Self::Even => input.is_numeric(),
            Self::UpTo(_) => true,
            Self::Train => matches!(input, Stage::Ingest { .. }),
            Self::Captioned => matches!(input, Stage::Ingest { .. } | Stage::Caption { .. }),
        }
    }

    /// Returns true if it selects a row; an unknown answer (null) does not.
    pub(super) fn chooses(&self, row: &Row, id: &str) -> bool {
        let n = row.get("n").and_then(Value::as_i64);
        match self {
            Self::Above(least) => n.is_some_and(|n| n > *least),
            Self::Null => n.is_none(),
            Self::Even => n.is_some_and(|n| n % 2 == 0),
            Self::UpTo(last) => row[id].as_str().unwrap() <= last.as_str(),
            Self::Train => row["split"] == "train",
            Self::Captioned => row.contains_key("caption"),
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Table {
    pub(super) name: String,
    pub(super) stage: Stage,
    /// The tables at the stage's ports.
    pub(super) from: Vec<String>,
    /// True if `from:` names the second input first.
    pub(super) is_turned: bool,
    pub(super) filter: Option<Filter>,
    /// True for `on_error: skip`.
    pub(super) skips: bool,
}

impl Table {
    /// Makes a table of all rows of its inputs.
    pub(super) fn new(name: &str, stage: Stage, from: &[&str]) -> Self {
        let from = from.iter().map(|name| (*name).to_owned()).collect();
        Self { name: name.to_owned(), stage, from, is_turned: false, filter: None, skips: false }
    }
}

/// An axis of a sweep: several stages of one kind in place of a table's own.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Axis {
    pub(super) table: String,
    pub(super) values: Vec<Stage>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Pipeline {
    pub(super) name: String,
    pub(super) tables: Vec<Table>,
    /// The axes, at most one for each parameter, so that each has the name of its parameter.
    pub(super) sweep: Vec<Axis>,
}

/// The values of the axes that a table depends on.
pub(super) type Variant = Vec<(String, String)>;

/// A table with swept values filled in.
#[derive(Clone, Debug)]
pub(super) struct Instance {
    pub(super) table: Table,
    pub(super) variant: Variant,
    /// The instances that it reads, in the order of the ports.
    pub(super) inputs: Vec<usize>,
}

impl Instance {
    /// Returns the name of the table in the logs of runs.
    pub(super) fn name(&self) -> String {
        if self.variant.is_empty() {
            return self.table.name.clone();
        }
        let values: Vec<String> = self.variant.iter().map(|(axis, value)| format!("{axis}={value}")).collect();
        format!("{}[{}]", self.table.name, values.join(","))
    }

    /// Returns the positions of the ports in the order of `from:`.
    pub(super) fn port_order(&self) -> Vec<usize> {
        let order = 0..self.inputs.len();
        if self.table.is_turned { order.rev().collect() } else { order.collect() }
    }
}

impl Pipeline {
    pub(super) fn file(&self) -> String {
        format!("{}.yaml", self.name)
    }

    pub(super) fn table(&self, name: &str) -> Option<&Table> {
        self.tables.iter().find(|table| table.name == name)
    }

    /// Returns true if each table reads tables above it that fit its stage.
    pub(super) fn is_valid(&self) -> bool {
        let names: BTreeSet<&str> = self.tables.iter().map(|table| table.name.as_str()).collect();
        let fits = |(at, table): (usize, &Table)| {
            let inputs: Option<Vec<&Stage>> = table.from.iter().map(|name| self.above(at, name)).collect();
            let Some(inputs) = inputs else { return false };
            let ports = table.stage.ports();
            let first = if table.is_turned { inputs.last() } else { inputs.first() };
            let is_chosen = match &table.filter {
                None => true,
                // The predicate applies to the first input that is read row by row.
                Some(filter) => {
                    table.stage.makes() == Makes::RowPerRow && first.is_some_and(|s| s.has_ids() && filter.fits(s))
                }
            };
            ports.len() == inputs.len() && is_chosen && ports.iter().zip(inputs).all(|(p, s)| table.stage.takes(p, s))
        };
        let swept = |axis: &Axis| self.table(&axis.table).is_some_and(|table| table.stage.setting().is_some());
        names.len() == self.tables.len() && self.tables.iter().enumerate().all(fits) && self.sweep.iter().all(swept)
    }

    fn above(&self, at: usize, name: &str) -> Option<&Stage> {
        self.tables[..at].iter().find(|table| table.name == name).map(|table| &table.stage)
    }

    pub(super) fn yaml(&self) -> String {
        let mut text = format!("name: {}\ntables:\n", self.name);
        for table in &self.tables {
            let (stage, with) = table.stage.yaml();
            let mut says = json!({ "stage": stage, "with": with });
            if !table.from.is_empty() {
                let mut from: Vec<_> = table.stage.ports().iter().zip(&table.from).collect();
                if table.is_turned {
                    from.reverse();
                }
                says["from"] = from.into_iter().map(|(port, table)| ((*port).to_owned(), json!(table))).collect();
            }
            if let Some(filter) = &table.filter {
                let first = if table.is_turned { table.from.last() } else { table.from.first() };
                let id = first.and_then(|name| self.table(name)).map_or("id", |table| table.stage.id());
                says["where"] = json!(filter.text(id));
            }
            if table.skips {
                says["on_error"] = json!("skip");
            }
            text += &format!("  {}: {says}\n", table.name);
        }
        if !self.sweep.is_empty() {
            text += "sweep:\n";
        }
        for Axis { table, values } in &self.sweep {
            let settings: Vec<_> = values.iter().filter_map(Stage::setting).collect();
            let values: Vec<&String> = settings.iter().map(|(_, value)| value).collect();
            text += &format!("  {table}.{}: {}\n", settings[0].0, json!(values));
        }
        text
    }

    /// Returns every table with every combination of the swept values that it depends on, from top to bottom.
    pub(super) fn instances(&self) -> Vec<Instance> {
        let mut instances: Vec<Instance> = Vec::new();
        let mut axes: Vec<BTreeSet<usize>> = Vec::new();
        for table in &self.tables {
            let at = |name: &String| self.tables.iter().position(|other| other.name == *name).unwrap();
            let own = (0..self.sweep.len()).filter(|axis| self.sweep[*axis].table == table.name);
            let own: BTreeSet<usize> = own.chain(table.from.iter().flat_map(|name| axes[at(name)].clone())).collect();
            for stages in self.combinations(&own) {
                let setting = |stage: &Stage| stage.setting().map(|(axis, value)| (axis.to_owned(), value));
                let variant: Variant = stages.iter().filter_map(|(_, stage)| setting(stage)).collect();
                let mut table = table.clone();
                if let Some((_, stage)) = stages.iter().find(|(axis, _)| axis.table == table.name) {
                    table.stage = (*stage).clone();
                }
                let input = |name: &String| {
                    let is_read = |other: &Instance| {
                        other.table.name == *name && other.variant.iter().all(|value| variant.contains(value))
                    };
                    instances.iter().position(is_read).unwrap()
                };
                let inputs = table.from.iter().map(input).collect();
                instances.push(Instance { table, variant, inputs });
            }
            axes.push(own);
        }
        instances
    }

    /// Returns every combination of the values of some axes.
    pub(super) fn combinations(&self, axes: &BTreeSet<usize>) -> Vec<Vec<(&Axis, &Stage)>> {
        axes.iter().fold(vec![Vec::new()], |combinations, axis| {
            let axis = &self.sweep[*axis];
            let longer = |start: &Vec<(_, _)>| {
                let start = start.clone();
                axis.values.iter().map(move |value| start.iter().copied().chain([(axis, value)]).collect::<Vec<_>>())
            };
            combinations.iter().flat_map(longer).collect()
        })
    }
}
