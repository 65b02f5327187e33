//! `where:`, a SQL predicate over the light columns of a table's first input.

use std::sync::{Arc, LazyLock};

use arrow::{
    array::{AsArray, BooleanArray, RecordBatch},
    datatypes::{DataType, Schema},
};
use datafusion::{
    catalog::{
        CatalogProvider, CatalogProviderList, MemoryCatalogProvider, MemoryCatalogProviderList, MemorySchemaProvider,
    },
    common::{
        DFSchema, SchemaError,
        tree_node::{TreeNode, TreeNodeRecursion},
    },
    error::DataFusionError,
    logical_expr::{Expr, Volatility},
    physical_expr::PhysicalExpr,
    prelude::SessionContext,
    sql::sqlparser::{
        dialect::GenericDialect,
        keywords::Keyword,
        parser::ParserError,
        tokenizer::{Token, Tokenizer},
    },
};

use crate::engine::{
    Error, Result,
    store::{KEY, digest_name, is_heavy, is_volatile, light_schema, volatile_misuse},
    suggestion,
};

/// SQL's functions, which all sessions share, because making them is the main cost of a session.
static FUNCTIONS: LazyLock<SessionContext> = LazyLock::new(SessionContext::new);

/// The maximum number of operators in an expression. A chain of operators is a tree as deep as it has operators, of which
/// DataFusion asks the type of every node by walking all below it: 1,000 take 0.5 s in a predicate and 1.3 s in a
/// statement, 5,000 took 13 s and 20 s (on two cores).
const MOST_OPERATORS: usize = 1_000;

/// Returns true for a token that may make an expression or a query deeper. Names, values and what stands around and between
/// them do not, so that lists of columns and of values have any length.
fn is_operator(token: &Token) -> bool {
    match token {
        Token::Word(word) => matches!(
            word.keyword,
            Keyword::OR
                | Keyword::AND
                | Keyword::XOR
                | Keyword::IS
                | Keyword::IN
                | Keyword::BETWEEN
                | Keyword::LIKE
                | Keyword::ILIKE
                | Keyword::RLIKE
                | Keyword::REGEXP
                | Keyword::SIMILAR
                | Keyword::DIV
                | Keyword::COLLATE
                | Keyword::AT
                | Keyword::OVERLAPS
                | Keyword::UNION
                | Keyword::EXCEPT
                | Keyword::MINUS
                | Keyword::INTERSECT
                | Keyword::JOIN
        ),
        Token::EOF
        | Token::Whitespace(_)
        | Token::LParen
        | Token::RParen
        | Token::Comma
        | Token::Period
        | Token::SemiColon
        | Token::Placeholder(_)
        | Token::Number(..)
        | Token::Char(_)
        | Token::SingleQuotedString(_)
        | Token::DoubleQuotedString(_)
        | Token::TripleSingleQuotedString(_)
        | Token::TripleDoubleQuotedString(_)
        | Token::DollarQuotedString(_)
        | Token::SingleQuotedByteStringLiteral(_)
        | Token::DoubleQuotedByteStringLiteral(_)
        | Token::TripleSingleQuotedByteStringLiteral(_)
        | Token::TripleDoubleQuotedByteStringLiteral(_)
        | Token::SingleQuotedRawStringLiteral(_)
        | Token::DoubleQuotedRawStringLiteral(_)
        | Token::TripleSingleQuotedRawStringLiteral(_)
        | Token::TripleDoubleQuotedRawStringLiteral(_)
        | Token::NationalStringLiteral(_)
        | Token::QuoteDelimitedStringLiteral(_)
        | Token::NationalQuoteDelimitedStringLiteral(_)
        | Token::EscapedStringLiteral(_)
        | Token::UnicodeStringLiteral(_)
        | Token::HexStringLiteral(_) => false,
        _ => true,
    }
}

/// Refuses SQL that is too long to be planned.
pub fn check_length(sql: &str) -> Result<(), String> {
    // Text that is not SQL is left to the parser, which has a better message.
    let tokens = Tokenizer::new(&GenericDialect {}, sql).tokenize().unwrap_or_default();
    match tokens.iter().filter(|token| is_operator(token)).count() {
        many if many > MOST_OPERATORS => Err(format!(
            "{many} operators in one statement are too many; at most {MOST_OPERATORS} are allowed, and `x in (1, 2, 3)` takes any number of values"
        )),
        _ => Ok(()),
    }
}

