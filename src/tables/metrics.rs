//! Metrics by class and protocol.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

pub use super::images::CLASS;

/// The protocol by whose rules the metrics of a row are computed.
pub const PROTOCOL: &str = "protocol";
/// The number of images that were judged.
pub const N_IMAGES: &str = "n_images";
/// The number of anomalous images among them.
pub const N_ANOMALOUS: &str = "n_anomalous";

/// The class of the row that holds the means over classes, which no class of images may have.
pub const MEAN: &str = "mean";

/// The endings of the columns with the ends of a metric's interval.
pub const ENDS: [&str; 2] = ["_low", "_high"];

/// Returns the schema of a table with these metrics, and with an interval of each if they are asked for.
pub fn schema<'a>(names: impl IntoIterator<Item = &'a str>, intervals: bool) -> SchemaRef {
    let mut fields = vec![
        Field::new(CLASS, DataType::Utf8, false),
        Field::new(PROTOCOL, DataType::Utf8, false),
        Field::new(N_IMAGES, DataType::Int64, false),
        Field::new(N_ANOMALOUS, DataType::Int64, false),
    ];
    let number = |name: String| Field::new(name, DataType::Float64, true);
    let names: Vec<&str> = names.into_iter().collect();
    fields.extend(names.iter().map(|name| number((*name).to_owned())));
    if intervals {
        fields.extend(names.iter().flat_map(|name| ENDS.map(|end| number(format!("{name}{end}")))));
    }
    Arc::new(Schema::new(fields))
}

/// Returns the metrics of a table: the columns with floats of 64 bits, without the ends of intervals.
pub fn names(schema: &Schema) -> Vec<String> {
    let is_metric =
        |name: &str| schema.field_with_name(name).is_ok_and(|field| *field.data_type() == DataType::Float64);
    let is_end = |name: &str| ENDS.iter().any(|end| name.strip_suffix(end).is_some_and(is_metric));
    let names = schema.fields().iter().map(|field| field.name());
    names.filter(|name| is_metric(name) && !is_end(name)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_of_intervals_are_no_metrics() {
        assert_eq!(names(&schema(["aupro", "sharpness_low"], true)), ["aupro", "sharpness_low"]);
        assert_eq!(schema(["aupro"], true).fields().len(), 7);
    }
}
