//! The vocabulary of tables: names of columns, their Arrow fields, and readers of them. Each kind of table is a file.
//!
//! Stages write and read these columns, SQL and the report read what any stage wrote. A table is told by its columns and never
//! by the stage that made it: [`Role`] says what a table can serve as.

pub mod anomaly_maps;
pub mod captions;
pub mod column;
pub mod embeddings;
pub mod images;
pub mod latents;
pub mod metrics;
pub mod reconstructions;
mod role;
pub mod tensor;
pub mod training_log;
pub mod weights;

pub use role::Role;
