//! What a file is found to hold.

use serde::Serialize;

use super::super::mismatch::Mismatch;

/// A layout that a file, or what stands below a prefix in it, has exactly.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Part {
    /// Where it stands in the file; empty for all of it.
    pub prefix: String,
    /// Its short name, as `dino-hf`.
    pub layout: String,
    /// What people call it, and whose names it has.
    pub title: String,
    /// Its sizes, in words.
    pub sizes: Vec<(String, String)>,
    /// The layouts that it is made of.
    pub parts: Vec<Part>,
}

/// What a file is most like, and how it differs.
#[derive(Debug, Clone, PartialEq)]
pub struct Nearest {
    /// The short name of the layout.
    pub layout: String,
    /// What people call it.
    pub title: String,
    /// Short names and titles of others that are nearly as like it, as a few tensors are of many.
    pub also: Vec<(String, String)>,
    /// How many tensors have the name and the shape that they should have.
    pub matched: usize,
    /// What differs.
    pub mismatch: Mismatch,
}
