//! Work beside Python: on a thread of its own, while other threads of Python go on and Ctrl-C is heard.

use std::{
    panic::resume_unwind,
    sync::mpsc::{self, RecvTimeoutError, Sender},
    thread::{self, Builder},
    time::Duration,
};

use pyo3::prelude::*;
use vlmdiff::engine::{Error, Result, Stop};

use crate::errors::exception;

/// Bytes of the stack on which work runs, as that of the command line: deep expressions are walked by recursion. Unused parts
/// take no memory.
const STACK: usize = 256 << 20;

/// The interval at which Python is asked for signals while work goes on.
const ASK_EVERY: Duration = Duration::from_millis(50);

/// Returns the settings of a thread that works.
pub(crate) fn worker() -> Builder {
    Builder::new().name("vlmdiff".into()).stack_size(STACK)
}

/// Does some work while Python goes on. `hear` is called with each message of the work, on the thread that waits for it.
///
/// At Ctrl-C, or if `hear` fails, `stop` is requested; when the work has ended, with what it does then saved, the exception is
/// raised.
pub(crate) fn work<T: Send, M: Send>(
    py: Python<'_>,
    stop: &Stop,
    mut hear: impl FnMut(Python<'_>, M) -> PyResult<()>,
    work: impl FnOnce(&Sender<M>) -> Result<T> + Send,
) -> PyResult<T> {
    let (say, mut heard) = mpsc::channel();
    thread::scope(|scope| {
        let worker = worker().spawn_scoped(scope, move || work(&say));
        let worker = worker.map_err(|error| exception(Error::Io(error)))?;
        let mut failure = None;
        loop {
            let receiver = &mut heard;
            let next = py.detach(move || receiver.recv_timeout(ASK_EVERY));
            let taken = match next {
                Ok(message) if failure.is_none() => hear(py, message),
                Ok(_) | Err(RecvTimeoutError::Timeout) => Ok(()),
                Err(RecvTimeoutError::Disconnected) => break,
            };
            if let Err(error) = taken.and_then(|()| py.check_signals()) {
                failure.get_or_insert(error);
                // The request waits until workers have taken it, so it has a thread of its own.
                scope.spawn(|| stop.request());
            }
        }
        let ended = py.detach(move || worker.join()).unwrap_or_else(|panic| resume_unwind(panic));
        match failure {
            Some(error) => Err(error),
            None => ended.map_err(exception),
        }
    })
}

/// Does some work that says nothing.
pub(crate) fn quietly<T: Send>(py: Python<'_>, stop: &Stop, silent: impl FnOnce() -> Result<T> + Send) -> PyResult<T> {
    work(py, stop, |_, ()| Ok(()), |_| silent())
}
