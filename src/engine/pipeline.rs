//! YAML -> [`Pipeline`]: names resolved, parameters checked, schemas matched, before anything runs. Errors have line and column.

use std::{collections::BTreeMap, sync::Arc};

use arrow::datatypes::SchemaRef;
use serde_json::Value;

use super::{
    Error, Result,
    columns::stored_schema,
    filter::Filter,
    stage::{Described, Output, Ports, Reads, Schemas, StageKind},
    sweep::Variant,
    yaml::{Key, Kind, Node, Place},
};

/// A checked pipeline: tables from top to bottom, each made from tables above it.
#[derive(Debug)]
pub struct Pipeline {
    /// Its name: `name:`, or the file's.
    pub name: String,
    /// The store that the file asks for.
    pub store: Option<String>,
    /// The tables in file order.
    pub tables: Vec<Table>,
}

/// A table as its pipeline declares it.
pub struct Table {
    /// The name, with the swept values that it depends on.
    pub name: String,
    /// The name as declared, which SQL sees.
    pub declared: String,
    /// The swept values that it depends on.
    pub variant: Variant,
    /// What makes it.
    pub kind: StageKind,
    /// The stage with its parameters.
    pub stage: Arc<dyn Described>,
    /// The inputs by port.
    pub inputs: Vec<Input>,
    /// Which rows of the first input take part.
    pub filter: Option<Filter>,
    /// What becomes of a row that fails.
    pub on_error: OnError,
    /// The declared schema of its rows.
    pub output: SchemaRef,
}

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {:?}", self.name, self.stage)
    }
}

impl Table {
    /// Where the store keeps its versions.
    pub fn slot(&self) -> String {
        self.variant.slot(&self.declared)
    }

    /// What its stage makes.
    pub fn makes(&self) -> Output {
        self.stage.makes()
    }

    /// Whether its rows are cached one by one.
    pub fn is_keyed(&self) -> bool {
        self.makes() == Output::RowPerRow
    }
}

/// An input of a table.
#[derive(Clone, Debug)]
pub struct Input {
    /// What it is to the stage.
    pub port: String,
    /// The table's name.
    pub table: String,
    /// The columns that the stage reads.
    pub columns: Vec<String>,
    /// Row by row or whole.
    pub reads: Reads,
}

/// What becomes of a row that fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnError {
    /// The table is not published; the rows that succeeded are kept for the next run.
    #[default]
    Fail,
    /// The row is left out and recorded in the `errors` table.
    Skip,
}

/// Reads a pipeline file, with `table.parameter=value` assignments on top.
pub fn load(path: &std::path::Path, kinds: &[StageKind], sets: &[String]) -> Result<Pipeline> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    let stem = path.file_stem().map_or_else(|| "pipeline".into(), |stem| stem.to_string_lossy().into_owned());
    parse(&path.display().to_string(), &stem, &text, kinds, sets, &|name| std::env::var(name).ok())
}

/// Reads a pipeline from text. `file` is named in errors, `stem` is the default name, `variable` looks `${NAME}` up.
pub fn parse(
    file: &str,
    stem: &str,
    text: &str,
    kinds: &[StageKind],
    sets: &[String],
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<Pipeline> {
    let loader = Loader { file, kinds };
    let mut root = Node::parse(text).map_err(|(place, message)| loader.error(place, message))?;
    for set in sets {
        loader.assign(&mut root, set)?;
    }
    root.map_text(&mut |text| substitute(text, variable)).map_err(|(place, message)| loader.error(place, message))?;
    loader.pipeline(stem, &root)
}

/// The place of what `--set` gave.
const GIVEN: Place = Place { line: 0, column: 0 };

struct Loader<'a> {
    file: &'a str,
    kinds: &'a [StageKind],
}

