//! The work that front ends share: opening pipelines and stores, choosing tables, starting workers, judging photographs. The
//! command line and the Python package are thin layers over it; neither prints nor reads arguments here.

mod execution;
mod opening;
mod planning;
mod prediction;
mod progress;
mod words;

pub use execution::{Execution, default_threads, device, select};
pub use opening::{DEFAULT_STORE, NamedPipeline, open_store};
pub use planning::plan;
pub use prediction::{Predicted, inspector, judge, predict, predict_pixels};
pub use progress::{Lines, Progress};
pub use words::{count, describe, describe_memory, width};
