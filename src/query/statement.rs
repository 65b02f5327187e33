//! A query over tables in memory, which is planned once and run whenever they change.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
};

use arrow::{array::RecordBatch, datatypes::SchemaRef};
use datafusion::{
    catalog::{Session, TableProvider},
    common::{
        JoinType, SchemaError, TableReference,
        tree_node::{TreeNode, TreeNodeRecursion},
    },
    error::DataFusionError,
    execution::{SendableRecordBatchStream, TaskContext, context::SQLOptions},
    logical_expr::{Expr, LogicalPlan, TableType},
    physical_plan::{
        ExecutionPlan, collect,
        execution_plan::reset_plan_states,
        stream::RecordBatchStreamAdapter,
        streaming::{PartitionStream, StreamingTableExec},
    },
    prelude::SessionContext,
};

use super::{
    aggregate,
    split::statements,
    wrong::{query_error, statement_error},
};
use crate::engine::{
    pipeline::{check_length, session, unrepeatable},
    store::{is_volatile, volatile_misuse},
};

/// The number of rows that DataFusion processes at a time.
const BATCH_ROWS: usize = 8192;

/// A planned query over tables of known schemas. The tables it reads are set with [`Statement::set`].
pub struct Statement {
    context: SessionContext,
    runtime: tokio::runtime::Runtime,
    tables: BTreeMap<String, Arc<Table>>,
    /// The plan of the query as written, before optimisation.
    plan: LogicalPlan,
    physical: Option<Arc<dyn ExecutionPlan>>,
}

fn message(error: DataFusionError) -> String {
    query_error(error).to_string()
}

impl Statement {
    /// Plans a query, which must only read.
    pub fn new(sql: &str, schemas: &BTreeMap<String, SchemaRef>) -> Result<Self, String> {
        check_length(sql)?;
        if statements(sql).is_ok_and(|all| all.len() > 1) {
            return Err("a `;` ends the first of several statements, and a table is made by one".into());
        }
        let runtime = tokio::runtime::Builder::new_current_thread().build().map_err(|e| e.to_string())?;
        // A single partition makes equal inputs give equal rows in equal order.
        let context = session().map_err(message)?;
        aggregate::register(&context);
        let config = context.copied_config().with_target_partitions(1).with_batch_size(BATCH_ROWS);
        *context.state_ref().write().config_mut() = config;
        let tables: BTreeMap<String, Arc<Table>> =
            schemas.iter().map(|(name, schema)| (name.clone(), Arc::new(Table::new(name, &lasting(schema))))).collect();
        for (name, table) in &tables {
            context.register_table(TableReference::bare(name.as_str()), table.clone()).map_err(message)?;
        }
        let options = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
        let wrong = |error: DataFusionError| {
            let reason = volatile_column(&error, schemas);
            reason.unwrap_or_else(|| statement_error(error, sql, &context, "a query only reads").to_string())
        };
        let frame = runtime.block_on(context.sql_with_options(sql, options)).map_err(wrong)?;
        let plan = frame.logical_plan().clone();
        check_repeatable(&plan)?;
        Ok(Self { context, runtime, tables, plan, physical: None })
    }

    fn optimized(&self) -> Result<LogicalPlan, String> {
        self.context.state().optimize(&self.plan).map_err(message)
    }

    /// Returns the schema of the result.
    pub fn schema(&self) -> SchemaRef {
        Arc::new(self.plan.schema().as_arrow().clone())
    }

    /// Returns the columns that the query reads of each table, in the table's order; empty for a table of which only
    /// the number of rows matters.
    pub fn columns(&self) -> Result<BTreeMap<String, Vec<String>>, String> {
        let mut read: BTreeMap<String, BTreeSet<usize>> =
            self.tables.keys().map(|name| (name.clone(), BTreeSet::new())).collect();
        let visit = |node: &LogicalPlan| {
            if let LogicalPlan::TableScan(scan) = node {
                let all = (0..scan.source.schema().fields().len()).collect();
                let columns = scan.projection.clone().unwrap_or(all);
                read.entry(scan.table_name.table().to_owned()).or_default().extend(columns);
            }
            Ok(TreeNodeRecursion::Continue)
        };
        self.optimized()?.apply_with_subqueries(visit).map_err(message)?;
        let names = |(name, columns): (String, BTreeSet<usize>)| {
            let schema = self.tables.get(&name).map(|table| table.schema.clone());
            let names = schema.map(|schema| columns.iter().map(|i| schema.field(*i).name().clone()).collect());
            (name, names.unwrap_or_default())
        };
        Ok(read.into_iter().map(names).collect())
    }

