//! `from:`, the tables that a table is made from. They are matched with the stage's ports, and errors point at the
//! entry that does not fit.

use serde_json::Value;

use super::{
    file::File,
    table::{Input, Table},
    yaml::{Key, Kind, Node, Place},
};
use crate::engine::{
    Result,
    stage::{Column, Output, Port, Ports, Reads, Stage},
    suggest::{or_none, suggestion},
};

/// Matches `from:` with the stage's ports: a list in port order, or a mapping of port to table.
pub(in crate::engine) fn inputs(
    file: &File,
    key: &Key,
    node: &Node,
    kind: &str,
    stage: &dyn Stage,
    above: &[&Table],
    all: &[&str],
) -> Result<Vec<(Place, Input)>> {
    let place = node.get("from").map_or(key.place, |from| from.place);
    let makes = stage.makes();
    let ports = match stage.ports() {
        Ports::Any => None,
        Ports::Named(ports) => Some(ports),
    };
    let signature = ports.as_ref().map(|ports| {
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
        let Some(ports) = &ports else {
            let by_row = makes == Output::RowPerRow && source.makes().has_ids();
            let port = name.map_or(table, |key| &key.name).to_owned();
            let reads = if by_row { Reads::Rows } else { Reads::Table };
            if inputs.iter().any(|(_, input)| input.port == port) {
                let message = format!("`{port}` occurs twice; give one another name: `from: {{name: {table}}}`");
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
                kind,
                signature.as_deref().filter(|s| !s.is_empty()).unwrap_or("no table")
            );
            file.error(name.map_or(item.place, |name| name.place), message)
        })?;
        fits(port, kind, source).map_err(|why| file.error(item.place, format!("table `{}`: {why}", key.name)))?;
        // A list binds tables by their place. A table with the name of another input is meant for that input, unless the list has
        // it there too.
        let at = ports.iter().position(|port| port.name == table).filter(|at| name.is_none() && *at != position);
        if at.is_some_and(|at| from_entries(node).get(at).is_none_or(|(_, entry)| entry.as_text() != Some(table))) {
            let message = format!(
                "table `{}`: the list has `{table}` at the place of `{}` of stage `{kind}`; name the inputs: `from: {{ {table}: {table}, … }}`",
                key.name, port.name
            );
            return Err(file.error(item.place, message));
        }
        let is_there = |column: &&Column| source.output.field_with_name(column.name).is_ok();
        let columns = port.columns.iter().filter(is_there).map(|column| column.name.to_owned()).collect();
        let input = Input { port: port.name.into(), table: source.name.clone(), columns, reads: port.reads };
        inputs.push((item.place, input));
    }
    let missing =
        ports.iter().flatten().find(|port| !port.optional && !inputs.iter().any(|(_, input)| input.port == port.name));
    if let Some(port) = missing {
        let message = format!(
            "table `{}`: stage `{}` also reads `{}`; write `from: [{}]`",
            key.name,
            kind,
            port.name,
            signature.unwrap_or_default()
        );
        return Err(file.error(place, message));
    }
    Ok(inputs)
}

/// Returns the table that an entry names.
fn source<'t>(
    file: &File,
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

/// Checks that a table has the columns that a stage reads at a port.
fn fits(port: &Port, stage: &str, source: &Table) -> Result<(), String> {
    let table = &source.declared;
    for column in &port.columns {
        match source.output.field_with_name(column.name) {
            Ok(field) => column.check(field).map_err(|why| {
                format!("`{}` does not fit as `{}` of stage `{stage}`: {why}", source.name, port.name)
            })?,
            Err(_) if column.optional => {}
            Err(_) => {
                let has: Vec<&str> = source.output.fields().iter().map(|f| f.name().as_str()).collect();
                let read: Vec<&str> = port.columns.iter().filter(|c| !c.optional).map(|c| c.name).collect();
                return Err(format!(
                    "`{table}` does not fit as `{}` of stage `{stage}`: it has no column `{}`; it has {} where {} are read",
                    port.name,
                    column.name,
                    has.join(", "),
                    read.join(", ")
                ));
            }
        }
    }
    if port.reads != Reads::Table && !source.makes().has_ids() {
        return Err(format!(
            "`{table}` has no row ids, so stage `{stage}` cannot read it row by row as `{}`",
            port.name
        ));
    }
    Ok(())
}

