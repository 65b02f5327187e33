//! The store: parts, blobs, records of what was computed, manifests of published tables, logs of runs.

mod cache;
mod checked;
mod compact;
mod computed;
mod encoder;
mod event;
pub mod gc;
mod groups;
pub mod history;
mod jobs;
mod lock;
mod manifest;
mod objects;
mod order;
mod parquet;
mod preview;
mod published;
mod remote_part;
mod row_reader;
mod sealed;
mod stored_columns;
mod tensor_pages;
mod verify;

pub use compact::Compacted;
pub use computed::{Chosen, ComputedRows};
pub(super) use encoder::Encoder;
pub use encoder::encode_part;
pub use event::{Event, Logged};
pub use gc::{Garbage, Heap, collect, forget};
pub use history::{Run, TableRun, last_pipeline};
pub(super) use history::{begin_log, save_log};
pub use jobs::JobFolder;
pub use lock::Lock;
pub use manifest::{Entry, EntryNote, Manifest, NAMED, Note, PartRef, Provenance, RowError};
pub use objects::{Inventory, Recorded, Store};
pub(super) use objects::{blob_name, part_name, state_name};
pub(super) use order::{ids_of, in_order, sort_by_id};
pub use parquet::read_table;
pub(super) use parquet::{gather, project};
pub use published::Current;
pub(super) use row_reader::RowReader;
pub(super) use stored_columns::is_storable;
pub use stored_columns::{
    KEY, declared_schema, digest_array, digest_name, has_heavy, is_heavy, is_volatile, light_names, light_schema,
    plain, row_digests, stored_schema, tensor_field, tensor_shape, to_stored, volatile, volatile_misuse,
};
