//! The differences between weights and a model.

use std::fmt;

/// The number of names of each sort that an error message lists.
const LISTED: usize = 20;

/// The differences between the names and shapes of a file and those of a model.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mismatch {
    /// Names of the model that the file lacks.
    pub missing: Vec<String>,
    /// Names of the file that the model lacks.
    pub unexpected: Vec<String>,
    /// Name, shape in the file, shape in the model.
    pub shapes: Vec<(String, Vec<i64>, Vec<i64>)>,
}

impl Mismatch {
    /// Returns the number of names that do not fit.
    pub fn len(&self) -> usize {
        self.missing.len() + self.unexpected.len() + self.shapes.len()
    }

    /// Returns true if everything fits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Lists the first `most` names of each sort.
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
