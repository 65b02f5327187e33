//! Files and URLs outside the store.

mod archive;
mod cache_folder;
mod facts;
mod fetch;
mod files;
mod memory;
mod remote;
mod sources;
mod temporary;
mod tree;

pub(super) use cache_folder::{cache_folder, make_private};
pub use cache_folder::{scratch_folder, served_folder};
pub use sources::Sources;
pub use tree::Tree;
