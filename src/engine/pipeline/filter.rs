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
        tokenizer::{Token, Tokenizer},
    },
};

use crate::engine::{
    Error, Result,
    store::{is_volatile, light_schema, volatile_misuse},
};

/// SQL's functions, which all sessions share, because making them is the main cost of a session.
static FUNCTIONS: LazyLock<SessionContext> = LazyLock::new(SessionContext::new);

/// The maximum number of operators in an expression. A chain of operators is a tree as deep as it has operators, and
/// it is walked by recursion on the stack of the program's commands.
const MOST_OPERATORS: usize = 5_000;

/// Refuses SQL that is too long to be planned.
pub fn check_length(sql: &str) -> Result<(), String> {
    let is_operator = |token: &Token| match token {
        Token::Word(word) => {
            matches!(
                word.keyword,
                Keyword::OR | Keyword::AND | Keyword::UNION | Keyword::EXCEPT | Keyword::INTERSECT | Keyword::JOIN
            )
        }
        Token::Plus | Token::Minus | Token::Mul | Token::Div | Token::Mod | Token::StringConcat => true,
        _ => false,
    };
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
        let names: Vec<&String> = schema.fields().iter().map(|field| field.name()).collect();
        let first_line = |e: DataFusionError| message(&e, &names);
        let logical = session.parse_sql_expr(text, &schema).map_err(first_line)?;
        if let Some(name) = unrepeatable(&logical).map_err(first_line)? {
            return Err(format!("`{name}()` gives a different result each time, and rows are chosen once and kept"));
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

/// Returns the message about an invalid predicate over columns of these names.
fn message(error: &DataFusionError, names: &[&String]) -> String {
    if let DataFusionError::SchemaError(schema, _) = error.find_root()
        && let SchemaError::FieldNotFound { field, .. } = schema.as_ref()
        && let Some(capital) = names.iter().find(|name| name.eq_ignore_ascii_case(&field.name))
    {
        let name = &field.name;
        return format!(
            "there is no column `{name}`; write \"{capital}\": names without double quotes are read in small letters"
        );
    }
    error.strip_backtrace().lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use arrow::{
        array::{ArrayRef, StringArray},
        datatypes::Field,
    };

    use super::*;

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
        assert!(Filter::new("pixels = 1", &schema).is_err());
        assert!(Filter::new("uri like 'a/%'", &schema).unwrap_err().starts_with("`uri` says where a row lies"));
        assert!(Filter::new("splitt = 'train'", &schema).is_err());
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