    /// Refuses queries that do not give one row for each row of `tables` if only some of their rows are present at a
    /// time.
    pub fn check_row_by_row(&self, tables: &[String]) -> Result<(), String> {
        let reads = |node: &LogicalPlan| {
            node.exists(|node| {
                Ok(matches!(node, LogicalPlan::TableScan(scan) if tables.iter().any(|t| t == scan.table_name.table())))
            })
        };
        let mut found = None;
        let visit = |node: &LogicalPlan| {
            let across = match node {
                LogicalPlan::Aggregate(_) => "aggregates",
                LogicalPlan::Distinct(_) => "`distinct`",
                LogicalPlan::Limit(_) => "`limit`",
                LogicalPlan::Sort(_) => "`order by`",
                LogicalPlan::Window(_) => "window functions",
                LogicalPlan::Union(_) => "`union`",
                _ => return Ok(TreeNodeRecursion::Continue),
            };
            if reads(node)? {
                found = Some(across);
                return Ok(TreeNodeRecursion::Stop);
            }
            Ok(TreeNodeRecursion::Continue)
        };
        self.plan.apply_with_subqueries(visit).map_err(message)?;
        // Tables are joined by their ids. Other rows of them are not present.
        let is_id = |side: &Expr, plan: &LogicalPlan| is_id(side, plan, tables);
        let visit = |node: &LogicalPlan| {
            let mut across = match node {
                LogicalPlan::Join(join) if reads(&join.left)? && reads(&join.right)? => {
                    let by_id = join.on.iter().any(|(a, b)| is_id(a, &join.left) && is_id(b, &join.right));
                    (!by_id).then_some("`join` but on their ids")
                }
                _ => None,
            };
            // The optimiser turns subqueries that refer to the outer row into joins. The remaining subqueries read
            // all rows.
            node.apply_expressions(|expression| {
                expression.apply(|expression| {
                    let subquery = match expression {
                        Expr::ScalarSubquery(subquery) => subquery,
                        Expr::InSubquery(within) => &within.subquery,
                        Expr::Exists(exists) => &exists.subquery,
                        _ => return Ok(TreeNodeRecursion::Continue),
                    };
                    if reads(&subquery.subquery)? {
                        across = Some("subqueries");
                    }
                    Ok(TreeNodeRecursion::Continue)
                })
            })?;
            found = found.or(across);
            Ok(if found.is_some() { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
        };
        self.optimized()?.apply_with_subqueries(visit).map_err(message)?;
        found.map_or(Ok(()), |across| {
            let rows = tables.join(", ");
            Err(format!("no {across} where the rows of {rows} are read one by one"))
        })
    }

    /// Sets the rows of a table, with at least the columns that the query reads.
    pub fn set(&self, table: &str, rows: RecordBatch) {
        if let Some(table) = self.tables.get(table) {
            *table.rows.lock().unwrap_or_else(PoisonError::into_inner) = Some(rows);
        }
    }

    /// Runs the query over the rows that are set.
    pub fn run(&mut self) -> Result<Vec<RecordBatch>, String> {
        let state = self.context.state();
        let physical = match self.physical.take() {
            // A join keeps the side that it has read, so its state is reset.
            Some(physical) => reset_plan_states(physical),
            None => self.runtime.block_on(state.create_physical_plan(&self.plan)),
        };
        let physical = self.physical.insert(physical.map_err(message)?).clone();
        self.runtime.block_on(collect(physical, state.task_ctx())).map_err(message)
    }
}

/// Returns true if a side of a join is the id of one of these tables, unchanged: the first column of its scan.
fn is_id(side: &Expr, plan: &LogicalPlan, tables: &[String]) -> bool {
    let Expr::Column(column) = side else { return false };
    let at = plan.schema().maybe_index_of_column(column);
    at.and_then(|at| origin(plan, at)).is_some_and(|(table, at)| at == 0 && tables.contains(&table))
}

/// Returns the table and the column that the column at a position of a plan's result is, if it is unchanged.
fn origin(plan: &LogicalPlan, at: usize) -> Option<(String, usize)> {
    match plan {
        LogicalPlan::TableScan(scan) => {
            let at = scan.projection.as_ref().map_or(Some(at), |projection| projection.get(at).copied())?;
            Some((scan.table_name.table().to_owned(), at))
        }
        LogicalPlan::Projection(projection) => {
            let mut expression = projection.expr.get(at)?;
            while let Expr::Alias(alias) = expression {
                expression = &alias.expr;
            }
            let Expr::Column(column) = expression else { return None };
            origin(&projection.input, projection.input.schema().maybe_index_of_column(column)?)
        }
        LogicalPlan::SubqueryAlias(alias) => origin(&alias.input, at),
        LogicalPlan::Filter(filter) => origin(&filter.input, at),
        LogicalPlan::Join(join) => match join.join_type {
            JoinType::Inner | JoinType::Left | JoinType::Right | JoinType::Full => {
                let left = join.left.schema().fields().len();
                if at < left { origin(&join.left, at) } else { origin(&join.right, at - left) }
            }
            JoinType::LeftSemi | JoinType::LeftAnti => origin(&join.left, at),
            JoinType::RightSemi | JoinType::RightAnti => origin(&join.right, at),
            _ => None,
        },
        _ => None,
    }
}

/// Returns the columns of a table that are part of its rows' identity. Volatile columns change without a new row.
fn lasting(schema: &SchemaRef) -> SchemaRef {
    let kept: Vec<usize> = (0..schema.fields().len()).filter(|at| !is_volatile(schema.field(*at))).collect();
    // The positions are those of the schema itself, so projecting cannot fail.
    schema.project(&kept).map_or_else(|_| schema.clone(), Arc::new)
}

/// Returns the message about a missing column, if a query asks for a volatile one.
fn volatile_column(error: &DataFusionError, schemas: &BTreeMap<String, SchemaRef>) -> Option<String> {
    let DataFusionError::SchemaError(error, _) = error.find_root() else { return None };
    let SchemaError::FieldNotFound { field, .. } = error.as_ref() else { return None };
    let is_volatile = |schema: &SchemaRef| schema.field_with_name(&field.name).is_ok_and(is_volatile);
    schemas.values().any(is_volatile).then(|| volatile_misuse(&field.name))
}

/// Refuses functions whose results differ from call to call, because a table is computed once and kept.
fn check_repeatable(plan: &LogicalPlan) -> Result<(), String> {
    let mut found = None;
    let visit = |node: &LogicalPlan| {
        node.apply_expressions(|expression| {
            found = found.take().or(unrepeatable(expression)?);
            Ok(TreeNodeRecursion::Continue)
        })
    };
    plan.apply_with_subqueries(visit).map_err(message)?;
    found.map_or(Ok(()), |name| {
        Err(format!("`{name}()` gives a different result each time, and a table is computed once and kept"))
    })
}

/// A table whose rows are set before each run.
#[derive(Debug)]
struct Table {
    name: String,
    schema: SchemaRef,
    rows: Arc<Mutex<Option<RecordBatch>>>,
}

impl Table {
    fn new(name: &str, schema: &SchemaRef) -> Self {
        Self { name: name.to_owned(), schema: schema.clone(), rows: Arc::default() }
    }
}

#[async_trait::async_trait]
impl TableProvider for Table {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        _: &dyn Session,
        projection: Option<&Vec<usize>>,
        _: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>, DataFusionError> {
        let schema = match projection {
            Some(projection) => Arc::new(self.schema.project(projection)?),
            None => self.schema.clone(),
        };
        let scan = Scan { table: self.name.clone(), schema: schema.clone(), rows: self.rows.clone() };
        Ok(Arc::new(StreamingTableExec::try_new(schema, vec![Arc::new(scan)], None, [], false, limit)?))
    }
}

/// A scan of some columns of a table.
#[derive(Debug)]
struct Scan {
    table: String,
    schema: SchemaRef,
    rows: Arc<Mutex<Option<RecordBatch>>>,
}

impl Scan {
    fn batch(&self) -> Result<RecordBatch, DataFusionError> {
        let rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let rows = rows.ok_or_else(|| DataFusionError::Internal(format!("`{}` has no rows set", self.table)))?;
        let columns: Vec<usize> =
            self.schema.fields().iter().map(|f| rows.schema_ref().index_of(f.name())).collect::<Result<_, _>>()?;
        Ok(rows.project(&columns)?.with_schema(self.schema.clone())?)
    }
}

impl PartitionStream for Scan {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let batches: Vec<Result<RecordBatch, DataFusionError>> = match self.batch() {
            Ok(batch) => (0..batch.num_rows())
                .step_by(BATCH_ROWS)
                .map(|start| Ok(batch.slice(start, BATCH_ROWS.min(batch.num_rows() - start))))
                .collect(),
            Err(error) => vec![Err(error)],
        };
        Box::pin(RecordBatchStreamAdapter::new(self.schema.clone(), futures::stream::iter(batches)))
    }
}

#[cfg(test)]
mod tests {
    use arrow::{
        array::{ArrayRef, AsArray, Int64Array, StringArray},
        datatypes::{DataType, Field, Int64Type, Schema},
    };