impl Loader<'_> {
    fn error(&self, place: Place, message: impl Into<String>) -> Error {
        let message = message.into();
        match place {
            GIVEN => Error::Input(format!("--set: {message}")),
            Place { line, column } => Error::Pipeline { file: self.file.to_owned(), line, column, message },
        }
    }

    /// `images.root=DIR` sets `tables.images.with.root`.
    fn assign(&self, root: &mut Node, set: &str) -> Result<()> {
        let wrong = |why: &str| {
            Error::Input(format!("--set {set}: {why}; write table.parameter=value, such as images.root=photos"))
        };
        let (path, value) = set.split_once('=').ok_or_else(|| wrong("there is no `=`"))?;
        let steps: Vec<&str> = path.trim().split('.').collect();
        let [table, parameter @ ..] = steps.as_slice() else { return Err(wrong("there is no table")) };
        if parameter.is_empty() {
            return Err(wrong("there is no parameter"));
        }
        if root.get("tables").and_then(|tables| tables.get(table)).is_none() {
            let names: Vec<&str> =
                root.get("tables").map_or(&[][..], Node::entries).iter().map(|(k, _)| k.name.as_str()).collect();
            return Err(wrong(&format!("there is no table `{table}`{}", suggestion(table, &names))));
        }
        let mut value = Node::parse(value).map_err(|(_, message)| wrong(&message))?;
        value.place = GIVEN;
        root.set(&[&["tables", table, "with"], parameter].concat(), value);
        Ok(())
    }

    fn keys<'n>(&self, node: &'n Node, what: &str, known: &[&str]) -> Result<&'n [(Key, Node)]> {
        let Kind::Map(entries) = &node.kind else {
            return Err(self.error(node.place, format!("{what} is a mapping with {}", known.join(", "))));
        };
        match entries.iter().find(|(key, _)| !known.contains(&key.name.as_str())) {
            Some((key, _)) => Err(self.error(
                key.place,
                format!(
                    "{what} has no key `{}`{}; it takes {}",
                    key.name,
                    suggestion(&key.name, known),
                    known.join(", ")
                ),
            )),
            None => Ok(entries),
        }
    }

    fn text<'n>(&self, node: Option<&'n Node>, what: &str) -> Result<Option<&'n str>> {
        match node.map(|node| (node.place, &node.kind)) {
            None | Some((_, Kind::Scalar(Value::Null))) => Ok(None),
            Some((_, Kind::Scalar(Value::String(text)))) => Ok(Some(text)),
            Some((place, _)) => Err(self.error(place, format!("{what} is text"))),
        }
    }

    fn pipeline(&self, stem: &str, root: &Node) -> Result<Pipeline> {
        self.keys(root, "a pipeline", &["name", "store", "tables"])?;
        let name = self.text(root.get("name"), "name")?.unwrap_or(stem).to_owned();
        check_name(&name).map_err(|message| self.error(root.place_of("name"), message))?;
        let store = self.text(root.get("store"), "store")?.map(str::to_owned);
        let declared = root.get("tables").filter(|tables| !tables.entries().is_empty());
        let declared = declared.ok_or_else(|| {
            self.error(root.place_of("tables"), "a pipeline declares at least one table under `tables:`")
        })?;
        let mut tables: Vec<Table> = Vec::new();
        for (key, node) in declared.entries() {
            let all: Vec<&str> = declared.entries().iter().map(|(key, _)| key.name.as_str()).collect();
            tables.push(self.table(key, node, &tables, &all)?);
        }
        Ok(Pipeline { name, store, tables })
    }

    fn table(&self, key: &Key, node: &Node, above: &[Table], all: &[&str]) -> Result<Table> {
        check_name(&key.name).map_err(|message| self.error(key.place, message))?;
        self.keys(node, "a table", &["stage", "from", "with", "where", "on_error"])?;
        let stage = self
            .text(node.get("stage"), "stage")?
            .ok_or_else(|| self.error(key.place, format!("table `{}` names no `stage:`", key.name)))?;
        let kind = *self.kinds.iter().find(|kind| kind.name == stage).ok_or_else(|| {
            let names: Vec<&str> = self.kinds.iter().map(|kind| kind.name).collect();
            let message =
                format!("there is no stage `{stage}`{}; stages are {}", suggestion(stage, &names), names.join(", "));
            self.error(node.get("stage").map_or(key.place, |n| n.place), message)
        })?;
        let stage = self.parameters(key, node, &kind)?;
        let mut inputs = self.inputs(key, node, &kind, stage.makes(), above, all)?;
        let schemas: BTreeMap<String, SchemaRef> = inputs
            .iter()
            .filter_map(|input| {
                Some((input.port.clone(), above.iter().find(|t| t.name == input.table)?.output.clone()))
            })
            .collect();
        let by_row = inputs.iter().filter(|input| input.reads == Reads::Rows).map(|input| input.port.clone()).collect();
        let schemas = Schemas { all: schemas, by_row };
        let misfit = |message: String| {
            let place =
                node.get("with").map_or(key.place, |with| with.place_of(message.split('`').nth(1).unwrap_or_default()));
            self.error(place, format!("table `{}`: {message}", key.name))
        };
        let output = stage.output(&schemas).map_err(misfit)?;
        if matches!(kind.ports, Ports::Any) {
            let mut columns = stage.columns(&schemas).map_err(misfit)?;
            inputs.iter_mut().for_each(|input| input.columns = columns.remove(&input.port).unwrap_or_default());
        }
        if stage.makes().has_ids() {
            check_ids(&output)
                .map_err(|message| self.error(node.place_of("with"), format!("table `{}`: {message}", key.name)))?;
        }
        let filter =
            match self.text(node.get("where"), "where")? {
                None => None,
                Some(predicate) => {
                    let place = node.get("where").map_or(key.place, |n| n.place);
                    let first = inputs.iter().find(|input| input.reads == Reads::Rows);
                    let first = first.and_then(|input| above.iter().find(|t| t.name == input.table));
                    let first = first.ok_or_else(|| {
                        self.error(place, format!("table `{}` reads no rows that `where:` could choose from", key.name))
                    })?;
                    let filter = Filter::new(predicate, &stored_schema(&first.output, first.is_keyed()));
                    Some(filter.map_err(|message| {
                        self.error(place, format!("where: {message} (columns of `{}`)", first.name))
                    })?)
                }
            };
        let on_error = match self.text(node.get("on_error"), "on_error")? {
            None | Some("fail") => OnError::Fail,
            Some("skip") => OnError::Skip,
            Some(other) => {
                return Err(
                    self.error(node.place_of("on_error"), format!("on_error is `fail` or `skip`, not `{other}`"))
                );
            }
        };
        Ok(Table {
            name: key.name.clone(),
            declared: key.name.clone(),
            variant: Variant::default(),
            kind,
            stage: stage.into(),
            inputs,
            filter,
            on_error,
            output,
        })
    }

    fn parameters(&self, key: &Key, node: &Node, kind: &StageKind) -> Result<Box<dyn Described>> {
        let with = node.get("with").filter(|with| !matches!(with.kind, Kind::Scalar(Value::Null)));
        let params = with.map_or_else(|| Value::Object(Default::default()), Node::to_json);
        (kind.parse)(&params).map_err(|error| {
            let place = with.map_or(key.place, |with| with.place_of(&error.path));
            let message = explain(kind.name, &error.message);
            let path = if error.path.is_empty() || message.contains(&format!("`{}`", error.path)) {
                String::new()
            } else {
                format!("`{}`: ", error.path)
            };
            self.error(place, format!("table `{}`: {path}{message}", key.name))
        })
    }

    /// Matches `from:` with the stage's ports: a list in port order, or a mapping of port to table.
    fn inputs(
        &self,
        key: &Key,
        node: &Node,
        kind: &StageKind,
        makes: Output,
        above: &[Table],
        all: &[&str],
    ) -> Result<Vec<Input>> {
        let from = node.get("from");
        let place = from.map_or(key.place, |from| from.place);
        let named: Vec<(Option<&Key>, &Node)> = match from.map(|from| &from.kind) {
            None | Some(Kind::Scalar(Value::Null)) => Vec::new(),
            Some(Kind::List(items)) => items.iter().map(|item| (None, item)).collect(),
            Some(Kind::Map(entries)) => entries.iter().map(|(port, item)| (Some(port), item)).collect(),
            Some(Kind::Scalar(_)) => from.map(|node| (None, node)).into_iter().collect(),
        };
        let ports = match kind.ports {
            Ports::Any => None,
            Ports::Named(ports) => Some(ports),
        };
        let signature = ports.map(|ports| {
            ports
                .iter()
                .map(|p| if p.optional { format!("[{}]", p.name) } else { p.name.into() })
                .collect::<Vec<_>>()
                .join(", ")
        });
        let mut inputs = Vec::new();
        for (position, (name, item)) in named.into_iter().enumerate() {
            let table = self
                .text(Some(item), "an entry of `from:`")?
                .ok_or_else(|| self.error(item.place, "an entry of `from:` names a table"))?;
            let source = above.iter().find(|t| t.name == table).ok_or_else(|| {
                let names: Vec<&str> = above.iter().map(|t| t.name.as_str()).collect();
                let why = if table == key.name {
                    "a table cannot read itself".to_owned()
                } else if all.contains(&table) {
                    format!("`{table}` is declared below; a table may use only tables above it")
                } else {
                    format!("there is no table `{table}`{}", suggestion(table, &names))
                };
                self.error(item.place, format!("table `{}`: {why}; tables above are {}", key.name, or_none(&names)))
            })?;
            let Some(ports) = ports else {
                let by_row = makes == Output::RowPerRow && source.makes().has_ids();
                inputs.push(Input {
                    port: name.map_or(table, |key| &key.name).to_owned(),
                    table: table.into(),
                    columns: Vec::new(),
                    reads: if by_row { Reads::Rows } else { Reads::Table },
                });
                continue;
            };
            let port = match name {
                None => ports.get(position),
                Some(name) => ports.iter().find(|port| port.name == name.name),
            };
            let port = port.ok_or_else(|| {
                let which =
                    name.map_or_else(|| format!("{} inputs", position + 1), |name| format!("an input `{}`", name.name));
                let message = format!(
                    "stage `{}` does not take {which}; it reads {}",
                    kind.name,
                    signature.as_deref().filter(|s| !s.is_empty()).unwrap_or("no table")
                );
                self.error(name.map_or(item.place, |name| name.place), message)
            })?;
            if let Some(column) = port.columns.iter().find(|column| source.output.field_with_name(column).is_err()) {
                let has: Vec<&str> = source.output.fields().iter().map(|f| f.name().as_str()).collect();
                let message = format!(
                    "`{table}` does not fit as `{}` of stage `{}`: it has no column `{column}`; it has {} where {} are read",
                    port.name,
                    kind.name,
                    has.join(", "),
                    port.columns.join(", ")
                );
                return Err(self.error(item.place, message));
            }
            if port.reads == Reads::Rows && !source.makes().has_ids() {
                let message = format!(
                    "`{table}` has no row ids, so stage `{}` cannot read it row by row as `{}`",
                    kind.name, port.name
                );
                return Err(self.error(item.place, message));
            }
            let columns = port.columns.iter().map(|c| (*c).to_owned()).collect();
            inputs.push(Input { port: port.name.into(), table: table.into(), columns, reads: port.reads });
        }
        let missing = ports
            .unwrap_or_default()
            .iter()
            .find(|port| !port.optional && !inputs.iter().any(|input| input.port == port.name));
        if let Some(port) = missing {
            let message = format!(
                "table `{}`: stage `{}` also reads `{}`; write `from: [{}]`",
                key.name,
                kind.name,
                port.name,
                signature.unwrap_or_default()
            );
            return Err(self.error(place, message));
        }
        Ok(inputs)
    }
}

