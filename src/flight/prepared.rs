//! Statements that clients have prepared.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use arrow::array::RecordBatch;
use bytes::Bytes;
use tonic::Status;

use super::ready::{Key, new_key};

/// The number of statements that are kept. Clients are expected to close theirs, and not all do.
const KEPT: usize = 1000;

/// A statement, as it is planned when it runs.
#[derive(Clone, Debug)]
pub(super) struct Statement {
    /// The name of the statement with these values.
    pub(super) key: Key,
    pub(super) sql: String,
    /// The pipeline to which bare table names refer.
    pub(super) pipeline: Option<String>,
    /// A row with the values of its parameters.
    pub(super) parameters: Option<RecordBatch>,
}

impl Statement {
    /// Makes a statement without values.
    pub(super) fn new(sql: String, pipeline: Option<String>) -> Self {
        Self { key: new_key(), sql, pipeline, parameters: None }
    }

    /// Returns the bytes of a ticket for its rows.
    pub(super) fn ticket(&self) -> Bytes {
        [self.key.to_be_bytes().as_slice(), self.sql.as_bytes()].concat().into()
    }

    /// Reads a ticket; `None` if it is none of this server. `pipeline` is the one that the request names.
    pub(super) fn of_ticket(ticket: &[u8], pipeline: Option<String>) -> Option<Self> {
        let (key, sql) = ticket.split_first_chunk()?;
        let sql = String::from_utf8(sql.to_vec()).ok()?;
        Some(Self { key: Key::from_be_bytes(*key), sql, pipeline, parameters: None })
    }
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
        let mut kept = self.kept();
        let statement = kept.used(handle)?;
        *statement = Statement { key: new_key(), parameters, ..statement.clone() };
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
        let statement = |n: usize| Statement::new(format!("select {n}"), None);
        let handles: Vec<Bytes> = (0..KEPT).map(|n| prepared.keep(statement(n))).collect();
        prepared.get(&handles[0]).unwrap();
        let newest = prepared.keep(statement(KEPT));
        assert_eq!(prepared.get(&handles[0]).unwrap().sql, "select 0");
        assert_eq!(prepared.get(&newest).unwrap().sql, format!("select {KEPT}"));
        assert!(prepared.get(&handles[1]).unwrap_err().message().ends_with("prepare it again"));
        prepared.close(&newest);
        assert!(prepared.get(&newest).is_err());
    }

    #[test]
    fn ticket_names_the_statement_that_it_was_made_of() {
        let statement = Statement::new("select 'ä'".into(), None);
        let read = Statement::of_ticket(&statement.ticket(), Some("of the request".into())).unwrap();
        assert_eq!(
            (read.key, read.sql, read.pipeline.as_deref()),
            (statement.key, statement.sql, Some("of the request"))
        );
        assert!(Statement::of_ticket(b"select 1", None).is_none());
        assert!(Statement::of_ticket(&[0xff; 17], None).is_none());
    }

    #[test]
    fn statement_with_other_values_has_another_key() {
        let prepared = Prepared::default();
        let handle = prepared.keep(Statement::new("select $1".into(), None));
        let before = prepared.get(&handle).unwrap().key;
        assert_eq!(prepared.get(&handle).unwrap().key, before);
        prepared.bind(&handle, None).unwrap();
        assert_ne!(prepared.get(&handle).unwrap().key, before);
    }
}
