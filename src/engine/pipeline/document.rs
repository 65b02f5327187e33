//! Reads a pipeline file. Names, parameters and sweeps are checked here, `from:` in `inputs.rs`; each error has its
//! place in the file.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use arrow::datatypes::Schema;
use serde_json::Value;

use super::{
    file::{File, GIVEN},
    filter::Filter,
    inputs::{from_entries, inputs},
    sweep::Sweep,
    table::{Input, OnError, Pipeline, Table, digest, model, schemas},
    yaml::{Key, Kind, Node, Place},
};
use crate::engine::{
    Error, Result, Secrets, Variant,
    address::expand_home,
    stage::{At, Misfit, ParamError, Ports, Reads, Stage, StageKind, parameter},
    store::{KEY, digest_name, is_heavy, is_storable, stored_schema},
    suggest::{or_none, suggestion},
};

/// Reads a pipeline.
pub(in crate::engine) struct Loader<'a> {
    /// The file, and those that it extends.
    pub(in crate::engine) file: File,
    /// The stages that tables may name.
    pub(in crate::engine) kinds: &'a [StageKind],
    /// The tables that SQL has beside those of pipelines; no table may have such a name.
    pub(in crate::engine) tables_of_sql: &'a [&'a str],
}

impl Loader<'_> {
    /// Applies an assignment: `images.root=DIR` sets `tables.images.with.root`, and `images.on_error=skip` the key `on_error` of
    /// the table.
    pub(in crate::engine) fn assign(&self, root: &mut Node, set: &str) -> Result<()> {
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
        let path = match parameter {
            ["on_error"] => vec!["tables", table, "on_error"],
            _ => [&["tables", table, "with"], parameter].concat(),
        };
        root.set(&path, Node::given(value, GIVEN));
        Ok(())
    }

    /// Builds the pipeline of a file; `sets` is what [`Loader::assign`] was given.
    pub(in crate::engine) fn pipeline(&self, stem: &str, root: &Node, sets: &[String]) -> Result<Pipeline> {
        self.file.keys(root, "a pipeline", &["name", "store", "tables", "sweep", "seeds"])?;
        let name = self.file.text(root.get("name"), "name")?.unwrap_or(stem).to_owned();
        check_name(&name).map_err(|message| self.file.error(root.place_of("name"), message))?;
        let store = self.file.text(root.get("store"), "store")?.map(str::to_owned);
        if let Some(Node { kind: Kind::List(_), place, .. }) = root.get("tables") {
            let message = "tables is a mapping: each table stands below its name, as in `images: { stage: ingest }`";
            return Err(self.file.error(*place, message));
        }
        let declared = root.get("tables").filter(|tables| !tables.entries().is_empty());
        let declared = declared.map(Node::entries).ok_or_else(|| {
            self.file.error(root.place_of("tables"), "a pipeline declares at least one table under `tables:`")
        })?;
        let mut sweep = self.sweep(root, declared, sets)?;
        let tables = loop {
            match self.tables(declared, &sweep)? {
                Ok(tables) => break tables,
                // The axis has the name of a column of a table that depends on it.
                Err(axis) => sweep.axes[axis].spell_out(),
            }
        };
        let (slots, digest) = (tables.iter().map(Table::slot).collect(), digest(&tables));
        Ok(Pipeline {
            name,
            store,
            tables,
            combinations: sweep.variants(),
            slots,
            digest,
            secrets: self.file.secrets.clone(),
        })
    }

    /// Builds the tables. The inner error is the number of an axis that has the name of a column of a table.
    fn tables(&self, declared: &[(Key, Node)], sweep: &Sweep) -> Result<Result<Vec<Table>, usize>> {
        let all: Vec<&str> = declared.iter().map(|(key, _)| key.name.as_str()).collect();
        let mut tables: Vec<Table> = Vec::new();
        // The axes that each table depends on, by itself or through what it reads.
        let mut axes: BTreeMap<&str, BTreeSet<usize>> = BTreeMap::new();
        for (key, node) in declared {
            let mut own = sweep.axes_of(&key.name);
            let read = from_entries(node).into_iter().filter_map(|(_, item)| axes.get(item.as_text()?));
            own.extend(read.flatten());
            for (variant, values) in sweep.distinct(&own) {
                let mut node = node.clone();
                for (axis, value) in values.iter().filter(|(axis, _)| axis.table == key.name) {
                    let path: Vec<&str> = std::iter::once("with").chain(axis.path.iter().map(String::as_str)).collect();
                    // Null stands for the parameter's default.
                    if value.is_null() {
                        node.unset(&path);
                    } else {
                        node.set(&path, (*value).clone());
                    }
                }
                let mut above: Vec<&Table> = Vec::new();
                for table in tables.iter().filter(|table| table.variant.is_part_of(&variant)) {
                    above.extend((above.last().map(|t| &t.declared) != Some(&table.declared)).then_some(table));
                }
                let table = self.table(key, &node, variant, &above, &all)?;
                let is_column = |axis: &&usize| table.output.field_with_name(&sweep.axes[**axis].name).is_ok();
                if let Some(axis) = own.iter().find(is_column) {
                    return Ok(Err(*axis));
                }
                tables.push(table);
            }
            axes.insert(&key.name, own);
        }
        Ok(Ok(tables))
    }

    fn sweep(&self, root: &Node, declared: &[(Key, Node)], sets: &[String]) -> Result<Sweep> {
        let takes: Vec<(String, Vec<String>)> = declared
            .iter()
            .map(|(key, table)| {
                let stage = table.get("stage").and_then(Node::as_text);
                let kind = self.kinds.iter().find(|kind| Some(kind.name) == stage);
                (key.name.clone(), kind.map(StageKind::parameters).unwrap_or_default())
            })
            .collect();
        let wrong = |(place, message): (Place, String)| self.file.error(place, message);
        let sweep =
            root.get("sweep").map(|node| Sweep::read(node, &takes)).transpose().map_err(wrong)?.unwrap_or_default();
        let sweep = match root.get("seeds") {
            Some(count) => sweep.over_seeds(count, self.seeds(declared)).map_err(wrong)?,
            None => sweep,
        };
        for set in sets {
            let path: Vec<&str> = set.split('=').next().unwrap_or_default().trim().split('.').collect();
            if let Some(axis) = sweep.axes.iter().find(|axis| axis.overlaps(&path)) {
                return Err(Error::Input(format!(
                    "--set {set}: the sweep sets this parameter ({}:{}:{}), so neither would win; choose among its values with --only {}=VALUE",
                    self.file.names[axis.place.file], axis.place.line, axis.place.column, axis.name
                )));
            }
        }
        Ok(sweep)
    }

    /// Returns the parameters `seed` of all tables that are a number: those at the top of `with:`, and below `training` and
    /// `method`. (Others choose data, and not how something is computed from it.)
    fn seeds(&self, declared: &[(Key, Node)]) -> Vec<(String, Vec<String>)> {
        let mut found = Vec::new();
        for (key, node) in declared {
            let stage = node.get("stage").and_then(Node::as_text);
            let Some(kind) = self.kinds.iter().find(|kind| Some(kind.name) == stage) else { continue };
            // A table with wrong parameters is told when it is built.
            let Ok(stage) = self.parameters(key, &key.name, node, kind) else { continue };
            let mut open = vec![(Vec::new(), stage.params())];
            while let Some((path, value)) = open.pop() {
                for (name, value) in value.as_object().into_iter().flatten() {
                    let path: Vec<String> = path.iter().chain([name]).cloned().collect();
                    if name == "seed" && value.is_u64() {
                        found.push((key.name.clone(), path));
                    } else if ["training", "method"].contains(&path[0].as_str()) {
                        open.push((path, value.clone()));
                    }
                }
            }
        }
        found
    }

    fn table(&self, key: &Key, node: &Node, variant: Variant, above: &[&Table], all: &[&str]) -> Result<Table> {
        check_name(&key.name).map_err(|message| self.file.error(key.place, message))?;
        if self.tables_of_sql.contains(&key.name.as_str()) {
            let taken = self.tables_of_sql.join(", ");
            return Err(self
                .file
                .error(key.place, format!("`{}` is a table of SQL itself; taken are {taken}", key.name)));
        }
        self.file.keys(node, "a table", &["stage", "from", "with", "where", "on_error"])?;
        let name = variant.name(&key.name);
        let stage = self
            .file
            .text(node.get("stage"), "stage")?
            .ok_or_else(|| self.file.error(key.place, format!("table `{}` names no `stage:`", key.name)))?;
        let kind = *self.kinds.iter().find(|kind| kind.name == stage).ok_or_else(|| {
            let names: Vec<&str> = self.kinds.iter().map(|kind| kind.name).collect();
            let message =
                format!("there is no stage `{stage}`{}; stages are {}", suggestion(stage, &names), names.join(", "));
            self.file.error(node.get("stage").map_or(key.place, |n| n.place), message)
        })?;
        let stage = self.parameters(key, &name, node, &kind)?;
        let (entries, mut inputs): (Vec<Place>, Vec<Input>) =
            inputs(&self.file, key, node, kind.name, &*stage, above, all)?.into_iter().unzip();
        let schemas = schemas(&inputs, above);
        let misfit = |misfit: Misfit| {
            let input = match &misfit.at {
                At::Input(port) => inputs.iter().position(|input| input.port == *port),
                At::Parameter(_) | At::Absent(_) | At::Stage => None,
            };
            let place = match (input, node.get("with")) {
                (Some(input), _) => entries[input],
                (None, None) => key.place,
                (None, Some(with)) => match &misfit.at {
                    At::Parameter(path) | At::Absent(path) => with.place_of(path),
                    At::Input(_) | At::Stage => with.place,
                },
            };
            let of = input.map(|input| {
                let Input { table, port, .. } = &inputs[input];
                format!("`{table}` does not fit as `{port}` of stage `{}`: ", kind.name)
            });
            self.file.error(place, format!("table `{name}`: {}{misfit}", of.unwrap_or_default()))
        };
        let output = stage.output(&schemas).map_err(misfit)?;
        if matches!(stage.ports(), Ports::Any) {
            let mut columns = stage.columns(&schemas).map_err(misfit)?;
            inputs.iter_mut().for_each(|input| input.columns = columns.remove(&input.port).unwrap_or_default());
        }
        check_columns(&output)
            .map_err(|message| self.file.error(node.place_of("with"), format!("table `{}`: {message}", key.name)))?;
        if stage.makes().has_ids() {
            check_ids(&output)
                .map_err(|message| self.file.error(node.place_of("with"), format!("table `{name}`: {message}")))?;
        }
        Ok(Table {
            filter: self.filter(key, node, &inputs, above)?,
            on_error: self.on_error(node)?,
            name,
            declared: key.name.clone(),
            variant,
            kind,
            model: model(stage.makes(), &inputs, above),
            stage: stage.into(),
            inputs,
            output,
            secrets: self.file.secrets.clone(),
        })
    }

    fn filter(&self, key: &Key, node: &Node, inputs: &[Input], above: &[&Table]) -> Result<Option<Filter>> {
        let Some(predicate) = self.file.text(node.get("where"), "where")? else { return Ok(None) };
        let place = node.get("where").map_or(key.place, |n| n.place);
        let first = inputs.iter().find(|input| input.reads == Reads::Rows);
        let first = first.and_then(|input| above.iter().find(|t| t.name == input.table)).ok_or_else(|| {
            self.file.error(place, format!("table `{}` reads no rows that `where:` could choose from", key.name))
        })?;
        let filter = Filter::new(predicate, &stored_schema(&first.output, first.is_keyed()));
        let wrong = |message| self.file.error(place, format!("where: {message} (columns of `{}`)", first.name));
        filter.map(Some).map_err(wrong)
    }

    fn on_error(&self, node: &Node) -> Result<OnError> {
        match self.file.text(node.get("on_error"), "on_error")? {
            None | Some("fail") => Ok(OnError::Fail),
            Some("skip") => Ok(OnError::Skip),
            Some(other) => {
                Err(self.file.error(node.place_of("on_error"), format!("on_error is `fail` or `skip`, not `{other}`")))
            }
        }
    }

    fn parameters(&self, key: &Key, name: &str, node: &Node, kind: &StageKind) -> Result<Box<dyn Stage>> {
        let with = node.get("with").filter(|with| !with.is_null());
        if let Some(Node { kind: Kind::List(_) | Kind::Scalar(_), place, otherwise: None }) = with {
            let message = "with is a mapping of parameters, such as `with: { size: 256 }`";
            return Err(self.file.error(*place, format!("table `{name}`: {message}")));
        }
        read_parameters(with.cloned(), kind).map_err(|error| {
            let place = with.map_or(key.place, |with| with.place_of(&error.path));
            let of = error.path.rsplit_once('.').map_or(kind.name, |(parent, _)| parent);
            let message = explain(of, &error.message);
            let path = if error.path.is_empty() || message.contains(&format!("`{}`", error.path)) {
                String::new()
            } else {
                format!("`{}`: ", error.path)
            };
            self.file.error(place, format!("table `{name}`: {path}{message}"))
        })
    }
}

