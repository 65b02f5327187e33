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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::run::toys::read;

    const SWEPT: &str = "
tables:
  numbers: { stage: list, with: { rows: { a: 1 } } }
  aside: { stage: list, with: { rows: { b: 1 } } }
  more: { stage: add, from: [numbers] }
  total: { stage: sum, from: [more] }
sweep: { plus: [1, 2] }
";

    fn selected(targets: &[&str], until: &[&str]) -> Result<Vec<String>, String> {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let selection = Selection { targets: owned(targets), until: owned(until) };
        let selected = selection.of(&read(SWEPT, &[]).unwrap()).map_err(|error| error.to_string())?;
        Ok(selected.into_iter().collect())
    }

    #[test]
    fn everything_is_selected_where_nothing_is_named() {
        assert_eq!(selected(&[], &[]).unwrap().len(), 6);
    }

    #[test]
    fn target_is_selected_with_the_tables_that_it_is_made_from() {
        assert_eq!(selected(&["total[plus=2]"], &[]).unwrap(), ["more[plus=2]", "numbers", "total[plus=2]"]);
        assert_eq!(selected(&["aside"], &[]).unwrap(), ["aside"]);
    }

    #[test]
    fn declared_name_selects_every_instance() {
        assert_eq!(selected(&["more"], &[]).unwrap(), ["more[plus=1]", "more[plus=2]", "numbers"]);
    }

    #[test]
    fn until_selects_all_tables_above_whether_needed_or_not() {
        assert_eq!(selected(&[], &["more"]).unwrap(), ["aside", "more[plus=1]", "more[plus=2]", "numbers"]);
        assert_eq!(selected(&[], &["more[plus=1]"]).unwrap(), ["aside", "more[plus=1]", "numbers"]);
    }

    #[test]
    fn targets_are_added_to_the_tables_above() {
        assert_eq!(
            selected(&["total[plus=1]"], &["aside"]).unwrap(),
            ["aside", "more[plus=1]", "numbers", "total[plus=1]"]
        );
    }

    #[test]
    fn unknown_name_is_an_error_that_lists_the_declared_ones() {
        let error = selected(&["mor"], &[]).unwrap_err();
        assert_eq!(error, "the pipeline has no table `mor`; did you mean `more`?; it has numbers, aside, more, total");
        assert!(selected(&[], &["more[plus=3]"]).is_err());
    }
}
