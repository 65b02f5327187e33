//! `from:`, the tables that a table is made from: matched with the stage's inputs, and blamed where they do not fit.

use serde_json::Value;

use super::{
    file::File,
    table::{Input, Table},
    yaml::{Key, Kind, Node, Place},
};
use crate::engine::{
    Result,
    stage::{Output, Port, Ports, Reads, Schemas, StageKind},
    suggest::{or_none, suggestion},
};

/// Matches `from:` with the stage's ports: a list in port order, or a mapping of port to table.
pub(in crate::engine) fn inputs(
    file: &File<'_>,
    key: &Key,
    node: &Node,
    kind: &StageKind,
    makes: Output,
    above: &[&Table],
    all: &[&str],
) -> Result<Vec<(Place, Input)>> {
    let place = node.get("from").map_or(key.place, |from| from.place);
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
    let mut inputs: Vec<(Place, Input)> = Vec::new();
    for (position, (name, item)) in from_entries(node).into_iter().enumerate() {
        let table = file
            .text(Some(item), "an entry of `from:`")?
            .ok_or_else(|| file.error(item.place, "an entry of `from:` names a table"))?;
        let source = source(file, key, item, table, above, all)?;
        let Some(ports) = ports else {
            let by_row = makes == Output::RowPerRow && source.makes().has_ids();
            let port = name.map_or(table, |key| &key.name).to_owned();
            let reads = if by_row { Reads::Rows } else { Reads::Table };
            if inputs.iter().any(|(_, input)| input.port == port) {
                let message = format!("`{port}` stands twice; give one another name: `from: {{name: {table}}}`");
                return Err(file.error(item.place, message));
            }
            inputs.push((item.place, Input { port, table: source.name.clone(), columns: Vec::new(), reads }));
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
            file.error(name.map_or(item.place, |name| name.place), message)
        })?;
        fits(port, kind, source).map_err(|message| file.error(item.place, message))?;
        let also = port.also.iter().filter(|column| source.output.field_with_name(column).is_ok());
        let columns = port.columns.iter().chain(also).map(|c| (*c).to_owned()).collect();
        let input = Input { port: port.name.into(), table: source.name.clone(), columns, reads: port.reads };
        inputs.push((item.place, input));
    }
    let missing = ports
        .unwrap_or_default()
        .iter()
        .find(|port| !port.optional && !inputs.iter().any(|(_, input)| input.port == port.name));
    if let Some(port) = missing {
        let message = format!(
            "table `{}`: stage `{}` also reads `{}`; write `from: [{}]`",
            key.name,
            kind.name,
            port.name,
            signature.unwrap_or_default()
        );
        return Err(file.error(place, message));
    }
    Ok(inputs)
}

/// The table that an entry names.
fn source<'t>(
    file: &File<'_>,
    key: &Key,
    item: &Node,
    table: &str,
    above: &[&'t Table],
    all: &[&str],
) -> Result<&'t Table> {
    above.iter().copied().find(|t| t.declared == table).ok_or_else(|| {
        let names: Vec<&str> = above.iter().map(|t| t.declared.as_str()).collect();
        let why = if table == key.name {
            "a table cannot read itself".to_owned()
        } else if all.contains(&table) {
            format!("`{table}` is declared below; a table may use only tables above it")
        } else {
            format!("there is no table `{table}`{}", suggestion(table, &names))
        };
        file.error(item.place, format!("table `{}`: {why}; tables above are {}", key.name, or_none(&names)))
    })
}

/// Whether a table has what a stage reads at a port.
fn fits(port: &Port, kind: &StageKind, source: &Table) -> Result<(), String> {
    let (table, stage) = (&source.declared, kind.name);
    if let Some(column) = port.columns.iter().find(|column| source.output.field_with_name(column).is_err()) {
        let has: Vec<&str> = source.output.fields().iter().map(|f| f.name().as_str()).collect();
        return Err(format!(
            "`{table}` does not fit as `{}` of stage `{stage}`: it has no column `{column}`; it has {} where {} are read",
            port.name,
            has.join(", "),
            port.columns.join(", ")
        ));
    }
    if port.reads == Reads::Rows && !source.makes().has_ids() {
        return Err(format!(
            "`{table}` has no row ids, so stage `{stage}` cannot read it row by row as `{}`",
            port.name
        ));
    }
    Ok(())
}

/// The entries of `from:`, with the port where it is a mapping.
pub(in crate::engine) fn from_entries(node: &Node) -> Vec<(Option<&Key>, &Node)> {
    let Some(from) = node.get("from") else { return Vec::new() };
    match &from.kind {
        Kind::Scalar(Value::Null) => Vec::new(),
        Kind::List(items) => items.iter().map(|item| (None, item)).collect(),
        Kind::Map(entries) => entries.iter().map(|(port, item)| (Some(port), item)).collect(),
        Kind::Scalar(_) => vec![(None, from)],
    }
}

/// What a stage's message is about.
pub(in crate::engine) enum Blamed {
    /// A parameter, at its place.
    Parameter(Place),
    /// The position of the input.
    Input(usize),
    /// Neither can be told.
    Table,
}

/// Reads a stage's message: it names a parameter, or an input, or a column of one input, in this order of weight.
pub(in crate::engine) fn blamed(
    message: &str,
    node: &Node,
    kind: &StageKind,
    inputs: &[Input],
    schemas: &Schemas,
) -> Blamed {
    let quoted = || message.split('`').skip(1).step_by(2);
    let parameters = kind.parameters();
    let is_parameter = |word: &&str| parameters.iter().any(|p| word.split(['.', '[']).next() == Some(p));
    match (node.get("with"), quoted().find(is_parameter)) {
        (Some(with), Some(parameter)) => return Blamed::Parameter(with.place_of(parameter)),
        (None, Some(_)) => return Blamed::Table,
        (_, None) => {}
    }
    // Of several inputs that do not fit together the last named is the one that differs.
    let mention = |port: &str| message.rfind(port).max(message.rfind(&port.replace('_', " ")));
    let mentioned = inputs.iter().enumerate().filter_map(|(at, input)| Some((mention(&input.port)?, at)));
    let type_at =
        |input: &Input, column: &str| schemas.field(&input.port, column).ok().map(|f| f.data_type().to_string());
    let reads = |column: &str| {
        let readers = || inputs.iter().enumerate().filter(|(_, input)| input.columns.iter().any(|c| c == column));
        let has_type = |input: &Input| type_at(input, column).is_some_and(|name| message.contains(&name));
        let named = readers().filter(|(_, input)| has_type(input)).last();
        named.or_else(|| readers().next().filter(|_| readers().count() == 1)).map(|(at, _)| at)
    };
    let input = mentioned.max().map(|(_, at)| at).or_else(|| quoted().find_map(reads));
    input.map_or(Blamed::Table, Blamed::Input)
}