/// Reads a stage's parameters. A value with two readings is taken in the reading that its parameter accepts; if it
/// accepts neither, the error is that of the reading that is not text. Locations that begin with `~/` lie in the home
/// folder.
fn read_parameters(with: Option<Node>, kind: &StageKind) -> Result<Box<dyn Stage>, ParamError> {
    let Some(mut with) = with else { return (kind.parse)(&Value::Object(Default::default())) };
    let mut of_yaml: Option<ParamError> = None;
    loop {
        let mut params = with.to_json();
        let error = match (kind.parse)(&params) {
            Ok(stage) => {
                for path in stage.locations() {
                    if let Some(place) = parameter(&mut params, path) {
                        below_home(place);
                    }
                }
                return (kind.parse)(&params);
            }
            Err(error) => error,
        };
        match with.reread(&error.path) {
            None => return Err(of_yaml.filter(|first| error.path.starts_with(&first.path)).unwrap_or(error)),
            Some(is_text) if is_text && of_yaml.is_none() => of_yaml = Some(error),
            Some(_) => {}
        }
    }
}

/// Replaces `~/` at the beginning of paths by the home folder.
fn below_home(place: &mut Value) {
    match place {
        Value::String(path) => *path = expand_home(path),
        Value::Array(paths) => paths.iter_mut().for_each(below_home),
        Value::Object(paths) => paths.values_mut().for_each(below_home),
        _ => {}
    }
}