    use super::*;
    use crate::engine::store::tensor_field;

    fn schemas() -> BTreeMap<String, SchemaRef> {
        let table = |columns: &[(&str, DataType)]| {
            let fields = columns.iter().map(|(name, of)| Field::new(*name, of.clone(), true));
            let pixels = tensor_field("pixels", DataType::UInt8, &[4], true);
            Arc::new(Schema::new(fields.chain([pixels]).collect::<Vec<_>>()))
        };
        BTreeMap::from([
            ("a".to_owned(), table(&[("id", DataType::Utf8), ("x", DataType::Int64), ("y", DataType::Int64)])),
            ("b".to_owned(), table(&[("id", DataType::Utf8), ("z", DataType::Int64)])),
            // The second column has the name of the ids of `a`, but is not the id.
            ("c".to_owned(), table(&[("key", DataType::Utf8), ("id", DataType::Utf8), ("w", DataType::Int64)])),
        ])
    }

    fn statement(sql: &str) -> Statement {
        Statement::new(sql, &schemas()).unwrap()
    }

    #[test]
    fn query_reads_only_the_columns_it_needs() {
        let columns = |sql: &str| {
            let columns = statement(sql).columns().unwrap();
            format!("{} | {}", columns["a"].join(" "), columns["b"].join(" "))
        };
        assert_eq!(columns("select count(*) from a"), " | ");
        assert_eq!(columns("select id from (select * from a) where y > 1"), "id y | ");
        assert_eq!(columns("select a.x from a join b on a.id = b.id"), "id x | id");
        assert_eq!(columns("select x from a where y = (select max(z) from b)"), "x y | z");
        assert_eq!(columns("with c as (select id, x from a) select x from c order by x limit 1"), "x | ");
        assert_eq!(columns("select * from b"), " | id z pixels");
    }

