//! Error messages about statements in the terms of users.

use arrow::{datatypes::DataType, error::ArrowError};
use datafusion::{
    common::{Column, SchemaError},
    error::DataFusionError,
    prelude::SessionContext,
    sql::sqlparser::parser::ParserError,
};

use super::{catalog::CATALOG, complete::quoted};
use crate::engine::{
    Error,
    pipeline::{lower_case, syntax},
    suggestion,
};

/// The beginnings of DataFusion's messages about statements that a session does not allow.
const REFUSED: [&str; 3] = ["DDL not supported", "DML not supported", "statement not supported"];

/// Returns errors of the engine unchanged, and all others as errors in the user's input.
pub(super) fn query_error(error: DataFusionError) -> Error {
    match error {
        DataFusionError::External(inner) => match inner.downcast::<Error>() {
            Ok(own) => *own,
            Err(other) => Error::Input(other.to_string()),
        },
        DataFusionError::Context(_, inner) | DataFusionError::Diagnostic(_, inner) => query_error(*inner),
        other => Error::Input(lower_case(&message(&other))),
    }
}

/// Makes the error of a statement over known tables; `reads` is the message that it may only read.
pub(super) fn statement_error(error: DataFusionError, sql: &str, context: &SessionContext, reads: &str) -> Error {
    match query_error(error) {
        Error::Input(message) => {
            let message = match unknown_table(&message) {
                Some(reference) => no_table(reference, context),
                None if REFUSED.iter().any(|refused| message.starts_with(refused)) => format!("{message}; {reads}"),
                None => message,
            };
            Error::Input(message + &unquoted(sql, context).unwrap_or_default())
        }
        other => other,
    }
}

/// Returns the names of pipelines and tables in a session.
fn names(context: &SessionContext) -> Vec<String> {
    let mut names = Vec::new();
    for catalog in context.catalog_names().iter().filter_map(|name| context.catalog(name)) {
        for schema in catalog.schema_names() {
            names.extend(catalog.schema(&schema).map(|schema| schema.table_names()).unwrap_or_default());
            names.push(schema);
        }
    }
    names
}

/// Finds a name with a dash that a statement contains without quotes. SQL reads the dash as a subtraction.
fn unquoted(sql: &str, context: &SessionContext) -> Option<String> {
    let is_unquoted = |name: &String| {
        sql.match_indices(name.as_str())
            .any(|(at, _)| !sql[..at].ends_with(|c: char| matches!(c, '"' | '\'' | '-' | '_') || c.is_alphanumeric()))
    };
    let name = names(context).into_iter().find(|name| name.contains('-') && is_unquoted(name))?;
    Some(format!("; a name with a `-` stands in double quotes: \"{name}\""))
}

/// Returns a type in the notation of pipelines.
pub(super) fn type_in_words(of: &DataType) -> String {
    match of {
        DataType::Boolean => "bool".into(),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "utf8".into(),
        DataType::FixedSizeList(item, _) | DataType::List(item) | DataType::LargeList(item) => {
            format!("a list of {}", type_in_words(item.data_type()))
        }
        other => other.to_string().to_lowercase(),
    }
}

/// Returns the message without the name of the layer that reported it.
fn message(error: &DataFusionError) -> String {
    match error {
        DataFusionError::SQL(error, _) => match error.as_ref() {
            ParserError::ParserError(text) | ParserError::TokenizerError(text) => syntax(text),
            ParserError::RecursionLimitExceeded => "the statement is nested too deeply".into(),
        },
        DataFusionError::SchemaError(error, _) => match error.as_ref() {
            SchemaError::FieldNotFound { field, valid_fields } => no_column(field, valid_fields),
            other => other.to_string(),
        },
        DataFusionError::ArrowError(error, _) => match error.as_ref() {
            ArrowError::CastError(text) => text.clone(),
            other => other.to_string(),
        },
        DataFusionError::Shared(error) => message(error),
        other => {
            let text = other.message();
            arguments(&text).unwrap_or_else(|| text.into_owned())
        }
    }
}

