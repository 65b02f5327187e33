//! The compiled half of the Python package `vlmdiff`: what `vlmdiff::driver` and `vlmdiff::query` do, with Python's errors,
//! signals and Arrow. The other half, in `vlmdiff/`, is what people call and read.

mod answer;
mod errors;
mod pipeline;
mod stores;
mod table;
mod threads;

use pyo3::prelude::*;

/// The compiled half of the package `vlmdiff`.
#[pymodule]
mod _vlmdiff {
    use super::*;

    #[pymodule_export]
    use super::{
        answer::{Answer, Rows, query, rows, tables},
        pipeline::{Inspector, Pipeline},
        table::Table,
    };

    #[pymodule_init]
    fn constants(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))?;
        module.add("DATAFUSION", datafusion_ffi::version())?;
        module.add("PROGRAMS", env!("VLMDIFF_PROGRAMS"))
    }
}
