//! Queries as tables of the Python package `datafusion`.

use std::sync::{Arc, LazyLock};

use datafusion::{catalog::TableProvider, execution::TaskContextProvider, prelude::SessionContext};
use datafusion_ffi::table_provider::FFI_TableProvider;
use pyo3::{prelude::*, types::PyCapsule};
use vlmdiff::{
    engine::{Stop, store::Store},
    query::Session,
};

use crate::{stores::store, threads::quietly};

/// The functions by which expressions of the other side are read. It gives us none, because we push no filters down, and the
/// interface asks for them all the same, by a reference that must outlive every table.
static FUNCTIONS: LazyLock<Arc<SessionContext>> = LazyLock::new(|| Arc::new(SessionContext::new()));

/// The rows of a query, as a table that DataFusion reads.
#[pyclass(frozen, module = "vlmdiff._vlmdiff")]
pub(crate) struct Table {
    table: Arc<dyn TableProvider>,
    store: Store,
}

#[pymethods]
impl Table {
    #[new]
    fn new(py: Python<'_>, sql: &str, address: &str, pipeline: Option<&str>) -> PyResult<Self> {
        quietly(py, &Stop::default(), || {
            let store = store(address)?;
            Ok(Self { table: Session::open(&store, pipeline)?.table(sql)?, store })
        })
    }

    fn __datafusion_table_provider__<'py>(
        &self,
        py: Python<'py>,
        session: Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyCapsule>> {
        // Its codec would read plans that come from it, and none do.
        let _ = session;
        let runtime = Some(self.store.runtime().handle().clone());
        let functions: Arc<dyn TaskContextProvider> = FUNCTIONS.clone();
        let table = FFI_TableProvider::new(self.table.clone(), false, runtime, &functions, None);
        PyCapsule::new_with_value(py, table, c"datafusion_table_provider")
    }
}