/// Makes a session without tables.
pub fn session() -> Result<SessionContext, DataFusionError> {
    let mut state = FUNCTIONS.state();
    let names = &state.config_options().catalog;
    let (catalog_name, schema_name) = (names.default_catalog.clone(), names.default_schema.clone());
    let catalog = MemoryCatalogProvider::new();
    catalog.register_schema(&schema_name, Arc::new(MemorySchemaProvider::new()))?;
    let catalogs = MemoryCatalogProviderList::new();
    catalogs.register_catalog(catalog_name, Arc::new(catalog));
    state.register_catalog_list(Arc::new(catalogs));
    Ok(SessionContext::new_with_state(state))
}

/// Finds a function in an expression whose result differs from call to call.
pub fn unrepeatable(expression: &Expr) -> Result<Option<String>, DataFusionError> {
    let mut found = None;
    expression.apply(|expression| match expression {
        Expr::ScalarFunction(call) if call.func.signature().volatility != Volatility::Immutable => {
            found = Some(call.func.name().to_owned());
            Ok(TreeNodeRecursion::Stop)
        }
        _ => Ok(TreeNodeRecursion::Continue),
    })?;
    Ok(found)
}

/// Finds a function in an expression whose result depends on several rows.
fn of_many_rows(expression: &Expr) -> Result<Option<String>, DataFusionError> {
    let mut found = None;
    expression.apply(|expression| {
        found = match expression {
            Expr::AggregateFunction(call) => Some(call.func.name().to_owned()),
            Expr::WindowFunction(call) => Some(call.fun.name().to_owned()),
            _ => return Ok(TreeNodeRecursion::Continue),
        };
        Ok(TreeNodeRecursion::Stop)
    })?;
    Ok(found)
}

/// Rewrites a parser's message `Expected: X, found: Y at Line: 1, Column: 7` so that the place comes first.
pub fn syntax(text: &str) -> String {
    let (what, place) = text.split_once(" at Line: ").unwrap_or((text, ""));
    let what = match what.strip_prefix("Expected: ").and_then(|what| what.split_once(", found: ")) {
        Some((expected, "EOF")) => format!("expected {expected}, found the end of the statement"),
        Some((expected, found)) => format!("expected {expected}, found `{found}`"),
        None => lower_case(what),
    };
    match place.split_once(", Column: ") {
        Some((line, column)) => format!("line {line}, column {column}: {what}"),
        None => what,
    }
}

/// Makes the first letter lower case, as messages begin here. Abbreviations stay.
pub fn lower_case(text: &str) -> String {
    let mut rest = text.chars();
    match rest.next() {
        Some(first) if rest.clone().next().is_some_and(char::is_lowercase) => {
            first.to_lowercase().chain(rest).collect()
        }
        _ => text.to_owned(),
    }
}

/// A checked predicate.
#[derive(Clone, Debug)]
pub struct Filter {
    /// The predicate as written.
    pub text: String,
    /// The columns it reads.
    pub columns: Vec<String>,
    expression: Arc<dyn PhysicalExpr>,
}

impl Filter {
    /// Parses a predicate over the light columns of a stored table.
    pub fn new(text: &str, stored: &Schema) -> Result<Self, String> {
        check_length(text)?;
        let light = light_schema(stored);
        let fields: Vec<_> = stored.fields().iter().filter(|f| light.contains(f.name())).cloned().collect();
        let schema = DFSchema::try_from(Schema::new(fields)).map_err(|e| e.to_string())?;
        let session = &*FUNCTIONS;
        let first_line = |e: DataFusionError| message(&e, stored);
        let logical = session.parse_sql_expr(text, &schema).map_err(first_line)?;
        if let Some(name) = unrepeatable(&logical).map_err(first_line)? {
            return Err(format!("`{name}()` gives a different result each time, and rows are chosen once and kept"));
        }
        if let Some(name) = of_many_rows(&logical).map_err(first_line)? {
            return Err(format!("`{name}()` is about many rows, and a row is chosen by its own columns alone"));
        }
        let is_volatile = |name: &str| stored.field_with_name(name).is_ok_and(is_volatile);
        if let Some(column) = logical.column_refs().iter().find(|column| is_volatile(&column.name)) {
            return Err(volatile_misuse(&column.name));
        }
        let mut columns: Vec<String> = logical.column_refs().iter().map(|column| column.name.clone()).collect();
        columns.sort();
        // The expression is evaluated on batches of exactly these columns, in this order.
        let used = DFSchema::try_from(Schema::new(
            columns.iter().filter_map(|c| stored.field_with_name(c).ok().cloned()).collect::<Vec<_>>(),
        ));
        let expression = used.and_then(|used| session.create_physical_expr(logical, &used)).map_err(first_line)?;
        match expression.data_type(&Schema::new(
            columns.iter().filter_map(|c| stored.field_with_name(c).ok().cloned()).collect::<Vec<_>>(),
        )) {
            Ok(DataType::Boolean) => Ok(Self { text: text.to_owned(), columns, expression }),
            Ok(other) => Err(format!("`{text}` is {other}, not a condition")),
            Err(e) => Err(first_line(e)),
        }
    }