    #[test]
    fn plan_is_run_again_on_other_rows() {
        let mut statement = statement("select a.id, x + z as sum from a join b on a.id = b.id");
        for offset in [0, 10] {
            let ids: ArrayRef = Arc::new(StringArray::from(vec!["p", "q"]));
            let numbers: ArrayRef = Arc::new(Int64Array::from(vec![offset, offset + 1]));
            let table = |name| RecordBatch::try_from_iter([("id", ids.clone()), (name, numbers.clone())]).unwrap();
            statement.set("a", table("x"));
            statement.set("b", table("z"));
            let rows = statement.run().unwrap();
            assert_eq!(rows[0].column(1).as_primitive::<Int64Type>().values(), &[2 * offset, 2 * offset + 2]);
        }
    }

    #[test]
    fn query_that_reads_across_rows_is_refused_row_by_row() {
        let check = |sql: &str| statement(sql).check_row_by_row(&["a".to_owned()]);
        assert_eq!(check("select id, x + 1 from a"), Ok(()));
        assert_eq!(check("select id, x / (select max(z) from b) from a"), Ok(()));
        assert_eq!(check("select a.id, b.z from a join b on a.x = b.z"), Ok(()));
        assert_eq!(check("select p.id, q.x from a p join a q on p.id = q.id where q.x > 1"), Ok(()));
        let check_both = |sql: &str| statement(sql).check_row_by_row(&["a".to_owned(), "c".to_owned()]);
        for sql in [
            "select a.id, c.id, w from a join c on a.id = c.key",
            "select a.id, w from a left join (select key as image, w from c where w > 0) q on a.id = q.image",
            "select id from a where id in (select key from c)",
        ] {
            assert_eq!(check_both(sql), Ok(()), "{sql}");
        }
        for (sql, what) in [
            ("select id, sum(x) from a group by id", "aggregates"),
            ("select id from a limit 3", "`limit`"),
            ("select id from a order by x", "`order by`"),
            ("select id, row_number() over (order by x) from a", "window functions"),
            ("select distinct id from a", "`distinct`"),
            ("select z from b where z = (select max(x) from a)", "aggregates"),
            ("select p.id, q.x from a p left join a q on q.id = 'one'", "`join` but on their ids"),
            ("select p.id, q.x from a p join a q on p.x = q.y", "`join` but on their ids"),
            ("select p.id, q.x from a p, a q", "`join` but on their ids"),
            ("select a.id, q.y from a join (select y as id, y from a) q on a.id = q.id", "`join` but on their ids"),
            ("select a.id, c.w from a join c on a.id = c.id", "`join` but on their ids"),
            ("select a.id, c.w from a left join c on a.id = c.id", "`join` but on their ids"),
            ("select a.id, q.w from a join (select id as key, w from c) q on a.id = q.key", "`join` but on their ids"),
            ("select id from a where id in (select id from c)", "`join` but on their ids"),
            ("select id, (select w from c) from a", "subqueries"),
        ] {
            let check = |sql: &str| statement(sql).check_row_by_row(&["a".to_owned(), "c".to_owned()]);
            let message = check(sql).unwrap_err();
            assert!(message.starts_with(&format!("no {what} where")), "{sql}: {message}");
        }
    }

