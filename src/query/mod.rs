//! Published tables as SQL sees them.
//!
//! Each pipeline is a schema (`quickstart.metrics`); bare names refer to the pipeline that ran last. The instances of
//! a swept table are one table with a column per swept parameter. `metrics@RUN` is a table as a run left it, by the
//! run's id or a tag. Further tables are `runs`, `stage_runs` and `errors` (the history of runs, by table, and the
//! rows that failed), `paper_results` and `paper_datasets` (the numbers of the paper, of which ROC_I, ROC_P and PRO are
//! `image_auroc`, `pixel_auroc` and `aupro` times 100), and `field_results` (those of later methods, in percent, with their
//! sources). The metrics are aggregate functions.

mod aggregate;
mod batches;
mod catalog;
mod complete;
mod foreign;
mod history;
mod kept;
pub mod output;
mod parameters;
mod pauses;
mod planned;
mod split;
pub mod statement;
mod table;
mod wrong;

use std::{
    collections::BTreeSet,
    sync::{Arc, LazyLock, PoisonError},
};

use arrow::{array::RecordBatch, datatypes::SchemaRef};
use datafusion::{
    catalog::{
        CatalogProvider, TableProvider,
        memory::{MemoryCatalogProvider, MemoryCatalogProviderList},
    },
    error::DataFusionError,
    execution::{
        SendableRecordBatchStream, SessionStateBuilder, TaskContext,
        cache::{
            cache_manager::{CacheManagerConfig, FileMetadataCache},
            default_cache::DefaultCache,
        },
        context::SQLOptions,
        memory_pool::FairSpillPool,
        object_store::ObjectStoreUrl,
        runtime_env::{RuntimeEnv, RuntimeEnvBuilder},
    },
    logical_expr::LogicalPlan,
    physical_plan::{ExecutionPlan, execute_stream},
    prelude::{SessionConfig, SessionContext},
};
use futures::StreamExt;
use tokio::signal::unix::{Signal, SignalKind, signal};

pub use self::{
    kept::Kept,
    planned::{Planned, Rows, Tables},
    split::{is_ended, statements},
};

use self::{
    batches::rows_at_a_time,
    catalog::{CATALOG, Lazy, MakeTable, OfPipeline, PartsRead},
    complete::Names,
    foreign::Foreign,
    pauses::with_pauses,
    wrong::{query_error, statement_error},
};
use crate::engine::{
    Error, Result, Stop, or_none,
    pipeline::check_length,
    store::{Manifest, Store, last_pipeline},
};

/// The names of the tables that SQL has beside those of pipelines.
pub const TABLES_OF_SQL: [&str; 6] =
    ["runs", "stage_runs", "errors", "paper_results", "paper_datasets", "field_results"];

/// The same tables, each with what makes it.
const COMMON: [(&str, MakeTable); TABLES_OF_SQL.len()] = [
    ("runs", history::runs),
    ("stage_runs", history::stage_runs),
    ("errors", history::errors),
    ("paper_results", |_| csv(PAPER_RESULTS)),
    ("paper_datasets", |_| csv(PAPER_DATASETS)),
    ("field_results", |_| csv(FIELD_RESULTS)),
];

/// The query behind `show tables`. It leaves out the tables of `information_schema` itself.
const SHOW_TABLES: &str = "select table_schema as pipeline, table_name as \"table\" from information_schema.tables \
                           where table_schema <> 'information_schema' order by 1, 2";
const PAPER_RESULTS: &str = include_str!("../../data/paper_results.csv");
const PAPER_DATASETS: &str = include_str!("../../data/paper_datasets.csv");
const FIELD_RESULTS: &str = include_str!("../../data/field_results.csv");

/// A context with the functions of SQL and the metrics, from which every session begins, because making functions is the
/// main cost of a session.
static FUNCTIONS: LazyLock<SessionContext> = LazyLock::new(|| {
    let context = SessionContext::new();
    aggregate::register(&context);
    context
});

