//! The build of a program. Driver and executors have to be of one build, because a task means what the code says that runs it.

use std::path::Path;

use crate::engine::{Hasher, Result, source::Sources};

/// The number of digits of a build.
const DIGITS: usize = 12;

/// Returns the build of this program and of its worker: the version, and a digest of both files.
pub fn build_id(worker: &Path) -> Result<String> {
    let mut hasher = Hasher::new("build");
    let sources = Sources::default();
    for program in [&std::env::current_exe()?, worker] {
        // Files that have not changed are not read again.
        hasher.field(sources.digest(&program.to_string_lossy())?.as_bytes());
    }
    Ok(format!("{}-{}", env!("CARGO_PKG_VERSION"), &hasher.finish().to_string()[..DIGITS]))
}