/// Checks that column names are unique, that no name is reserved for a column of the engine, and that tables can hold
/// the types.
fn check_columns(output: &Schema) -> Result<(), String> {
    let names: Vec<&String> = output.fields().iter().map(|field| field.name()).collect();
    if let Some(twice) = names.iter().enumerate().find(|(i, name)| names[..*i].contains(name)) {
        return Err(format!(
            "two columns are called `{}`; give one another name, such as `x as y` in a query",
            twice.1
        ));
    }
    if let Some(field) = output.fields().iter().find(|field| !is_storable(field.data_type())) {
        let (name, of) = (field.name(), field.data_type());
        return Err(format!(
            "column `{name}` is of type {of}, which no table holds; a cast such as `cast({name} as text)` helps"
        ));
    }
    let heavy = output.fields().iter().filter(|field| is_heavy(field)).map(|field| digest_name(field.name()));
    match heavy.chain([KEY.to_owned()]).find(|reserved| names.contains(&reserved)) {
        Some(reserved) => Err(format!("`{reserved}` is a column of the engine's own; give it another name")),
        None => Ok(()),
    }
}

/// Checks that the first column is text, because it holds the row ids.
fn check_ids(output: &arrow::datatypes::Schema) -> Result<(), String> {
    match output.fields().first() {
        Some(field) if *field.data_type() == arrow::datatypes::DataType::Utf8 => Ok(()),
        Some(field) => {
            Err(format!("the first column identifies a row and is text; `{}` is {}", field.name(), field.data_type()))
        }
        None => Err("a table has at least one column, which identifies a row".into()),
    }
}

