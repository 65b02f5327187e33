//! The rows of one version of a published table.

use std::sync::Arc;

use arrow::{
    array::RecordBatch,
    datatypes::{Schema, SchemaRef},
};

use crate::engine::{
    Result,
    store::{KEY, Manifest, PartRef, Store, read_table},
};

/// The rows of one version of a published table, of which columns are read as they are asked for.
pub(super) struct Rows {
    store: Store,
    parts: Vec<PartRef>,
    /// The stored schema.
    pub(super) schema: SchemaRef,
}

impl Rows {
    pub(super) fn of(store: &Store, manifest: &Manifest) -> Result<Self> {
        Ok(Self { store: store.clone(), parts: manifest.parts.clone(), schema: manifest.schema()? })
    }

    /// Reads all columns.
    pub(super) fn all(&self) -> Result<RecordBatch> {
        let names = self.schema.fields().iter().map(|field| field.name().as_str()).filter(|name| *name != KEY);
        self.columns(&names.collect::<Vec<_>>())
    }

    /// Reads columns of all rows.
    pub(super) fn columns(&self, names: &[&str]) -> Result<RecordBatch> {
        self.read(&self.parts, names)
    }

    /// Reads columns of some rows, which are numbered as [`columns`](Self::columns) gives them. The numbers ascend.
    pub(super) fn some(&self, names: &[&str], numbers: &[usize]) -> Result<RecordBatch> {
        let mut numbers = numbers.iter().peekable();
        let (mut first, mut parts) = (0, Vec::new());
        for part in &self.parts {
            let rows = part.row_numbers();
            let mut chosen = Vec::new();
            while let Some(number) = numbers.next_if(|number| **number < first + rows.len()) {
                chosen.push((rows[number - first], 1));
            }
            first += rows.len();
            if !chosen.is_empty() {
                parts.push(PartRef { chosen: Some(chosen), ..part.clone() });
            }
        }
        self.read(&parts, names)
    }

    fn read(&self, parts: &[PartRef], names: &[&str]) -> Result<RecordBatch> {
        let fields =
            names.iter().map(|name| self.schema.field_with_name(name).cloned()).collect::<Result<Vec<_>, _>>()?;
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        read_table(&self.store, parts, &names, &Arc::new(Schema::new(fields)))
    }
}
