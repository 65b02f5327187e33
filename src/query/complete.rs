//! Completion of names in a statement that is being written.

use std::collections::BTreeSet;

use datafusion::prelude::SessionContext;

use super::catalog::CATALOG;
use crate::engine::store::Store;

/// The words of SQL that are completed.
const KEYWORDS: [&str; 42] = [
    "and",
    "as",
    "asc",
    "between",
    "by",
    "case",
    "cast",
    "cross",
    "desc",
    "describe",
    "distinct",
    "else",
    "end",
    "except",
    "exists",
    "explain",
    "false",
    "filter",
    "from",
    "full",
    "group",
    "having",
    "in",
    "intersect",
    "is",
    "join",
    "left",
    "like",
    "limit",
    "not",
    "null",
    "offset",
    "on",
    "or",
    "order",
    "over",
    "select",
    "true",
    "union",
    "using",
    "when",
    "where",
];

/// The words after which a table stands.
const BEFORE_TABLES: [&str; 6] = ["from", "join", "describe", "table", "\\d", ".schema"];

/// A table that a statement names.
struct Named {
    /// The name by which columns refer to it: its alias, or its own name.
    alias: String,
    columns: Vec<String>,
}

/// The names that a session knows.
pub(super) struct Names<'a> {
    pub(super) context: &'a SessionContext,
    pub(super) store: &'a Store,
    /// The pipeline to which bare table names refer.
    pub(super) pipeline: &'a str,
}

impl Names<'_> {
    /// Returns the names that can stand at a place of a statement, and where the name that is begun there starts.
    /// After `from` and `join` these are tables, after `NAME.` the columns or tables of that name, elsewhere columns,
    /// functions and words of SQL.
    pub(super) fn complete(&self, statement: &str, at: usize) -> (usize, Vec<String>) {
        let before = &statement[..at];
        let start = before
            .rfind(|c: char| !is_of_name(c) && c != '.')
            .map_or(0, |i| i + before[i..].chars().next().map_or(1, char::len_utf8));
        let begun = &before[start..];
        // The name that is begun is no table or alias yet.
        let named = self.named(&format!("{}{}", &before[..start], &statement[at..]));
        let previous = before[..start].split_whitespace().last().unwrap_or_default().to_lowercase();
        let is_table = BEFORE_TABLES.contains(&previous.as_str());
        let mut names: Vec<String> = match begun.rsplit_once('.') {
            Some((of, _)) if self.pipelines().contains(&unquoted(of)) => {
                self.tables(&unquoted(of)).iter().map(|table| format!("{of}.{}", quoted(table))).collect()
            }
            Some((of, _)) => {
                let named = named.iter().find(|table| table.alias == unquoted(of));
                named
                    .into_iter()
                    .flat_map(|table| &table.columns)
                    .map(|column| format!("{of}.{}", quoted(column)))
                    .collect()
            }
            None if is_table => {
                let pipelines = self.pipelines().into_iter().map(|name| format!("{}.", quoted(&name)));
                self.tables(self.pipeline).iter().map(|table| quoted(table)).chain(pipelines).collect()
            }
            None => self.words(&named, !begun.is_empty()),
        };
        names.retain(|name| name.to_lowercase().starts_with(&begun.to_lowercase()));
        names.sort();
        names.dedup();
        (start, names)
    }

    /// Returns the columns of the tables that a statement names, or of all tables of the pipeline if it names none yet;
    /// if `all`, also functions, words of SQL, and the names of these tables.
    fn words(&self, named: &[Named], all: bool) -> Vec<String> {
        let mut words: Vec<String> = if named.is_empty() {
            let columns =
                self.tables(self.pipeline).into_iter().filter_map(|table| self.columns(self.pipeline, &table));
            columns.flatten().collect()
        } else {
            named.iter().flat_map(|table| table.columns.clone()).collect()
        };
        words.iter_mut().for_each(|column| *column = quoted(column));
        if all {
            words.extend(named.iter().map(|table| format!("{}.", quoted(&table.alias))));
            words.extend(functions(self.context).into_iter().map(|name| format!("{name}(")));
            words.extend(KEYWORDS.map(str::to_owned));
        }
        words
    }

    /// Returns the tables that a statement names.
    fn named(&self, statement: &str) -> Vec<Named> {
        let apart = statement.replace(',', ", ");
        let is_of_word = |c: char| is_of_name(c) || matches!(c, '.' | ',');
        let mut words = apart.split(|c: char| !is_of_word(c)).filter(|word| !word.is_empty()).peekable();
        let mut named = Vec::new();
        while let Some(word) = words.next() {
            let path = word.trim_end_matches(',');
            let (pipeline, table) = path
                .split_once('.')
                .map_or((self.pipeline.to_owned(), unquoted(path)), |(of, table)| (unquoted(of), unquoted(table)));
            let Some(columns) = self.columns(&pipeline, &table) else { continue };
            let mut alias = table;
            if path == word {
                words.next_if(|word| word.eq_ignore_ascii_case("as"));
                let is_alias = |word: &&str| !KEYWORDS.contains(&word.to_lowercase().as_str()) && !word.contains('.');
                if let Some(given) = words.peek().filter(|word| is_alias(word)) {
                    alias = unquoted(given.trim_end_matches(','));
                }
            }
            named.push(Named { alias, columns });
        }
        named
    }

    fn pipelines(&self) -> BTreeSet<String> {
        let catalog = self.context.catalog(CATALOG);
        let schemas = catalog.map(|catalog| catalog.schema_names()).unwrap_or_default();
        schemas.into_iter().collect()
    }

    fn tables(&self, pipeline: &str) -> Vec<String> {
        let schema = self.context.catalog(CATALOG).and_then(|catalog| catalog.schema(pipeline));
        schema.map(|schema| schema.table_names()).unwrap_or_default()
    }

    /// Returns the columns of a table; `None` if there is none of this name, or if it cannot be read.
    fn columns(&self, pipeline: &str, table: &str) -> Option<Vec<String>> {
        let schema = self.context.catalog(CATALOG)?.schema(pipeline)?;
        if !schema.table_exist(table) {
            return None;
        }
        let table = self.store.runtime().block_on(schema.table(table)).ok()??;
        Some(table.schema().fields().iter().map(|field| field.name().clone()).collect())
    }
}

