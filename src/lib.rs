//! A dataflow engine for visual anomaly detection. Modules stand in the order of data flow.

pub mod engine;
pub mod datasets;
pub mod vision;
pub mod stages;
pub mod query;
pub mod cli;