/// Returns the message about wrong arguments of a function: the function's own, or the arguments that it takes.
fn arguments(message: &str) -> Option<String> {
    let (why, call) = message.split_once("No function matches the given name and argument types '")?;
    if let Some((_, said)) = why.split_once("user-defined coercion failed with: ") {
        let said = said.strip_prefix("Error during planning: ").unwrap_or(said);
        return Some(said.trim_end_matches(". ").to_owned());
    }
    let (call, known) = call.split_once("'. ")?;
    let known: Vec<&str> = known.split_once("Candidate functions:\n")?.1.lines().map(str::trim).collect();
    Some(format!("there is no `{call}`; there are {}", known.join(", ")))
}

/// Makes the message about a missing column. Columns are listed with their tables where several tables have them, or
/// if the statement names a table that is none of theirs.
fn no_column(field: &Column, known: &[Column]) -> String {
    let table = known.first().and_then(|column| column.relation.as_ref());
    let of_one = known.iter().all(|column| column.relation.as_ref() == table)
        && field.relation.as_ref().is_none_or(|named| Some(named) == table);
    let is_bare = |column: &Column| {
        let namesakes = known.iter().filter(|other| other.name == column.name).count();
        of_one || field.relation.is_none() && namesakes < 2
    };
    let name = |column: &Column| if is_bare(column) { column.name.clone() } else { column.flat_name() };
    let known: Vec<String> = known.iter().map(name).collect();
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    let told = listed("column", &name(field), &known);
    let is_like = known.iter().any(|known| known.eq_ignore_ascii_case(&field.name));
    if field.relation.is_some() || is_like || !suggestion(&field.name, &known).is_empty() {
        return told;
    }
    format!("{told}; text stands in single quotes: '{}'", field.name)
}

/// Returns the name of the table that DataFusion did not find: `CATALOG.PIPELINE.TABLE`.
fn unknown_table(message: &str) -> Option<&str> {
    message.strip_prefix("table '")?.strip_suffix("' not found")
}

fn no_table(reference: &str, context: &SessionContext) -> String {
    let steps: Vec<&str> = reference.splitn(3, '.').collect();
    let &[catalog, pipeline, table] = steps.as_slice() else { return format!("there is no table `{reference}`") };
    let own = context.catalog(CATALOG);
    let is_session = own.is_some();
    let catalog = context.catalog(catalog).or(own);
    let tables_of = |name: &str| {
        let mut tables = catalog.as_ref()?.schema(name)?.table_names();
        if !is_session {
            tables.sort(); // DataFusion keeps them in no order.
        }
        Some(tables)
    };
    let known = |names: Vec<String>, what: &str, name: &str| {
        let others: Vec<&str> = names.iter().map(String::as_str).filter(|other| *other != name).collect();
        listed(what, name, &others)
    };
    let elsewhere = || {
        let pipelines = catalog.as_ref().map(|catalog| catalog.schema_names()).unwrap_or_default();
        let has_it = |name: &String| tables_of(name).is_some_and(|tables| tables.iter().any(|other| other == table));
        let named = pipelines.iter().filter(|name| has_it(name)).map(|name| [name, table].map(quoted).join("."));
        named.collect::<Vec<_>>().join(" and ")
    };
    match tables_of(pipeline) {
        Some(_) if is_session && !elsewhere().is_empty() => {
            format!("the pipeline `{pipeline}` has no table `{table}`; there is {}", elsewhere())
        }
        Some(tables) => known(tables, "table", table),
        // A query of a pipeline has no access to other pipelines.
        None if !is_session => known(tables_of("public").unwrap_or_default(), "table", &format!("{pipeline}.{table}")),
        None => known(catalog.map(|catalog| catalog.schema_names()).unwrap_or_default(), "pipeline", pipeline),
    }
}

/// Makes `there is no table X; did you mean Y? There are …`.
fn listed(what: &str, name: &str, known: &[&str]) -> String {
    if let Some(capital) = known.iter().find(|known| known.eq_ignore_ascii_case(name)) {
        let quoted = match capital.rsplit_once('.') {
            Some((of, name)) => format!("{of}.\"{name}\""),
            None => format!("\"{capital}\""),
        };
        return format!(
            "there is no {what} `{name}`; write {quoted}: names without double quotes are read in small letters"
        );
    }
    let meant = suggestion(name, known);
    match (known, meant.is_empty()) {
        ([], _) => format!("there is no {what} `{name}`"),
        (_, true) => format!("there is no {what} `{name}`; there are {}", known.join(", ")),
        ([_], false) => format!("there is no {what} `{name}`{meant}"),
        (_, false) => format!("there is no {what} `{name}`{meant} There are {}", known.join(", ")),
    }
}
