//! What can be wrong with weights.

use std::{fmt, path::PathBuf};
use tch::TchError;

/// How many names one error message lists of each sort.
const LISTED: usize = 20;

/// Why weights cannot be read or do not fit.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The file or folder cannot be read.
    #[error("cannot read the weights {}: {source}", path.display())]
    Io {
        /// The file or folder asked for.
        path: PathBuf,
        /// Why it cannot be read.
        source: std::io::Error,
    },
    /// The file is read and not understood.
    #[error("cannot use {} as weights: {reason}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong and what would work.
        reason: String,
    },
    /// A tensor is asked for that the file lacks.
    #[error("{} has no tensor {name}", path.display())]
    NoTensor {
        /// The file.
        path: PathBuf,
        /// The name asked for.
        name: String,
    },
    /// The names or shapes are not those of the model.
    #[error("the weights {} do not fit the model: {mismatch}{}", path.display(), seen(looks_like.as_deref()))]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// Every name that does not fit.
        mismatch: Mismatch,
        /// What the file is instead, where its names tell.
        looks_like: Option<String>,
    },
    /// libtorch refuses a tensor, mostly for want of memory.
    #[error("cannot load {name} of {}: {source}", path.display())]
    Torch {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// What libtorch says.
        source: TchError,
    },
}

/// How the names and shapes of a file differ from those of a model.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mismatch {
    /// Names of the model that the file lacks.
    pub missing: Vec<String>,
    /// Names of the file that the model lacks.
    pub unexpected: Vec<String>,
    /// Name, shape in the file, shape in the model.
    pub shapes: Vec<(String, Vec<i64>, Vec<i64>)>,
}

fn seen(looks_like: Option<&str>) -> String {
    looks_like.map_or(String::new(), |what| format!("; the file looks like {what}"))
}

impl Mismatch {
    /// How many names do not fit.
    pub fn len(&self) -> usize {
        self.missing.len() + self.unexpected.len() + self.shapes.len()
    }

    /// Whether everything fits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The first `most` names of each sort.
    pub fn listed(&self, most: usize) -> String {
        let shape =
            |(name, file, model): &(String, Vec<i64>, Vec<i64>)| format!("{name} {file:?} instead of {model:?}");
        let shapes: Vec<String> = self.shapes.iter().map(shape).collect();
        let of = |(what, names): (&str, &Vec<String>)| {
            let more = names.len().saturating_sub(most);
            let more = if more == 0 { String::new() } else { format!(" and {more} more") };
            let first = names[..names.len().min(most)].join(", ");
            (!names.is_empty()).then(|| format!("{} {what}: {first}{more}", names.len()))
        };
        let sorts = [("missing", &self.missing), ("unexpected", &self.unexpected), ("wrong shape", &shapes)];
        sorts.into_iter().filter_map(of).collect::<Vec<_>>().join("; ")
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.listed(LISTED))
    }
}
