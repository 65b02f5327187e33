//! The layouts that are found in a file.

use serde::Serialize;

use super::super::mismatch::Mismatch;

/// A layout that fits a file, or its names below a prefix, exactly.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Part {
    /// The prefix of its names in the file; empty if it is the whole file.
    pub prefix: String,
    /// Its short name, as `dino-hf`.
    pub layout: String,
    /// The name that people use, and the program whose tensor names these are.
    pub title: String,
    /// Its sizes, each a name and a value in words.
    pub sizes: Vec<(String, String)>,
    /// The layouts that it is made of.
    pub parts: Vec<Part>,
}

/// The layout that a file is most like, and the differences.
#[derive(Debug, Clone, PartialEq)]
pub struct Nearest {
    /// The short name of the layout.
    pub layout: String,
    /// The name that people use.
    pub title: String,
    /// Short names and titles of other layouts that are nearly as like the file, since a few tensors may belong to
    /// many.
    pub also: Vec<(String, String)>,
    /// The number of tensors with the name and shape of the layout.
    pub matched: usize,
    /// The differences.
    pub mismatch: Mismatch,
}