/// The bytes that [`FOOTERS`] takes at most.
const BYTES_OF_FOOTERS: usize = 32 << 20;

/// The footers of parts that sessions of this process have read, which say where the columns lie. A part never changes, so one
/// that was checked when it was read serves later sessions too. The bytes of columns are read and checked by each statement.
static FOOTERS: LazyLock<Arc<FileMetadataCache>> = LazyLock::new(|| Arc::new(DefaultCache::new(BYTES_OF_FOOTERS)));

/// The greatest share of its memory that a sort keeps free for the merging of what it has written to disk.
const SHARE_OF_MERGES: usize = 16;

/// The bounds of a statement. Beyond its memory a sort or an aggregation continues on disk, and a join ends with an error.
/// Rows on their way are not counted: they are few, since [`batches`] bounds their bytes.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Bytes of memory for sorting, grouping and joining.
    pub memory: usize,
    /// Bytes of temporary files.
    pub disk: u64,
}

/// A session over everything that a store has published.
pub struct Session {
    context: SessionContext,
    store: Store,
    /// The pipeline to which bare table names refer.
    pipeline: String,
    read: PartsRead,
    writes: bool,
    bounds: Option<Bounds>,
    ends_at_interrupt: bool,
    stop: Option<Stop>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Session({:?})", self.store)
    }
}

impl Session {
    /// Opens a session. `pipeline` names the schema of bare table names; by default the pipeline that ran last.
    pub fn open(store: &Store, pipeline: Option<&str>) -> Result<Self> {
        Self::open_within(store, pipeline, None, None)
    }

    /// Opens a session whose statements have bounds, if some are given. Such statements change no settings, which could
    /// lift the bounds. Rows in `kept` are not read from the store again.
    fn open_within(
        store: &Store,
        pipeline: Option<&str>,
        bounds: Option<Bounds>,
        kept: Option<Arc<Kept>>,
    ) -> Result<Self> {
        let (slots, unfinished) = (store.tables()?, store.unfinished_tables()?);
        let pipelines: BTreeSet<&str> = slots.iter().map(|(pipeline, _)| pipeline.as_str()).collect();
        let default = match pipeline {
            Some(name) if !pipelines.contains(name) => {
                let names: Vec<&str> = pipelines.into_iter().collect();
                return Err(Error::Input(format!(
                    "the store {} has no pipeline `{name}`; it has {}",
                    store.url,
                    or_none(&names)
                )));
            }
            Some(name) => name.to_owned(),
            None => latest(store, &pipelines)?.unwrap_or_else(|| "public".to_owned()),
        };
        let context = context(&default, bounds, kept).map_err(query_error)?;
        let objects = ObjectStoreUrl::parse(table::OBJECTS).map_err(query_error)?;
        context.register_object_store(objects.as_ref(), store.objects.clone());
        let catalog = Arc::new(MemoryCatalogProvider::new());
        context.register_catalog(CATALOG, catalog.clone());
        let read = PartsRead::default();
        for name in pipelines.into_iter().chain([default.as_str()]) {
            let tables = OfPipeline::new(store, name, &slots, &unfinished, &read)?;
            let tables = if name == default { tables.with_common(COMMON) } else { tables };
            catalog.register_schema(name, Arc::new(tables)).map_err(query_error)?;
        }
        let store = store.clone();
        let (writes, ends_at_interrupt, stop) = (false, false, None);
        Ok(Self { context, store, pipeline: default, read, writes, bounds, ends_at_interrupt, stop })
    }

    /// Permits statements that make tables of this session and write files. Published tables stay as they are.
    pub fn allow_write(self) -> Self {
        Self { writes: true, ..self }
    }

    /// Makes an interrupt signal end a statement with [`Error::Interrupted`] instead of ending the process.
    pub fn end_at_interrupt(self) -> Self {
        Self { ends_at_interrupt: true, ..self }
    }

