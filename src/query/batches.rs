//! The number of rows that are computed at a time. A row with tensors may have megabytes, of which DataFusion's 8192 rows
//! would not fit into memory.

use arrow::datatypes::{DataType, Schema};
use datafusion::{common::tree_node::TreeNodeRecursion, error::DataFusionError, logical_expr::LogicalPlan};

/// The bytes of a batch, as far as they can be told from types. Reading a list takes up to twelve bytes about each item
/// beside its value, so that a batch of bytes takes 52 MiB for a moment.
const BATCH_BYTES: usize = 4 << 20;

/// The bytes that stand for a value of a type without a fixed size.
const VARIABLE: usize = 16;

/// Returns the number of rows that a plan is executed with at a time, from 1 to `most`: by the widest rows in it, which
/// need not be those of its result.
pub(super) fn rows_at_a_time(plan: &LogicalPlan, most: usize) -> Result<usize, DataFusionError> {
    let mut widest = 1;
    plan.apply_with_subqueries(|node| {
        widest = widest.max(row_bytes(node.schema().as_arrow()));
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok((BATCH_BYTES / widest).clamp(1, most))
}

/// Returns the bytes of a row.
pub(super) fn row_bytes(schema: &Schema) -> usize {
    schema.fields().iter().map(|field| bytes(field.data_type())).sum()
}

/// Returns the bytes of a value.
fn bytes(of: &DataType) -> usize {
    match of {
        DataType::FixedSizeList(item, count) => bytes(item.data_type()).saturating_mul(*count as usize),
        DataType::FixedSizeBinary(count) => *count as usize,
        DataType::Struct(fields) => fields.iter().map(|field| bytes(field.data_type())).sum(),
        other => other.primitive_width().unwrap_or(VARIABLE),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::datatypes::Field;
    use datafusion::{datasource::MemTable, prelude::SessionContext};

    use super::*;

    fn rows(sql: &str) -> usize {
        let pixels = DataType::FixedSizeList(Arc::new(Field::new_list_field(DataType::Float32, true)), 1 << 18);
        let fields = vec![Field::new("id", DataType::Utf8, false), Field::new("pixels", pixels, true)];
        let schema = Arc::new(Schema::new(fields));
        let context = SessionContext::new();
        context.register_table("t", Arc::new(MemTable::try_new(schema, vec![vec![]]).unwrap())).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let plan = runtime.block_on(context.sql(sql)).unwrap().into_optimized_plan().unwrap();
        rows_at_a_time(&plan, 8192).unwrap()
    }

    #[test]
    fn batches_of_tensors_have_few_rows() {
        assert_eq!(rows("select id from t"), 8192);
        assert_eq!(rows("select pixels from t"), 4);
        // The widest rows count: those of the table here, and not the numbers that are returned.
        assert_eq!(rows("select pixels[1] from t where pixels[2] > 0"), 4);
    }
}