/// Checks a name, which is used in paths and SQL.
fn check_name(name: &str) -> Result<(), String> {
    let good = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
        && name.starts_with(|c: char| c.is_ascii_alphabetic());
    if good {
        Ok(())
    } else {
        Err(format!("`{name}` is no name; names are letters, digits, `_` and `-`, a letter first"))
    }
}

/// Rewrites Serde's message in terms of YAML.
fn explain(of: &str, message: &str) -> String {
    let quoted = |text: &str| text.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    let Some(rest) = message.strip_prefix("unknown field ") else { return mismatch_in_words(message) };
    let mut names = quoted(rest);
    if names.is_empty() {
        return message.to_owned();
    }
    let unknown = names.remove(0);
    let known: Vec<&str> = names.iter().map(String::as_str).collect();
    format!("unknown parameter `{unknown}`{}; `{of}` takes {}", suggestion(&unknown, &known), or_none(&known))
}

/// Rewrites `invalid type: string "x", expected u32` without the types of Rust. Any other message stays as it is.
fn mismatch_in_words(message: &str) -> String {
    let mismatch = message.strip_prefix("invalid type: ").or_else(|| message.strip_prefix("invalid value: "));
    let Some((found, expected)) = mismatch.and_then(|rest| rest.rsplit_once(", expected ")) else {
        return message.to_owned();
    };
    let expected = match expected {
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number, 0 or more",
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number",
        "f32" | "f64" => "a number",
        "a string" | "string" => "text",
        "a boolean" => "true or false",
        "a sequence" => "a list",
        "a map" => "a mapping",
        "map with a single key" => "a mapping with a single name",
        "string or map" => "a word, or a mapping with a single name",
        other if other.starts_with("struct ") => "a mapping",
        other => other,
    };
    let found = match found.split_once(' ') {
        Some(("integer" | "boolean" | "string", value)) => value.trim_matches('`').trim_matches('"'),
        Some(("floating", value)) => value.trim_start_matches("point ").trim_matches('`'),
        _ => match found {
            "null" | "unit value" => "nothing",
            "sequence" => "a list",
            "map" => "another mapping",
            other => other,
        },
    };
    let is_value = !["nothing", "a list", "another mapping"].contains(&found);
    let found = if is_value { format!("`{found}`") } else { found.to_owned() };
    format!("expected {expected}, found {found}")
}

