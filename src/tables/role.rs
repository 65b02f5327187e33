//! Roles of tables, which follow from their columns alone.

use arrow::datatypes::{DataType, Schema};

use super::{
    anomaly_maps::{self, SCORE},
    captions::CAPTION,
    column::has,
    decisions::ANOMALOUS,
    images::{self, CLASS, IMAGE_ID, LABEL},
    metrics::{self, PROTOCOL},
    reconstructions,
    regions::{AREA, POLYGON},
    thresholds::THRESHOLD,
    training_log::{LOSS, STEP},
};

/// A use that a table can serve. A table may have several roles, and any stage may make a table of any role: a
/// program's anomaly maps are as good as those of `anomaly_maps`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Images with class and label, one a row.
    Images,
    /// Captions of images.
    Captions,
    /// Reconstructions of images.
    Reconstructions,
    /// An anomaly map and a score for each image.
    AnomalyMaps,
    /// The verdict on each image, with the threshold of its score.
    Decisions,
    /// Anomalous regions of images, as polygons.
    Regions,
    /// Metrics by class and protocol.
    Metrics,
    /// The loss of a training, step by step.
    TrainingLog,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 8] = [
        Self::Images,
        Self::Captions,
        Self::Reconstructions,
        Self::AnomalyMaps,
        Self::Decisions,
        Self::Regions,
        Self::Metrics,
        Self::TrainingLog,
    ];

    /// Returns the roles of a table with this schema.
    pub fn of(schema: &Schema) -> Vec<Self> {
        Self::ALL.into_iter().filter(|role| role.fits(schema)).collect()
    }

    fn fits(self, schema: &Schema) -> bool {
        let is_number = |name| schema.field_with_name(name).is_ok_and(|field| field.data_type().is_numeric());
        let is_float = |name| schema.field_with_name(name).is_ok_and(|field| field.data_type().is_floating());
        let is_text = |name| has(schema, name, &DataType::Utf8);
        let id = images::id_column(schema);
        match self {
            Self::Images => {
                id.is_some()
                    && images::size(schema).is_some()
                    && is_text(CLASS)
                    && has(schema, LABEL, &DataType::Boolean)
            }
            Self::Captions => {
                let has_other_id = id.is_some_and(|id| id != CAPTION);
                has_other_id && is_text(CAPTION) && images::size(schema).is_none()
            }
            Self::Reconstructions => id.is_some() && reconstructions::size(schema).is_some(),
            Self::AnomalyMaps => id.is_some() && anomaly_maps::size(schema).is_some() && is_float(SCORE),
            Self::Decisions => {
                let is_verdict = has(schema, ANOMALOUS, &DataType::Boolean) && is_float(THRESHOLD);
                id.is_some() && is_text(CLASS) && is_verdict && is_float(SCORE)
            }
            Self::Regions => {
                let polygon = schema.field_with_name(POLYGON).map(|field| field.data_type());
                let is_polygon = matches!(polygon, Ok(DataType::List(item)) if item.data_type().is_numeric());
                is_text(IMAGE_ID) && is_polygon && is_number(AREA)
            }
            Self::Metrics => is_text(CLASS) && is_text(PROTOCOL) && !metrics::names(schema).is_empty(),
            Self::TrainingLog => is_number(STEP) && is_number(LOSS),
        }
    }

    /// Returns its name in words.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Images => "images",
            Self::Captions => "captions",
            Self::Reconstructions => "reconstructions",
            Self::AnomalyMaps => "anomaly maps",
            Self::Decisions => "decisions",
            Self::Regions => "regions",
            Self::Metrics => "metrics",
            Self::TrainingLog => "training log",
        }
    }

    /// Returns the columns by which a table has the role, in words.
    pub const fn columns(self) -> &'static str {
        match self {
            Self::Images => "a row per image with `pixels` (uint8[H, W, 3]), `class` and `label`",
            Self::Captions => "a row per image with `caption`",
            Self::Reconstructions => "a row per image with `pixels` (float16[3, H, W])",
            Self::AnomalyMaps => "a row per image with `map` (float16[H, W]) and `score`",
            Self::Decisions => {
                "a row per image with `class`, `score`, `threshold` and `anomalous`, as the stage `decide` makes it"
            }
            Self::Regions => "`image_id`, `polygon` and `area`, as the stage `regions` makes them",
            Self::Metrics => "`class`, `protocol` and metrics (float64)",
            Self::TrainingLog => "`step` and `loss`",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::datatypes::{Field, SchemaRef};

    use super::*;
    use crate::{
        engine::store::{stored_schema, tensor_field},
        tables::{captions, decisions, embeddings, fitted, images, latents, regions, thresholds, training_log},
    };

    #[test]
    fn each_table_of_the_vocabulary_has_its_role_alone() {
        let tables: [(SchemaRef, &[Role]); 14] = [
            (images::schema([8, 12], images::Taken::default()), &[Role::Images]),
            (captions::schema(), &[Role::Captions]),
            (captions::generated_schema(), &[Role::Captions]),
            (reconstructions::schema([4, 1, 1], [8, 8], true), &[Role::Reconstructions]),
            (anomaly_maps::schema([8, 8]), &[Role::AnomalyMaps]),
            (decisions::schema(), &[Role::Decisions]),
            (regions::schema(), &[Role::Regions]),
            (thresholds::schema(), &[]),
            (metrics::schema(["image_auroc"], false), &[Role::Metrics]),
            (training_log::schema(&["kl_loss"], &[], &()), &[Role::TrainingLog]),
            (fitted::schema(&()), &[]),
            (fitted::trained_schema(&()), &[Role::TrainingLog]),
            (embeddings::schema(None, [77, 8]), &[]),
            (latents::schema([4, 1, 1]), &[]),
        ];
        for (schema, roles) in tables {
            assert_eq!(Role::of(&schema), roles, "{schema}");
            assert_eq!(Role::of(&stored_schema(&schema, true)), roles, "{schema}");
        }
    }

    #[test]
    fn maps_may_be_wider_floats_under_another_id() {
        let maps = |map: Field, score: DataType| {
            let fields = vec![Field::new("name", DataType::Utf8, false), map, Field::new(SCORE, score, true)];
            Role::of(&Schema::new(fields))
        };
        let map = |item, shape: &[usize]| tensor_field("map", item, shape, true);
        assert_eq!(maps(map(DataType::Float32, &[4, 6]), DataType::Float64), [Role::AnomalyMaps]);
        assert_eq!(maps(map(DataType::UInt8, &[4, 6]), DataType::Float32), []);
        assert_eq!(maps(map(DataType::Float16, &[3, 4, 6]), DataType::Float32), []);
        assert_eq!(maps(map(DataType::Float16, &[4, 6]), DataType::Utf8), []);
    }

    #[test]
    fn metrics_need_a_protocol_and_a_metric() {
        let fields = |names: &[(&str, DataType)]| {
            let fields: Vec<Field> = names.iter().map(|(name, of)| Field::new(*name, of.clone(), true)).collect();
            Role::of(&Arc::new(Schema::new(fields)))
        };
        let class = ("class", DataType::Utf8);
        let protocol = ("protocol", DataType::Utf8);
        assert_eq!(fields(&[class.clone(), protocol.clone(), ("aupro", DataType::Float64)]), [Role::Metrics]);
        assert_eq!(fields(&[class.clone(), protocol, ("aupro", DataType::Float32)]), []);
        assert_eq!(fields(&[class, ("aupro", DataType::Float64)]), []);
        assert_eq!(fields(&[("step", DataType::Int64), ("loss", DataType::Float64)]), [Role::TrainingLog]);
        assert_eq!(fields(&[("step", DataType::Utf8), ("loss", DataType::Float64)]), []);
    }
}
