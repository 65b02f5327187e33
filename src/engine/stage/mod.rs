//! The contract between the engine and a stage, and the tasks that stages are given.

mod contract;
mod kind;
mod operator;
mod port;
mod rows;
mod sample;
mod sink;
mod task;

pub use contract::{Listing, Stage};
pub use kind::{Described, ParamError, StageKind};
pub use operator::{Context, Open, OpenFn, Operator, open};
pub use port::{Output, Port, Ports, Reads, SOURCE, Schemas};
pub use rows::{Batch, Rows};
pub(super) use sample::SampledInput;
pub use sample::{ITSELF, Sample};
pub use sink::Sink;
pub use task::{Job, Listed, PortRows, Report, TableInput, Task};