/// Reads a pipeline file and applies `table.parameter=value` assignments. `tables_of_sql` are names that no table may
/// have.
pub fn load(path: &std::path::Path, kinds: &[StageKind], tables_of_sql: &[&str], sets: &[String]) -> Result<Pipeline> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    let stem = path.file_stem().map_or_else(|| "pipeline".into(), |stem| stem.to_string_lossy().into_owned());
    parse(&path.display().to_string(), &stem, &text, kinds, tables_of_sql, sets, &|name| std::env::var(name).ok())
}

/// Reads a pipeline from text. `file` is named in errors, and the path of a file that it extends is relative to it; `stem` is the default name, `tables_of_sql` are names that no
/// table may have, and `variable` looks up `${NAME}`.
pub fn parse(
    file: &str,
    stem: &str,
    text: &str,
    kinds: &[StageKind],
    tables_of_sql: &[&str],
    sets: &[String],
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<Pipeline> {
    let mut file = File { names: vec![file.to_owned()], secrets: Arc::default() };
    let mut root = file.document(text)?;
    let mut loader = Loader { file, kinds, tables_of_sql };
    for set in sets {
        loader.assign(&mut root, set)?;
    }
    let filled = RefCell::new(Vec::new());
    let variable = |name: &str| {
        let value = variable(name);
        filled.borrow_mut().extend(value.clone().map(|value| (name.to_owned(), value)));
        value
    };
    root.fill_in(&variable).map_err(|(place, message)| loader.file.error(place, message))?;
    loader.file.secrets = Arc::new(Secrets::among(filled.into_inner()));
    loader.pipeline(stem, &root, sets)
}

#[cfg(test)]
mod tests {
    use super::OnError;
    use crate::engine::run::toys::{CHAIN, edited, read};

    #[test]
    fn assignment_replaces_a_parameter_or_adds_one() {
        let params = |sets: &[&str]| read(CHAIN, sets).unwrap().tables[1].stage.params();
        assert_eq!(params(&[])["plus"], 10);
        assert_eq!(params(&["more.plus=-5"])["plus"], -5);
        let both = params(&["more.fails=2", "more.fails=3"]);
        assert_eq!((&both["plus"], &both["fails"]), (&10.into(), &3.into()), "the last one counts");
    }

    #[test]
    fn assignment_reaches_into_a_parameter() {
        let pipeline = read(CHAIN, &["numbers.rows.b=7"]).unwrap();
        assert_eq!(pipeline.tables[0].stage.params()["rows"], serde_json::json!({ "a": 1, "b": 7, "c": 3 }));
    }

    #[test]
    fn assignment_decides_what_becomes_of_rows_that_fail() {
        let of = |sets: &[&str]| read(CHAIN, sets).unwrap().tables[1].on_error;
        assert_eq!((of(&[]), of(&["more.on_error=skip"])), (OnError::Fail, OnError::Skip));
    }

    #[test]
    fn wrong_assignment_is_named() {
        let refused = |set: &str, why: &str| {
            let error = read(CHAIN, &[set]).unwrap_err();
            assert!(error.starts_with("--set") && error.contains(why), "{set}: {error}");
        };
        refused("more.plus", "there is no `=`");
        refused("more=1", "there is no parameter");
        refused("mor.plus=1", "there is no table `mor`; did you mean `more`?");
        refused("more.plus=much", "`plus`: expected a whole number, found `much`");
        refused("more.plus=[1]", "`plus`: expected a whole number, found a list");
        refused("more.plus=1.5", "`plus`: expected a whole number, found `1.5`");
        refused("more.on_error=go", "on_error is `fail` or `skip`, not `go`");
        refused("more.pluss=1", "unknown parameter `pluss`; did you mean `plus`?");
    }

    #[test]
    fn pipelines_that_mean_the_same_have_equal_digests() {
        let digest = |text: &str| read(text, &[]).unwrap().digest;
        let own = digest(CHAIN);
        let (written, otherwise) =
            ("from: [numbers], with: { plus: 10 }", "with: {plus: +10}, from: {numbers: numbers}");
        assert_eq!(digest(&edited(CHAIN, written, otherwise)), own);
        assert_eq!(digest(&edited(CHAIN, "plus: 10", "plus: 10, fails: null")), own);
        assert_eq!(digest(&edited(CHAIN, "a: 1", "a: 2")), own, "the content of a place is not declared");
        assert_ne!(digest(&edited(CHAIN, "plus: 10", "plus: 11")), own);
        assert_ne!(digest(&edited(CHAIN, "from: [numbers]", "from: [numbers], where: number > 1")), own);
    }

    #[test]
    fn predicate_without_rows_to_choose_from_is_refused() {
        let error =
            read(&edited(CHAIN, "stage: sum, from: [more]", "stage: sorted, from: [more], where: number > 1"), &[]);
        assert!(error.unwrap_err().contains("table `total` reads no rows that `where:` could choose from"));
    }

    #[test]
    fn predicate_is_about_the_first_input_that_is_read_row_by_row() {
        let text = format!(
            "{CHAIN}  last: {{ stage: add, from: {{ total: total, numbers: numbers }}, where: \"note = 'x'\" }}\n"
        );
        assert!(read(&text, &[]).is_ok(), "`numbers` has a column `note`");
        let error = read(&edited(&text, "numbers: numbers }", "numbers: more }"), &[]).unwrap_err();
        assert!(error.ends_with("(columns of `more`)"), "{error}");
    }
}
