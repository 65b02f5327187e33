//! A dataflow engine for visual anomaly detection. Modules stand in the order of data flow.

pub mod cli;
pub mod datasets;
pub mod diffusion;
pub mod engine;
pub mod metrics;
pub mod models;
pub mod query;
pub mod report;
pub mod stages;
pub mod vision;
