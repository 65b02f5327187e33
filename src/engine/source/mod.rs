//! Files and URLs outside the store.

mod archive;
mod cache_folder;
mod facts;
mod fetch;
mod files;
mod members;
mod memory;
mod parquet_file;
mod remote;
mod sources;
mod temporary;
mod tree;
mod window;

pub(super) use cache_folder::{cache_folder, make_private};
pub use cache_folder::{scratch_folder, served_folder};
pub use parquet_file::{Batches, ParquetFile};
pub use sources::Sources;
pub use tree::Tree;