    /// Makes statements read one part after another, so that all rows of a table come in the order in which they are stored.
    pub fn in_order(self) -> Self {
        let config = self.context.copied_config().with_target_partitions(1);
        *self.context.state_ref().write().config_mut() = config;
        self
    }

    /// Makes a request to stop end a statement with [`Error::Interrupted`].
    pub fn end_at(self, stop: &Stop) -> Self {
        Self { stop: Some(stop.clone()), ..self }
    }

    /// Returns the pipeline to which bare table names refer.
    pub fn pipeline(&self) -> &str {
        &self.pipeline
    }

    /// Returns the names of the tables that bare names can mean.
    pub fn tables(&self) -> Vec<String> {
        let schema = self.context.catalog(CATALOG).and_then(|catalog| catalog.schema(&self.pipeline));
        schema.map(|schema| schema.table_names()).unwrap_or_default()
    }

    /// Returns the rows of a query as a table for sessions of other programs that have DataFusion, such as Python's. This
    /// session computes them.
    pub fn table(&self, query: &str) -> Result<Arc<dyn TableProvider>> {
        check_length(query).map_err(Error::Input)?;
        let options = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
        let frame = self.store.runtime().block_on(self.context.sql_with_options(query, options));
        let view = frame.map_err(|error| self.wrong(error, query))?.into_view();
        Ok(Arc::new(Foreign::new(view, &self.context, &self.store)))
    }

    /// Runs one statement to its end.
    pub fn query(&self, sql: &str) -> Result<(SchemaRef, Vec<RecordBatch>)> {
        let mut answer = self.answer(sql)?;
        let mut batches = Vec::new();
        while let Some(batch) = answer.next()? {
            batches.push(batch);
        }
        Ok((answer.schema, batches))
    }

    /// Starts one statement, whose rows are read as they are computed.
    pub fn answer(&self, sql: &str) -> Result<Answer<'_>> {
        check_length(sql).map_err(Error::Input)?;
        let _in_runtime = self.store.runtime().enter();
        let signal = self.ends_at_interrupt.then(|| signal(SignalKind::interrupt())).transpose()?;
        let mut ends = Ends { signal, stop: self.stop.clone() };
        let begin = async {
            let plan = self.plan(sql).await?;
            let schema: SchemaRef = Arc::new(plan.schema().as_arrow().clone());
            Ok((schema, self.executable(&plan).await?.start()?))
        };
        let begun = self.store.runtime().block_on(unless(&mut ends, begin)).ok_or(Error::Interrupted)?;
        let (schema, rows) = begun.map_err(|error| self.wrong(error, sql))?;
        Ok(Answer { session: self, sql: sql.to_owned(), schema, rows, ends })
    }

    /// Plans a statement. One that makes something in the session is executed.
    async fn plan(&self, sql: &str) -> Result<LogicalPlan, DataFusionError> {
        let words = || sql.trim_end_matches(';').split_whitespace().map(str::to_lowercase);
        let statement = if words().eq(["show", "tables"]) { SHOW_TABLES } else { sql };
        let options = SQLOptions::new()
            .with_allow_ddl(self.writes)
            .with_allow_dml(self.writes)
            .with_allow_statements(self.bounds.is_none());
        Ok(self.context.sql_with_options(statement, options).await?.into_unoptimized_plan())
    }

    /// Makes a planned statement ready to be executed, in batches of bounded bytes.
    async fn executable(&self, plan: &LogicalPlan) -> Result<Executable, DataFusionError> {
        let mut state = self.context.state();
        let plan = state.optimize(plan)?;
        let config = state.config().clone();
        let rows = rows_at_a_time(&plan, config.batch_size())?;
        *state.config_mut() = config.with_batch_size(rows);
        let plan = state.query_planner().create_physical_plan(&plan, &state).await?;
        Ok(Executable { plan: with_pauses(plan)?, context: state.task_ctx() })
    }

    /// Returns the names that can stand at a place of a statement, and where the name that is begun there starts.
    pub fn complete(&self, statement: &str, at: usize) -> (usize, Vec<String>) {
        let Self { context, store, pipeline, .. } = self;
        Names { context, store, pipeline }.complete(statement, at)
    }

    /// Makes the error about a statement, or about a damaged part of a table that it reads.
    fn wrong(&self, error: DataFusionError, sql: &str) -> Error {
        use DataFusionError::{External, IoError, ObjectStore, ParquetError};
        if let (Some(bounds), DataFusionError::ResourcesExhausted(_)) = (self.bounds, error.find_root()) {
            return Error::Memory(bounds.exceeded());
        }
        let is_of_storage = |error: &_| matches!(error, ParquetError(_) | ObjectStore(_) | IoError(_) | External(_));
        let damage = if is_of_storage(&error) || is_of_storage(error.find_root()) { self.damage() } else { None };
        let reads = if self.bounds.is_some() { ALWAYS_READS } else { ONLY_READS };
        damage.unwrap_or_else(|| statement_error(error, sql, &self.context, reads))
    }

    /// Returns the error about the first part that is damaged or missing, among the tables that were read. DataFusion
    /// reports a part that cannot be read only as text.
    fn damage(&self) -> Option<Error> {
        let read = self.read.lock().unwrap_or_else(PoisonError::into_inner).clone();
        read.into_iter().find_map(|part| match self.store.part(part) {
            Err(Error::Lost { digest, message }) => Some(Error::lost(
                digest,
                format!("{message}; `vlmdiff run --verify` of its pipeline computes the parts of current tables again"),
            )),
            _ => None,
        })
    }
}