    fn wrong(sql: &str) -> String {
        Statement::new(sql, &schemas()).err().unwrap()
    }

    #[test]
    fn errors_of_statements_are_those_of_sessions() {
        for (sql, expected) in [
            ("selct x from a", "line 1, column 1: expected an SQL statement, found `selct`"),
            ("select x from aa", "there is no table `aa`; did you mean `a`? There are a, b, c"),
            ("select x from light.a", "there is no table `light.a`; there are a, b, c"),
            (
                "select nothing from a",
                "there is no column `nothing`; there are id, x, y, pixels; text stands in single quotes: 'nothing'",
            ),
            ("select auroc(id, true) from a", "auroc(score, label): `score` is utf8, not a number"),
        ] {
            assert_eq!(wrong(sql), expected, "{sql}");
        }
    }

    #[test]
    fn query_that_writes_or_is_unrepeatable_is_refused() {
        assert!(wrong("create table c as select 1").ends_with("a query only reads"));
        assert!(wrong("select id from a; select id from b").starts_with("a `;` ends the first of several statements"));
        for clock in ["now()", "random()"] {
            let refused = Statement::new(&format!("select id from a where x > (select {clock})"), &schemas());
            assert!(refused.err().unwrap().contains("gives a different result each time"), "{clock}");
        }
    }
}
