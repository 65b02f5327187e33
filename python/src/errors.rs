//! Errors as exceptions of the package, whose classes are defined in Python.

use pyo3::{exceptions::PyKeyboardInterrupt, import_exception, prelude::*};
use vlmdiff::engine;

import_exception!(vlmdiff.errors, Error);
import_exception!(vlmdiff.errors, InputError);
import_exception!(vlmdiff.errors, PipelineError);
import_exception!(vlmdiff.errors, RowsError);
import_exception!(vlmdiff.errors, StageError);
import_exception!(vlmdiff.errors, WorkerError);
import_exception!(vlmdiff.errors, OutOfMemoryError);
import_exception!(vlmdiff.errors, DamagedError);
import_exception!(vlmdiff.errors, StoreError);

/// Makes the exception of an error. Its message is the one that the command line prints.
pub(crate) fn exception(error: engine::Error) -> PyErr {
    use engine::Error as Kind;
    let message = error.to_string();
    match error {
        Kind::Pipeline { file, line, column, .. } => PipelineError::new_err((message, file, line, column)),
        Kind::Rows { table, errors, total } => RowsError::new_err((message, table, errors, total)),
        Kind::Read { path, .. } => InputError::new_err((message, path.display().to_string())),
        Kind::Input(_) => InputError::new_err(message),
        Kind::Stage(_) => StageError::new_err(message),
        Kind::Interrupted => PyKeyboardInterrupt::new_err(message),
        Kind::Worker(_) | Kind::Killed(_) => WorkerError::new_err(message),
        Kind::Memory(_) => OutOfMemoryError::new_err(message),
        Kind::Lost { digest, .. } => DamagedError::new_err((message, digest.to_string())),
        Kind::Damaged(_) => DamagedError::new_err(message),
        Kind::Store(_) => StoreError::new_err(message),
        Kind::Arrow(_) | Kind::Parquet(_) | Kind::Io(_) => Error::new_err(message),
    }
}