fn or_none(names: &[&str]) -> String {
    if names.is_empty() { "none".into() } else { names.join(", ") }
}

/// Rows are told apart by the text in their first column.
fn check_ids(output: &arrow::datatypes::Schema) -> Result<(), String> {
    match output.fields().first() {
        Some(field) if *field.data_type() == arrow::datatypes::DataType::Utf8 => Ok(()),
        Some(field) => {
            Err(format!("the first column identifies a row and is text; `{}` is {}", field.name(), field.data_type()))
        }
        None => Err("a table has at least one column, which identifies a row".into()),
    }
}

/// Names go into paths and SQL.
fn check_name(name: &str) -> Result<(), String> {
    let good = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
        && name.starts_with(|c: char| c.is_ascii_alphabetic());
    if good {
        Ok(())
    } else {
        Err(format!("`{name}` is no name; names are letters, digits, `_` and `-`, a letter first"))
    }
}

/// Serde's message in the words of the YAML.
fn explain(stage: &str, message: &str) -> String {
    let quoted = |text: &str| text.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    let Some(rest) = message.strip_prefix("unknown field ") else { return message.to_owned() };
    let mut names = quoted(rest);
    if names.is_empty() {
        return message.to_owned();
    }
    let unknown = names.remove(0);
    let known: Vec<&str> = names.iter().map(String::as_str).collect();
    format!("unknown parameter `{unknown}`{}; `{stage}` takes {}", suggestion(&unknown, &known), or_none(&known))
}