/// Returns the entries of `from:`, with the port where it is a mapping.
pub(in crate::engine) fn from_entries(node: &Node) -> Vec<(Option<&Key>, &Node)> {
    let Some(from) = node.get("from") else { return Vec::new() };
    match &from.kind {
        Kind::Scalar(Value::Null) => Vec::new(),
        Kind::List(items) => items.iter().map(|item| (None, item)).collect(),
        Kind::Map(entries) => entries.iter().map(|(port, item)| (Some(port), item)).collect(),
        Kind::Scalar(_) => vec![(None, from)],
    }
}

#[cfg(test)]
mod tests {
    use crate::engine::{
        run::toys::{CHAIN, edited, read},
        stage::Reads,
    };

    /// Reads a pipeline with a table `last` of stage `add`. Returns its inputs as `port=table`.
    fn inputs(from: &str) -> Result<Vec<String>, String> {
        let pipeline = read(
            &format!("{CHAIN}  last: {{ stage: add, from: {from} }}\n  below: {{ stage: add, from: [last] }}\n"),
            &[],
        )?;
        let last = pipeline.tables.iter().find(|table| table.name == "last").unwrap();
        Ok(last.inputs.iter().map(|input| format!("{}={}", input.port, input.table)).collect())
    }

    fn refused(from: &str, why: &str) {
        let error = inputs(from).unwrap_err();
        assert!(error.starts_with("toy.yaml:6:") && error.contains(why), "{from}\n  {error}\n  {why}");
    }

    #[test]
    fn tables_of_a_list_are_matched_by_position() {
        assert_eq!(inputs("[numbers, more, total]").unwrap(), ["numbers=numbers", "others=more", "total=total"]);
        assert_eq!(inputs("numbers").unwrap(), ["numbers=numbers"]);
    }

    #[test]
    fn tables_of_a_mapping_are_matched_by_name() {
        assert_eq!(inputs("{ total: total, numbers: more }").unwrap(), ["total=total", "numbers=more"]);
    }

    #[test]
    fn input_has_the_columns_that_the_stage_reads_there() {
        let pipeline = read(CHAIN, &[]).unwrap();
        let input = &pipeline.tables[1].inputs[0];
        assert_eq!((&input.columns[..], input.reads), (&["number".to_owned()][..], Reads::Rows));
        let sorted = read(&edited(CHAIN, "stage: sum", "stage: sorted"), &[]).unwrap();
        let input = &sorted.tables[2].inputs[0];
        assert_eq!((&input.columns[..], input.reads), (&["id".to_owned(), "number".to_owned()][..], Reads::Table));
    }

    #[test]
    fn inputs_that_the_stage_does_not_take_are_refused() {
        refused(
            "[numbers, more, total, more]",
            "stage `add` does not take 4 inputs; it reads numbers, [others], [total]",
        );
        refused(
            "{ nombers: numbers }",
            "stage `add` does not take an input `nombers`; it reads numbers, [others], [total]",
        );
    }

    #[test]
    fn missing_input_is_refused() {
        refused("{ others: numbers }", "stage `add` also reads `numbers`; write `from: [numbers, [others], [total]]`");
    }

    #[test]
    fn tables_that_are_not_above_are_refused() {
        refused("[last]", "a table cannot read itself");
        refused("[below]", "`below` is declared below; a table may use only tables above it");
        refused(
            "[nombers]",
            "there is no table `nombers`; did you mean `numbers`?; tables above are numbers, more, total",
        );
    }

    #[test]
    fn table_without_ids_is_refused_where_rows_are_read() {
        refused("[total]", "`total` has no row ids, so stage `add` cannot read it row by row as `numbers`");
    }
}
