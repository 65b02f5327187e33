//! Statements of the clients of a server. Each has a session of its own, with bounds, so that it sees what is published when
//! it comes. Nothing here blocks a thread; all of it has to run on the threads of the store ([`Store::runtime`]).

use std::sync::Arc;

use arrow::{
    array::RecordBatch,
    datatypes::{Schema, SchemaRef},
};
use datafusion::{
    catalog::CatalogProvider, error::DataFusionError, execution::SendableRecordBatchStream, logical_expr::LogicalPlan,
};
use futures::StreamExt;

use super::{
    Bounds, Executable, Kept, Session,
    catalog::{CATALOG, blocking},
    parameters,
    wrong::query_error,
};
use crate::engine::{Error, Result, pipeline::check_length, store::Store};

/// A statement that was planned.
pub struct Planned {
    session: Arc<Session>,
    sql: String,
    plan: LogicalPlan,
}

impl std::fmt::Debug for Planned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Planned({})", self.sql)
    }
}

impl Planned {
    /// Plans a statement, which must only read. `pipeline` names the schema of bare table names; by default the pipeline
    /// that ran last. Rows in `kept` are not read from the store again.
    pub async fn new(
        store: &Store,
        pipeline: Option<&str>,
        bounds: Bounds,
        kept: &Arc<Kept>,
        sql: &str,
    ) -> Result<Self> {
        check_length(sql).map_err(Error::Input)?;
        let numbered = parameters::numbered(sql)?;
        let session = open(store, pipeline, bounds, Some(kept.clone())).await?;
        let plan = async {
            // The places in errors are those of the statement as it was written.
            let state = session.context.state();
            state.sql_to_statement(sql, &state.config_options().sql_parser.dialect)?;
            session.plan(&numbered).await
        };
        let planned = plan.await;
        match planned {
            Ok(plan) => Ok(Self { session, sql: sql.to_owned(), plan }),
            Err(error) => Err(wrong(session, error, sql.to_owned()).await),
        }
    }

    /// Returns the parameters: `$1`, `$2` and so on.
    pub fn parameters(&self) -> Result<Schema> {
        parameters::schema(&self.plan)
    }

    /// Puts the values of a row in place of the parameters.
    pub fn bind(self, row: &RecordBatch) -> Result<Self> {
        Ok(Self { plan: parameters::bind(self.plan, row)?, ..self })
    }

    /// Returns the schema of the result as far as it is known while parameters have no values.
    pub fn expected_schema(&self) -> SchemaRef {
        let optimized = self.session.context.state().optimize(&self.plan);
        Arc::new(optimized.as_ref().unwrap_or(&self.plan).schema().as_arrow().clone())
    }

    /// Makes the statement ready to be executed.
    ///
    /// # Errors
    /// [`Error::Input`] if it has parameters without values.
    pub async fn rows(self) -> Result<Rows> {
        let Self { session, sql, plan } = self;
        match parameters::schema(&plan)?.fields().len() {
            0 => {}
            count => {
                let parameters = if count == 1 { "a parameter" } else { "parameters" };
                return Err(Error::Input(format!(
                    "the statement has {parameters} without a value: bind {count} first"
                )));
            }
        }
        let ready = session.executable(&plan).await;
        match ready {
            Ok(executable) => {
                let schema = executable.plan.schema();
                Ok(Rows { session, sql, schema, state: State::Ready(executable) })
            }
            Err(error) => Err(wrong(session, error, sql).await),
        }
    }
}

/// The rows of a statement. It is executed from the first [`Rows::next`] on, and ended when this is dropped.
pub struct Rows {
    session: Arc<Session>,
    sql: String,
    schema: SchemaRef,
    state: State,
}

enum State {
    Ready(Executable),
    Running(SendableRecordBatchStream),
    Ended,
}

impl std::fmt::Debug for Rows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Rows({})", self.sql)
    }
}

impl Rows {
    /// Returns their schema.
    pub fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    /// Returns the next rows, or `None` at the end and after an error.
    pub async fn next(&mut self) -> Result<Option<RecordBatch>> {
        let next = self.computed().await;
        match next {
            Ok(batch) => Ok(batch),
            Err(error) => Err(wrong(self.session.clone(), error, self.sql.clone()).await),
        }
    }

    async fn computed(&mut self) -> Result<Option<RecordBatch>, DataFusionError> {
        let mut rows = match std::mem::replace(&mut self.state, State::Ended) {
            State::Ready(executable) => executable.start()?,
            State::Running(rows) => rows,
            State::Ended => return Ok(None),
        };
        let batch = rows.next().await.transpose()?;
        if batch.is_some() {
            self.state = State::Running(rows);
        }
        Ok(batch)
    }
}

/// The published tables and those of SQL itself, as they are listed for clients.
#[derive(Clone)]
pub struct Tables(Arc<Session>);

impl std::fmt::Debug for Tables {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tables of {:?}", self.0)
    }
}

impl Tables {
    /// The name of the catalogue in which all pipelines are.
    pub const CATALOG: &str = CATALOG;

    /// Lists the tables of a store.
    pub async fn open(store: &Store, pipeline: Option<&str>, bounds: Bounds) -> Result<Self> {
        Ok(Self(open(store, pipeline, bounds, None).await?))
    }

    fn catalog(&self) -> Option<Arc<dyn CatalogProvider>> {
        self.0.context.catalog(CATALOG)
    }

    /// Returns the names of pipelines, in order.
    pub fn pipelines(&self) -> Vec<String> {
        let mut names = self.catalog().map(|catalog| catalog.schema_names()).unwrap_or_default();
        names.sort();
        names
    }

    /// Returns the pipeline and the name of each table, in order.
    pub fn names(&self) -> Vec<(String, String)> {
        let mut names = Vec::new();
        for pipeline in self.pipelines() {
            let schema = self.catalog().and_then(|catalog| catalog.schema(&pipeline));
            let tables = schema.map(|schema| schema.table_names()).unwrap_or_default();
            names.extend(tables.into_iter().map(|table| (pipeline.clone(), table)));
        }
        names.sort();
        names
    }

    /// Returns the columns of a table; `None` if there is none of this name any more.
    pub async fn schema(&self, pipeline: &str, table: &str) -> Result<Option<SchemaRef>> {
        let Some(schema) = self.catalog().and_then(|catalog| catalog.schema(pipeline)) else { return Ok(None) };
        let table = schema.table(table).await.map_err(query_error)?;
        Ok(table.map(|table| table.schema()))
    }
}

async fn open(store: &Store, pipeline: Option<&str>, bounds: Bounds, kept: Option<Arc<Kept>>) -> Result<Arc<Session>> {
    let (store, pipeline) = (store.clone(), pipeline.map(str::to_owned));
    let session = blocking(move || Session::open_within(&store, pipeline.as_deref(), Some(bounds), kept)).await;
    session.map(Arc::new).map_err(query_error)
}

/// Makes the error about a statement. This may read parts that it has read, which blocks.
async fn wrong(session: Arc<Session>, error: DataFusionError, sql: String) -> Error {
    match blocking(move || Ok(session.wrong(error, &sql))).await {
        Ok(error) => error,
        Err(error) => query_error(error),
    }
}
