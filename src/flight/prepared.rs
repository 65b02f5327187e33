//! Statements that clients have prepared.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use arrow::array::RecordBatch;
use bytes::Bytes;
use tonic::Status;

/// The number of statements that are kept. Clients are expected to close theirs, and not all do.
const KEPT: usize = 1000;

/// A statement, as it is planned when it runs.
#[derive(Clone, Debug)]
pub(super) struct Statement {
    pub(super) sql: String,
    /// The pipeline to which bare table names refer.
    pub(super) pipeline: Option<String>,
    /// A row with the values of its parameters.
    pub(super) parameters: Option<RecordBatch>,
}

/// The statements that are prepared, by handle.
#[derive(Debug, Default)]
pub(super) struct Prepared(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    /// Each with the time of its last use, in uses.
    statements: HashMap<Bytes, (u64, Statement)>,
    uses: u64,
}

impl Kept {
    /// Finds a statement, which counts as a use.
    fn used(&mut self, handle: &Bytes) -> Result<&mut Statement, Status> {
        self.uses += 1;
        let uses = self.uses;
        let found = self.statements.get_mut(handle).map(|(used, statement)| {
            *used = uses;
            statement
        });
        found.ok_or_else(|| {
            Status::not_found(
                "the prepared statement is not known: it was closed, the server was started again, or many others were \
                 prepared since; prepare it again",
            )
        })
    }
}

impl Prepared {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a statement in place of the one that was not used for longest, and returns its handle, which nobody can guess.
    pub(super) fn keep(&self, statement: Statement) -> Bytes {
        let handle = Bytes::copy_from_slice(&rand::random::<u128>().to_be_bytes());
        let mut kept = self.kept();
        if kept.statements.len() >= KEPT {
            let oldest = kept.statements.iter().min_by_key(|(_, (used, _))| *used).map(|(handle, _)| handle.clone());
            oldest.and_then(|oldest| kept.statements.remove(&oldest));
        }
        kept.uses += 1;
        let used = kept.uses;
        kept.statements.insert(handle.clone(), (used, statement));
        handle
    }

    /// Returns a statement.
    pub(super) fn get(&self, handle: &Bytes) -> Result<Statement, Status> {
        self.kept().used(handle).cloned()
    }

    /// Sets the values of a statement's parameters.
    pub(super) fn bind(&self, handle: &Bytes, parameters: Option<RecordBatch>) -> Result<(), Status> {
        self.kept().used(handle)?.parameters = parameters;
        Ok(())
    }

    /// Forgets a statement.
    pub(super) fn close(&self, handle: &Bytes) {
        self.kept().statements.remove(handle);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statement_that_was_not_used_for_longest_is_forgotten() {
        let prepared = Prepared::default();
        let statement = |n: usize| Statement { sql: format!("select {n}"), pipeline: None, parameters: None };
        let handles: Vec<Bytes> = (0..KEPT).map(|n| prepared.keep(statement(n))).collect();
        prepared.get(&handles[0]).unwrap();
        let newest = prepared.keep(statement(KEPT));
        assert_eq!(prepared.get(&handles[0]).unwrap().sql, "select 0");
        assert_eq!(prepared.get(&newest).unwrap().sql, format!("select {KEPT}"));
        assert!(prepared.get(&handles[1]).unwrap_err().message().ends_with("prepare it again"));
        prepared.close(&newest);
        assert!(prepared.get(&newest).is_err());
    }
}
