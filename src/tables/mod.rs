//! The vocabulary of tables: names of columns, their Arrow fields, and readers of them. Each kind of table is a file.
//!
//! Stages write and read these columns; SQL and the report read tables of any stage. A table is recognised by its
//! columns and never by the stage that made it: its [`Role`]s follow from its schema.

pub mod anomaly_maps;
pub mod captions;
pub mod column;
pub mod decisions;
pub mod embeddings;
pub mod features;
pub mod fitted;
pub mod images;
pub mod latents;
pub mod metrics;
pub mod nearest;
pub mod reconstructions;
pub mod regions;
mod role;
pub mod tensor;
pub mod text_rows;
pub mod thresholds;
pub mod tiles;
pub mod training_log;
pub mod weights;

pub use role::Role;
