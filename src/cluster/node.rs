//! The plan of a job: a node that hands tickets to an executor's slot, over a scan of the tickets.
//!
//! The scheduler gives a task its share of a plan by narrowing the scan to one partition. It can do so with scans that it knows,
//! so the tickets are a scan in memory and the node lies above it.

use std::{fmt, sync::Arc};

use arrow::{
    array::{AsArray, RecordBatch, StringArray},
    datatypes::{DataType, Field, Schema, SchemaRef},
};
use ballista_core::serde::BallistaPhysicalExtensionCodec;
use datafusion::{
    common::tree_node::TreeNodeRecursion,
    datasource::memory::MemorySourceConfig,
    error::{DataFusionError, Result},
    execution::TaskContext,
    physical_expr::{EquivalenceProperties, PhysicalExpr},
    physical_plan::{
        DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, Partitioning, PlanProperties,
        SendableRecordBatchStream,
        execution_plan::{Boundedness, EmissionType},
        stream::RecordBatchStreamAdapter,
    },
};
use datafusion_proto::physical_plan::{PhysicalExtensionCodec, PhysicalProtoConverterExtension};
use futures::StreamExt;

use super::{
    job::{Order, Ticket},
    slot::{Failure, Slot},
};

/// The first bytes of an encoded node.
const MAGIC: &[u8] = b"vlmdiff tasks\n";

/// The column of the tickets, as JSON.
const TICKET: &str = "ticket";

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new(TICKET, DataType::Utf8, false)]))
}

/// Makes the plan of a job. Each ticket is a partition.
pub(super) fn plan(order: &Order, tickets: &[Ticket]) -> Result<Arc<dyn ExecutionPlan>> {
    let json = |error: serde_json::Error| DataFusionError::External(Box::new(error));
    let row = |ticket: &Ticket| -> Result<Vec<RecordBatch>> {
        let text = serde_json::to_string(ticket).map_err(json)?;
        Ok(vec![RecordBatch::try_new(schema(), vec![Arc::new(StringArray::from(vec![text]))])?])
    };
    let partitions: Vec<Vec<RecordBatch>> = tickets.iter().map(row).collect::<Result<_>>()?;
    let scan = MemorySourceConfig::try_new_exec(&partitions, schema(), None)?;
    Ok(Arc::new(TasksExec::new(serde_json::to_string(order).map_err(json)?, scan, None)))
}

/// Runs tasks, and returns their tickets.
struct TasksExec {
    /// The [`Order`] as JSON. A scheduler does not read it, and may therefore be of another build.
    order: String,
    scan: Arc<dyn ExecutionPlan>,
    /// `None` outside of an executor.
    slot: Option<Slot>,
    properties: Arc<PlanProperties>,
}

impl TasksExec {
    fn new(order: String, scan: Arc<dyn ExecutionPlan>, slot: Option<Slot>) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(schema()),
            Partitioning::UnknownPartitioning(scan.output_partitioning().partition_count()),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Self { order, scan, slot, properties: Arc::new(properties) }
    }
}

impl fmt::Debug for TasksExec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TasksExec")
    }
}

impl DisplayAs for TasksExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TasksExec")
    }
}

impl ExecutionPlan for TasksExec {
    fn name(&self) -> &str {
        "TasksExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.scan]
    }

    fn with_new_children(self: Arc<Self>, mut children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        match (children.pop(), children.is_empty()) {
            (Some(scan), true) => Ok(Arc::new(Self::new(self.order.clone(), scan, self.slot.clone()))),
            _ => Err(DataFusionError::Plan("TasksExec has one child".into())),
        }
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let Some(slot) = self.slot.clone() else {
            return Err(DataFusionError::Execution("tasks run in executors only".into()));
        };
        let order: Arc<str> = self.order.as_str().into();
        let rows = self.scan.execute(partition, context)?.then(move |batch| {
            let (slot, order) = (slot.clone(), order.clone());
            async move {
                let batch = batch?;
                for ticket in batch.column(0).as_string::<i32>().iter().flatten() {
                    slot.perform(order.clone(), ticket.to_owned()).await.map_err(error)?;
                }
                Ok(batch)
            }
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema(), rows)))
    }
}

/// Makes the error that tells Ballista whether another attempt may succeed: it repeats tasks after an `IoError` alone.
fn error(failure: Failure) -> DataFusionError {
    match failure {
        Failure::Passing(message) => DataFusionError::IoError(std::io::Error::other(message)),
        Failure::Refused(message) => DataFusionError::Execution(message),
    }
}

/// Writes and reads the nodes of plans.
#[derive(Debug, Default)]
pub(super) struct Codec {
    ballista: BallistaPhysicalExtensionCodec,
    slot: Option<Slot>,
}

impl Codec {
    /// Makes the codec of an executor.
    pub(super) fn of_executor(slot: Slot) -> Self {
        Self { slot: Some(slot), ..Self::default() }
    }
}

impl PhysicalExtensionCodec for Codec {
    fn try_decode(
        &self,
        bytes: &[u8],
        inputs: &[Arc<dyn ExecutionPlan>],
        context: &TaskContext,
        converter: &dyn PhysicalProtoConverterExtension,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let Some(order) = bytes.strip_prefix(MAGIC) else {
            return self.ballista.try_decode(bytes, inputs, context, converter);
        };
        match (String::from_utf8(order.to_vec()), inputs) {
            (Ok(order), [scan]) => Ok(Arc::new(TasksExec::new(order, scan.clone(), self.slot.clone()))),
            _ => Err(DataFusionError::Plan("a node of tasks that cannot be read".into())),
        }
    }

    fn try_encode(
        &self,
        node: Arc<dyn ExecutionPlan>,
        bytes: &mut Vec<u8>,
        converter: &dyn PhysicalProtoConverterExtension,
    ) -> Result<()> {
        match node.downcast_ref::<TasksExec>() {
            Some(tasks) => {
                bytes.extend_from_slice(MAGIC);
                bytes.extend_from_slice(tasks.order.as_bytes());
                Ok(())
            }
            None => self.ballista.try_encode(node, bytes, converter),
        }
    }
}

#[cfg(test)]
mod tests {
    use datafusion::prelude::SessionContext;
    use datafusion_proto::{physical_plan::AsExecutionPlan, protobuf::PhysicalPlanNode};

    use super::*;
    use crate::engine::Digest;

    #[test]
    fn plan_travels_with_a_partition_for_each_ticket_and_without_its_tasks() {
        let order = Order {
            build: "build".into(),
            store: "s3://bucket/store".into(),
            job: "job".into(),
            digest: Digest::of(b"job"),
            batch_size: None,
            verify: false,
        };
        let ticket = |number| Ticket { number, start: 10 * number as u64, end: 10, digest: Digest::of(b"task") };
        let plan = plan(&order, &[ticket(0), ticket(1), ticket(2)]).unwrap();
        let codec = Codec::default();
        let sent = PhysicalPlanNode::try_from_physical_plan(plan, &codec).unwrap();
        let context = SessionContext::new().task_ctx();
        let got = sent.try_into_physical_plan(&context, &codec).unwrap();
        assert_eq!(got.output_partitioning().partition_count(), 3);
        let told = got.execute(0, context).err().unwrap().to_string();
        assert!(told.contains("in executors only"), "{told}");
    }
}