    /// Returns which rows the predicate selects. A row for which it is unknown (null) is not selected.
    pub fn evaluate(&self, batch: &RecordBatch) -> Result<BooleanArray> {
        let failed = |e: DataFusionError| Error::Input(format!("where: {}: {e}", self.text));
        let indices: Vec<usize> =
            self.columns.iter().map(|c| batch.schema_ref().index_of(c)).collect::<Result<_, _>>()?;
        let chosen = self
            .expression
            .evaluate(&batch.project(&indices)?)
            .map_err(failed)?
            .into_array(batch.num_rows())
            .map_err(failed)?;
        Ok(chosen.as_boolean().clone())
    }
}

/// Returns the message about an invalid predicate over the light columns of a stored table.
fn message(error: &DataFusionError, stored: &Schema) -> String {
    match error.find_root() {
        DataFusionError::SchemaError(schema, _) => match schema.as_ref() {
            SchemaError::FieldNotFound { field, .. } => no_column(&field.name, stored),
            other => other.to_string(),
        },
        DataFusionError::SQL(parser, _) => match parser.as_ref() {
            ParserError::ParserError(text) | ParserError::TokenizerError(text) => syntax(text),
            ParserError::RecursionLimitExceeded => "the predicate is nested too deeply".into(),
        },
        _ => error.strip_backtrace().lines().next().unwrap_or_default().to_owned(),
    }
}

/// Returns the message about a name that is none of the light columns of a stored table.
fn no_column(name: &str, stored: &Schema) -> String {
    let heavy: Vec<&String> = stored.fields().iter().filter(|f| is_heavy(f)).map(|field| field.name()).collect();
    let is_own = |column: &&str| *column == KEY || heavy.iter().any(|heavy| digest_name(heavy) == **column);
    let names = stored.fields().iter().map(|field| field.name().as_str());
    let known: Vec<&str> =
        names.filter(|column| !heavy.iter().any(|heavy| heavy == column) && !is_own(column)).collect();
    if let Some(capital) = known.iter().find(|known| known.eq_ignore_ascii_case(name)) {
        return format!(
            "there is no column `{name}`; write \"{capital}\": names without double quotes are read in small letters"
        );
    }
    let listed = known.join(", ");
    if heavy.iter().any(|heavy| *heavy == name) {
        return format!("`{name}` is too large to choose rows by; there are {listed}");
    }
    match suggestion(name, &known) {
        meant if meant.is_empty() => {
            format!("there is no column `{name}`; there are {listed}; text stands in single quotes: '{name}'")
        }
        meant => format!("there is no column `{name}`{meant}"),
    }
}

#[cfg(test)]
mod tests {
    use arrow::{
        array::{ArrayRef, StringArray},
        datatypes::Field,
    };

    use super::*;

    #[test]
    fn syntax_error_begins_with_its_place() {
        assert_eq!(
            syntax("Expected: an SQL statement, found: selct at Line: 1, Column: 1"),
            "line 1, column 1: expected an SQL statement, found `selct`"
        );
        assert_eq!(syntax("Expected: identifier, found: EOF"), "expected identifier, found the end of the statement");
        assert_eq!(
            syntax("Unterminated string literal at Line: 1, Column: 8"),
            "line 1, column 8: unterminated string literal"
        );
    }

