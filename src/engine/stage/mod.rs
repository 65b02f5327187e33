//! The contract between the engine and a stage, and the tasks that stages are given.

mod contract;
mod kind;
mod misfit;
mod operator;
mod port;
mod rows;
mod sample;
mod sink;
mod task;

pub(super) use contract::parameter;
pub use contract::{Listing, Parameters, Place, Stage};
pub use kind::{Registered, StageKind};
pub use misfit::{At, Misfit, ParamError};
pub use operator::{Context, Open, OpenFn, OpenInDriver, Operator, open};
pub use port::{Column, Holds, Output, PIECE, Port, Ports, Reads, SOURCE, Schemas, row_of_piece};
pub use rows::{Batch, RowPieces, Rows};
pub use sample::{ITSELF, Sample};
pub(super) use sample::{SampledInput, SampledRows};
pub use sink::Sink;
pub use task::{Job, Listed, Pieces, PortRows, Report, TableInput, Task, TaskError, Unit};
