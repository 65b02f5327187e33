//! Tables -> a table, by a SQL query: filters, splits and joins are data, not Rust.

use std::sync::Arc;

use arrow::{
    array::RecordBatch,
    datatypes::{DataType, Field, Schema, SchemaRef},
};
use garde::Validate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    engine::{
        Error, Result,
        stage::{Context, Open, Operator, Output, Ports, Schemas, Stage},
        task::{Rows, Sink},
    },
    query,
};

/// Makes a table by a SQL query over the tables named in `from:`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields)]
pub struct Sql {
    /// The query, in DataFusion's SQL. Give an `order by` where the order matters.
    #[garde(length(min = 1))]
    pub query: String,
}

impl Stage for Sql {
    const NAME: &'static str = "sql";
    const REVISION: u32 = 1;
    const PORTS: Ports = Ports::Any;
    const OUTPUT: &'static [Output] = &[Output::Table];

    fn output(&self, inputs: &Schemas) -> Result<SchemaRef, String> {
        let tables: Vec<_> = inputs.0.iter().map(|(name, schema)| (name.clone(), schema.clone())).collect();
        let schema = query::schema_of_query(&self.query, &tables).map_err(|e| format!("`query`: {e}"))?;
        // Views are how DataFusion computes text, not how tables keep it.
        let plain = schema.fields().iter().map(|field| match field.data_type() {
            DataType::Utf8View | DataType::LargeUtf8 => {
                Arc::new(Field::new(field.name(), DataType::Utf8, field.is_nullable()))
            }
            _ => field.clone(),
        });
        Ok(Arc::new(Schema::new(plain.collect::<Vec<_>>())))
    }
}

impl Open for Sql {
    fn open(self, context: &Context) -> Result<Box<dyn Operator>> {
        let tables = context.tables.iter().map(|(name, batch)| (name.clone(), batch.clone())).collect();
        Ok(Box::new(Query { query: self.query, tables }))
    }
}

struct Query {
    query: String,
    tables: Vec<(String, RecordBatch)>,
}

impl Operator for Query {
    fn run(&mut self, _: &mut Rows, out: &mut Sink<'_>) -> Result<()> {
        let (_, batches) = query::query_batches(&self.query, self.tables.clone(), true).map_err(Error::Stage)?;
        batches.iter().try_for_each(|batch| out.write(batch))
    }
}