    #[test]
    fn operators_of_every_kind_are_limited_and_lists_are_not() {
        for link in [" = ", "::", " is ", " < ", " xor ", " like ", "->", " union ", " || ", "[1] + "] {
            let chain = |values: usize| format!("select {}", vec!["a"; values].join(link));
            let per_link = if link == "[1] + " { 3 } else { 1 };
            assert!(check_length(&chain(MOST_OPERATORS / per_link + 2)).is_err(), "{link}");
            assert_eq!(check_length(&chain(MOST_OPERATORS / per_link + 1)), Ok(()), "{link}");
        }
        let columns: Vec<String> = (0..2_000).map(|n| format!("t.\"column {n}\" as \"in\", round(c{n}, 2)")).collect();
        let values: Vec<String> = (0..10_000).map(|n| format!("'it''s {n}', {n}.5, $1")).collect();
        let (columns, values) = (columns.join(", "), values.join(", "));
        let long = format!("select {columns} from t where x in ({values}) -- = + *\norder by ({values});");
        assert_eq!(check_length(&long), Ok(()));
    }

    #[test]
    fn predicate_finds_its_columns_by_name() {
        let fields = ["id", "split", "class"].map(|name| Field::new(name, DataType::Utf8, true));
        let filter = Filter::new("split = 'train' and class <> 'a' and split <> 'x'", &Schema::new(fields.to_vec()));
        let filter = filter.unwrap();
        assert_eq!(filter.columns, ["class", "split"]);
        let column = |values: [&str; 2]| Arc::new(StringArray::from(values.to_vec())) as ArrayRef;
        let rows = [("split", column(["train", "test"])), ("id", column(["1", "2"])), ("class", column(["b", "b"]))];
        let chosen = filter.evaluate(&RecordBatch::try_from_iter(rows).unwrap()).unwrap();
        assert_eq!(chosen, BooleanArray::from(vec![true, false]));
    }

    #[test]
    fn column_with_capitals_is_read_in_double_quotes() {
        let schema = Schema::new(vec![Field::new("Split", DataType::Utf8, true)]);
        let error = Filter::new("Split = 'train'", &schema).unwrap_err();
        assert!(error.starts_with("there is no column `split`; write \"Split\""), "{error}");
        assert_eq!(Filter::new("\"Split\" = 'train'", &schema).unwrap().columns, ["Split"]);
    }

    #[test]
    fn predicate_reads_light_columns_only() {
        let schema = Schema::new(vec![
            Field::new("id", DataType::Utf8, false),
            Field::new("split", DataType::Utf8, true),
            crate::engine::store::tensor_field("pixels", DataType::UInt8, &[2], false),
            crate::engine::store::volatile(Field::new("uri", DataType::Utf8, true)),
        ]);
        let filter = Filter::new("split = 'train'", &schema).unwrap();
        let split: ArrayRef = Arc::new(StringArray::from(vec![Some("train"), Some("test"), None]));
        let chosen = filter.evaluate(&RecordBatch::try_from_iter([("split", split)]).unwrap()).unwrap();
        assert_eq!(chosen.iter().map(|v| v == Some(true)).collect::<Vec<_>>(), [true, false, false]);
        let wrong = |text: &str| Filter::new(text, &schema).unwrap_err();
        assert_eq!(wrong("pixels = 1"), "`pixels` is too large to choose rows by; there are id, split, uri");
        let unquoted = "there is no column `train`; there are id, split, uri; text stands in single quotes: 'train'";
        assert_eq!(wrong("split = train"), unquoted);
        assert_eq!(wrong("spilt = 'train'"), "there is no column `spilt`; did you mean `split`?");
        assert_eq!(wrong(""), "expected an expression, found the end of the statement");
        assert_eq!(wrong("count(*) > 3"), "`count()` is about many rows, and a row is chosen by its own columns alone");
        assert!(Filter::new("uri like 'a/%'", &schema).unwrap_err().starts_with("`uri` says where a row lies"));
        assert!(Filter::new("split ||", &schema).is_err());
        let many = vec!["split = 'x'"; MOST_OPERATORS + 2].join(" or ");
        assert!(Filter::new(&many, &schema).unwrap_err().contains("`x in (1, 2, 3)` takes any number of values"));
        assert!(Filter::new("random() < 0.5", &schema).unwrap_err().contains("gives a different result each time"));
        assert!(
            Filter::new("length(split)", &schema).unwrap_err().contains("not a condition")
                || Filter::new("1 + 1", &schema).is_err()
        );
    }
}
