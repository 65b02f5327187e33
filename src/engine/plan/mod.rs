//! Plans: which rows of which table are to be computed, and why.

mod added;
mod cause;
mod diff;
mod explain;
mod rows;
mod state;
mod tables;
mod work;

pub use cause::Cause;
pub use diff::{Number, TableDiff, diff};
pub use explain::explain;
pub use rows::{JoinedPieces, RowAddresses};
pub use state::{Found, Pending, TableState, TableStates, published};
pub use tables::{Memory, State, TablePlan, plan};
pub use work::{Overrides, Planner, TableWork};