/// `; did you mean X?` where a known name is close.
pub fn suggestion(name: &str, known: &[&str]) -> String {
    let best = known.iter().map(|k| (strsim::jaro_winkler(name, k), k)).max_by(|a, b| a.0.total_cmp(&b.0));
    best.filter(|(score, _)| *score > 0.8).map(|(_, k)| format!("; did you mean `{k}`?")).unwrap_or_default()
}

/// `${NAME}` and `${NAME:-default}` in a scalar; `$$` is a dollar sign.
fn substitute(text: &str, variable: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out += &rest[..at];
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some(body) = rest.strip_prefix('{') {
            let (inside, after) = body.split_once('}').ok_or_else(|| format!("`{text}`: `${{` without `}}`"))?;
            let (name, default) =
                inside.split_once(":-").map_or((inside, None), |(name, default)| (name, Some(default)));
            let value = variable(name).or_else(|| default.map(str::to_owned));
            out += &value.ok_or_else(|| {
                format!("the environment has no variable `{name}`; set it, or write ${{{name}:-default}}")
            })?;
            rest = after;
        } else {
            out.push('$');
        }
    }
    Ok(out + rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_fill_scalars_only() {
        let lookup = |name: &str| (name == "ROOT").then(|| "/data: [x]".to_owned());
        assert_eq!(substitute("${ROOT}/a$$b", &lookup).unwrap(), "/data: [x]/a$b");
        assert_eq!(substitute("${NONE:-d}", &lookup).unwrap(), "d");
        assert!(substitute("${NONE}", &lookup).unwrap_err().contains("no variable `NONE`"));
        assert!(substitute("${ROOT", &lookup).is_err());
    }

    #[test]
    fn close_names_are_suggested() {
        assert_eq!(suggestion("sise", &["root", "size"]), "; did you mean `size`?");
        assert_eq!(suggestion("zzz", &["root", "size"]), "");
    }
}
