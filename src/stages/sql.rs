//! Tables -> a table, by a SQL query. Filters, splits and joins are written in the pipeline instead of in Rust.

use std::{collections::BTreeMap, sync::Arc};

use arrow::datatypes::{Field, Schema, SchemaRef};
use garde::Validate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    engine::{
        Error, Result,
        stage::{Context, Misfit, Open, Operator, Output, Ports, Rows, Schemas, Sink, Stage},
        store::{is_heavy, plain},
    },
    query::statement::Statement,
};

/// Makes a table by a SQL query over the tables named in `from:`.
///
/// Only the columns that the query needs are read, and only a change of these columns reruns it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields)]
#[schemars(extend("examples" = [{ "query": "select count(*) as n from images" }]))]
pub struct Sql {
    /// The query, in DataFusion's SQL. It needs an `order by` if the order matters.
    #[garde(length(min = 1))]
    pub query: String,
    /// The kind of the result. With `rows` the first column identifies a row. With `row_per_row` the query returns
    /// each row that it reads again, the id first, with other columns, and only changed rows are computed: `select
    /// image_id, length(caption) as n from captions`.
    #[garde(skip)]
    #[serde(default = "table")]
    pub makes: Output,
}

fn table() -> Output {
    Output::Table
}

impl Sql {
    fn statement(&self, inputs: &Schemas) -> Result<Statement, Misfit> {
        let statement = Statement::new(&self.query, &inputs.all).map_err(|e| Misfit::parameter("query", e))?;
        if self.makes == Output::RowPerRow {
            statement.check_row_by_row(&inputs.by_row).map_err(|e| {
                let advice = "write `makes: table` or `makes: rows` for a query over all of them";
                Misfit::parameter("query", format!("{e}; {advice}"))
            })?;
        }
        Ok(statement)
    }
}

impl Stage for Sql {
    fn revision(&self) -> u32 {
        1
    }

    fn ports(&self) -> Ports {
        Ports::Any
    }

    fn makes(&self) -> Output {
        self.makes
    }

    fn is_quick(&self) -> bool {
        true
    }

    fn output(&self, inputs: &Schemas) -> Result<SchemaRef, Misfit> {
        if self.makes == Output::RowPerRow && inputs.by_row.is_empty() {
            return Err(Misfit::parameter("makes", "a row per row needs a table with row ids in `from:`"));
        }
        let schema = self.statement(inputs)?.schema();
        // DataFusion computes with views, but tables store plain values.
        let fields = schema.fields().iter().map(|field| match plain(field.data_type()) {
            same if same == *field.data_type() => field.clone(),
            kept => Arc::new(Field::new(field.name(), kept, field.is_nullable())),
        });
        Ok(Arc::new(Schema::new(fields.collect::<Vec<_>>())))
    }

    fn columns(&self, inputs: &Schemas) -> Result<BTreeMap<String, Vec<String>>, Misfit> {
        let mut columns = self.statement(inputs)?.columns().map_err(|e| Misfit::parameter("query", e))?;
        for (name, schema) in &inputs.all {
            let columns = columns.entry(name.clone()).or_default();
            if columns.is_empty() {
                // If only the number of rows matters, a column that is quick to read is used.
                let light = schema.fields().iter().find(|field| !is_heavy(field)).or(schema.fields().first());
                columns.extend(light.map(|field| field.name().clone()));
            }
        }
        Ok(columns)
    }
}

impl Open for Sql {
    fn open(self, context: &Context) -> Result<Box<dyn Operator>> {
        let statement = self.statement(&context.schemas)?;
        context.tables.iter().for_each(|(name, batch)| statement.set(name, batch.clone()));
        let by_row = context.schemas.by_row.clone();
        Ok(if by_row.is_empty() { Box::new(Whole(statement)) } else { Box::new(RowByRow { statement, by_row }) })
    }
}

/// A query over whole tables.
struct Whole(Statement);

impl Operator for Whole {
    fn run(&mut self, _: &mut Rows, out: &mut Sink<'_>) -> Result<()> {
        self.0.run().map_err(Error::Stage)?.iter().try_for_each(|batch| out.write(batch))
    }
}

/// A query over some rows at a time.
struct RowByRow {
    statement: Statement,
    by_row: Vec<String>,
}

impl Operator for RowByRow {
    fn run(&mut self, rows: &mut Rows, out: &mut Sink<'_>) -> Result<()> {
        while let Some(batch) = rows.next(usize::MAX)? {
            for (name, rows) in self.by_row.iter().filter_map(|name| Some((name, batch.port(name)?))) {
                self.statement.set(name, rows.clone());
            }
            self.statement.run().map_err(Error::Stage)?.iter().try_for_each(|batch| out.write(batch))?;
        }
        Ok(())
    }
}
