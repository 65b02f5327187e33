//! Joins that can be ended.
//!
//! DataFusion's sources pause now and then, which is when a statement notices that it was ended. A join without an equality, or
//! with many rows for each value, makes so much of a batch of its source that it would run for minutes between two pauses, and
//! so pauses itself here, between batches of its result. One that finds nothing still pauses only with its source.

use std::sync::Arc;

use datafusion::{
    common::tree_node::{Transformed, TreeNode},
    error::DataFusionError,
    physical_plan::{
        ExecutionPlan,
        coop::CooperativeExec,
        joins::{CrossJoinExec, HashJoinExec, NestedLoopJoinExec},
    },
};

/// Makes the joins of a plan pause.
pub(super) fn with_pauses(plan: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>, DataFusionError> {
    let paused = plan.transform_up(|node| {
        let is_join = node.downcast_ref::<NestedLoopJoinExec>().is_some()
            || node.downcast_ref::<CrossJoinExec>().is_some()
            || node.downcast_ref::<HashJoinExec>().is_some();
        if !is_join {
            return Ok(Transformed::no(node));
        }
        let node: Arc<dyn ExecutionPlan> = Arc::new(CooperativeExec::new(node));
        Ok(Transformed::yes(node))
    })?;
    Ok(paused.data)
}