const ONLY_READS: &str = "statements only read, unless the session is opened with --allow-write";
const ALWAYS_READS: &str = "the tables are only read here: by `select`, `show`, `describe` and `explain`";

impl Bounds {
    /// Returns the message about a statement that would take more.
    fn exceeded(self) -> String {
        let size = |bytes: u64| match bytes {
            bytes if bytes >= 1 << 20 => format!("{} MiB", bytes >> 20),
            bytes => format!("{bytes} bytes"),
        };
        format!(
            "the statement takes more than its {} of memory, or than {} of temporary files; fewer columns, rows or groups \
             take less, and who runs the server can raise the limits",
            size(self.memory as u64),
            size(self.disk)
        )
    }
}

/// Makes a context without tables. `pipeline` is the schema of bare names.
fn context(pipeline: &str, bounds: Option<Bounds>, kept: Option<Arc<Kept>>) -> Result<SessionContext, DataFusionError> {
    let mut config =
        SessionConfig::new().with_default_catalog_and_schema(CATALOG, pipeline).with_information_schema(true);
    if let Some(kept) = kept {
        config = config.with_extension(kept);
    }
    let caches = CacheManagerConfig::default()
        .with_file_metadata_cache(Some(FOOTERS.clone()))
        .with_metadata_cache_limit(BYTES_OF_FOOTERS);
    let mut runtime = RuntimeEnvBuilder::new().with_cache_manager(caches);
    if let Some(Bounds { memory, disk }) = bounds {
        runtime = runtime.with_memory_pool(Arc::new(FairSpillPool::new(memory))).with_max_temp_directory_size(disk);
        let options = config.options_mut();
        let merges = &mut options.execution.sort_spill_reservation_bytes;
        *merges = (*merges).min(memory / SHARE_OF_MERGES);
        // Not all clients know the type of texts that functions return.
        options.optimizer.expand_views_at_output = true;
    }
    let runtime: Arc<RuntimeEnv> = runtime.build_arc()?;
    let state = SessionStateBuilder::new_from_existing(FUNCTIONS.state())
        .with_config(config)
        .with_runtime_env(runtime)
        .with_catalog_list(Arc::new(MemoryCatalogProviderList::new()))
        .build();
    Ok(SessionContext::new_with_state(state))
}

