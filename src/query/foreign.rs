//! Rows for sessions of other programs that have DataFusion. They are computed by our own session, which knows where the
//! parts of tables lie; the other one gets streams of rows.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::{
    catalog::{Session, TableProvider},
    error::{DataFusionError, Result},
    execution::{SendableRecordBatchStream, TaskContext},
    logical_expr::{Expr, TableType},
    physical_plan::{
        ExecutionPlan, ExecutionPlanProperties,
        stream::RecordBatchStreamAdapter,
        streaming::{PartitionStream, StreamingTableExec},
    },
    prelude::SessionContext,
};

use crate::engine::store::Store;

/// A table that our session computes, whichever session asks for it.
pub(super) struct Foreign {
    table: Arc<dyn TableProvider>,
    context: SessionContext,
    store: Store,
}

impl Foreign {
    /// Makes a table of one that `context` can scan.
    pub(super) fn new(table: Arc<dyn TableProvider>, context: &SessionContext, store: &Store) -> Self {
        Self { table, context: context.clone(), store: store.clone() }
    }
}

impl std::fmt::Debug for Foreign {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Foreign({:?})", self.table)
    }
}

#[async_trait::async_trait]
impl TableProvider for Foreign {
    fn schema(&self) -> SchemaRef {
        self.table.schema()
    }

    fn table_type(&self) -> TableType {
        TableType::View
    }

    async fn scan(
        &self,
        _: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let (table, context) = (self.table.clone(), self.context.clone());
        let (projection, filters) = (projection.cloned(), filters.to_vec());
        // The thread that asks has a runtime of its own at most, in which our store's requests cannot wait.
        let planning = self.store.runtime().spawn(async move {
            let state = context.state();
            let plan = table.scan(&state, projection.as_ref(), &filters, limit).await?;
            Ok::<_, DataFusionError>((plan, context.task_ctx()))
        });
        let (plan, context) = planning.await.map_err(|error| DataFusionError::External(Box::new(error)))??;
        let partition = |number| {
            let partition = Partition { plan: plan.clone(), number, schema: plan.schema(), context: context.clone() };
            Arc::new(partition) as Arc<dyn PartitionStream>
        };
        let partitions = (0..plan.output_partitioning().partition_count()).map(partition).collect();
        Ok(Arc::new(StreamingTableExec::try_new(plan.schema(), partitions, None, [], false, limit)?))
    }
}

/// One partition of a plan of our session.
struct Partition {
    plan: Arc<dyn ExecutionPlan>,
    number: usize,
    schema: SchemaRef,
    context: Arc<TaskContext>,
}

impl std::fmt::Debug for Partition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Partition({})", self.number)
    }
}

impl PartitionStream for Partition {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        self.plan.execute(self.number, self.context.clone()).unwrap_or_else(|error| {
            let failed = futures::stream::once(async move { Err(error) });
            Box::pin(RecordBatchStreamAdapter::new(self.schema.clone(), failed))
        })
    }
}
