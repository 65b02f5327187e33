//! Selects the tables of a pipeline that a command applies to.

use std::collections::BTreeSet;

use super::table::{Pipeline, Table};
use crate::engine::{Error, Result, suggest::suggestion};

/// Tables by name, as the pipeline declares them or with their swept values. An empty selection selects all tables.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// These tables and their inputs, direct and indirect.
    pub targets: Vec<String>,
    /// All tables from the first down to these.
    pub until: Vec<String>,
}

impl Selection {
    /// Returns the names of the selected tables.
    pub fn of(&self, pipeline: &Pipeline) -> Result<BTreeSet<String>> {
        let all = &pipeline.tables;
        check(pipeline, self.targets.iter().chain(&self.until))?;
        if self.targets.is_empty() && self.until.is_empty() {
            return Ok(all.iter().map(|table| table.name.clone()).collect());
        }
        let last = all.iter().rposition(|table| self.until.iter().any(|name| is_called(table, name)));
        let mut selected: BTreeSet<String> =
            all[..last.map_or(0, |at| at + 1)].iter().map(|t| t.name.clone()).collect();
        for table in all.iter().rev() {
            if self.targets.iter().any(|name| is_called(table, name)) {
                selected.insert(table.name.clone());
            }
            if selected.contains(&table.name) {
                selected.extend(table.inputs.iter().map(|input| input.table.clone()));
            }
        }
        Ok(selected)
    }
}

/// Returns true if a name refers to a table. `metrics` refers to every `metrics[extractor=…]`.
pub fn is_called(table: &Table, name: &str) -> bool {
    table.name == name || table.declared == name
}

/// Refuses names of tables that the pipeline does not have.
pub fn check<'a>(pipeline: &Pipeline, mut names: impl Iterator<Item = &'a String>) -> Result<()> {
    let Some(unknown) = names.find(|name| !pipeline.tables.iter().any(|table| is_called(table, name))) else {
        return Ok(());
    };
    let mut known: Vec<&str> = pipeline.tables.iter().map(|table| table.declared.as_str()).collect();
    known.dedup();
    Err(Error::Input(format!(
        "the pipeline has no table `{unknown}`{}; it has {}",
        suggestion(unknown, &known),
        known.join(", ")
    )))
}