/// A statement that is ready to be executed.
struct Executable {
    plan: Arc<dyn ExecutionPlan>,
    context: Arc<TaskContext>,
}

impl Executable {
    fn start(self) -> Result<SendableRecordBatchStream, DataFusionError> {
        execute_stream(self.plan, self.context)
    }
}

/// The rows of a statement, read as they are computed.
pub struct Answer<'a> {
    session: &'a Session,
    sql: String,
    /// Their schema.
    pub schema: SchemaRef,
    rows: SendableRecordBatchStream,
    ends: Ends,
}

/// The requests that end a statement before its last row.
struct Ends {
    signal: Option<Signal>,
    stop: Option<Stop>,
}

impl std::fmt::Debug for Answer<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Answer({})", self.sql)
    }
}

impl Answer<'_> {
    /// Returns the next rows, or `None` at the end.
    pub fn next(&mut self) -> Result<Option<RecordBatch>> {
        let Self { session, sql, rows, ends, .. } = self;
        let next = session.store.runtime().block_on(unless(ends, rows.next())).ok_or(Error::Interrupted)?;
        next.transpose().map_err(|error| session.wrong(error, sql))
    }
}

/// Does some work; `None` if it is ended before it is done.
async fn unless<T>(ends: &mut Ends, work: impl Future<Output = T>) -> Option<T> {
    let Ends { signal, stop } = ends;
    tokio::select! {
        done = work => Some(done),
        Some(_) = async { signal.as_mut()?.recv().await } => None,
        Some(()) = async {
            stop.as_ref()?.requested().await;
            Some(())
        } => None,
    }
}

/// Returns the pipeline that bare names mean: the one that ran last, other than to judge new photographs, among those that
/// have published tables.
pub fn latest(store: &Store, pipelines: &BTreeSet<&str>) -> Result<Option<String>> {
    if pipelines.len() < 2 {
        return Ok(pipelines.first().map(|name| (*name).to_owned()));
    }
    let last = last_pipeline(store, |name| pipelines.contains(name)).map_err(|error| match error {
        Error::Damaged(what) => Error::Damaged(format!("{what}; --pipeline says which pipeline bare names mean")),
        other => other,
    })?;
    if last.is_some() {
        return Ok(last);
    }
    // Without logs of runs, the pipeline of the table that was published last is taken.
    Ok(manifests(store)?.into_iter().max_by_key(|(_, manifest)| manifest.published_ms).map(|(pipeline, _)| pipeline))
}

/// Returns the current manifest of every published table that its pipeline still declares.
pub fn manifests(store: &Store) -> Result<Vec<(String, Manifest)>> {
    let mut manifests = Vec::new();
    for tables in store.tables()?.chunk_by(|a, b| a.0 == b.0) {
        let (pipelines, slots): (Vec<String>, Vec<String>) = tables.iter().cloned().unzip();
        for (pipeline, current) in pipelines.iter().zip(store.current(&pipelines[0], &slots)?) {
            let manifest = current.whole()?.map(|(_, manifest)| manifest).filter(|manifest| !manifest.retired);
            manifests.extend(manifest.map(|manifest| (pipeline.clone(), manifest)));
        }
    }
    Ok(manifests)
}

/// Makes a table of published numbers. Its types are inferred from its rows.
fn csv(text: &'static str) -> Result<Lazy> {
    let format = arrow::csv::reader::Format::default().with_header(true);
    let schema = Arc::new(format.infer_schema(text.as_bytes(), None)?.0);
    Ok(Lazy::new(schema.clone(), move || {
        let reader = arrow::csv::ReaderBuilder::new(schema.clone()).with_header(true).build(text.as_bytes())?;
        Ok(arrow::compute::concat_batches(&schema, &reader.collect::<Result<Vec<_>, _>>()?)?)
    }))
}