/// Returns the names of all functions.
fn functions(context: &SessionContext) -> Vec<String> {
    let state = context.state();
    let names = state.scalar_functions().keys().chain(state.aggregate_functions().keys());
    names.chain(state.window_functions().keys()).cloned().collect()
}

fn is_of_name(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '"' | '@')
}

/// Returns a name as it stands in a statement: quoted if SQL would read it otherwise.
pub(super) fn quoted(name: &str) -> String {
    let is_plain = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if is_plain { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}

fn unquoted(name: &str) -> String {
    if name.contains('"') { name.replace('"', "") } else { name.to_lowercase() }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::datatypes::{DataType, Field, Schema};
    use datafusion::datasource::MemTable;

    use super::*;
    use crate::query::Session;

    /// Returns what can be written at the `|` of a statement.
    fn completed(session: &Session, text: &str) -> Vec<String> {
        let at = text.find('|').unwrap();
        session.complete(&text.replace('|', ""), at).1
    }

    #[test]
    fn tables_columns_and_functions_are_completed() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().to_string_lossy()).unwrap();
        let session = Session::open(&store, None).unwrap();
        let schema =
            Schema::new(["image_id", "score", "Name"].map(|name| Field::new(name, DataType::Utf8, true)).to_vec());
        let table = MemTable::try_new(Arc::new(schema), vec![vec![]]).unwrap();
        session.context.register_table("maps", Arc::new(table)).unwrap();
        for (text, expected) in [
            ("select * from ma|", &["maps"][..]),
            ("select * from paper_|", &["paper_datasets", "paper_results"]),
            ("\\d ma|", &["maps"]),
            ("select sc| from maps", &["score"]),
            ("select s.| from maps as s", &["s.\"Name\"", "s.image_id", "s.score"]),
            ("select s.im| from runs r,maps s", &["s.image_id"]),
            ("select pixel_a|", &["pixel_ap(", "pixel_auroc", "pixel_auroc("]),
            ("select | from maps", &["\"Name\"", "image_id", "score"]),
            ("select image_id from maps whe|", &["when", "where"]),
            ("select ä, sco| from maps", &["score"]),
            ("select * from public.ma|", &["public.maps"]),
            ("select x.| from maps", &[]),
        ] {
            assert_eq!(completed(&session, text), expected, "{text}");
        }
        assert_eq!(session.complete("select score, im from maps", 16), (14, vec!["image_id".to_owned()]));
    }
}
