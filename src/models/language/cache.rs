//! The keys and values of the tokens so far, for several rows of different lengths.
//!
//! Token i of a row lies at place i of the row, and its position is i. Rows are not aligned with each other: a mask
//! hides the places after the end of each. A row may therefore end and another take its place while the others go on.

use tch::{Device, Kind, Tensor};

/// Keys and values of all layers, allocated once.
#[derive(Debug)]
pub struct Cache {
    /// Per layer, [rows, kv heads, places, head_dim].
    keys: Vec<Tensor>,
    /// Per layer, [rows, kv heads, places, head_dim].
    values: Vec<Tensor>,
    /// The number of tokens of each row.
    lengths: Vec<i64>,
    places: i64,
}

/// The sizes of a cache.
#[derive(Debug, Clone, Copy)]
pub struct CacheSize {
    /// Number of layers.
    pub layers: i64,
    /// Number of key and value heads.
    pub kv_heads: i64,
    /// Width of a head.
    pub head_dim: i64,
}

/// New tokens: of which rows, and after how many tokens of each.
#[derive(Debug)]
pub struct Span {
    rows: Vec<i64>,
    starts: Vec<i64>,
    counts: Vec<i64>,
    /// The tokens per row in the batch, with padding at the end of short rows: the largest of `counts`.
    width: i64,
    /// The rows and places as tensors, for one token per row at different places.
    scattered: Option<[Tensor; 2]>,
}

/// A row has no place for more tokens.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a text of {needed} tokens does not fit into a cache of {places} places a row")]
pub struct CacheFull {
    /// The tokens of the row, with the new ones.
    pub needed: i64,
    /// The places of each row.
    pub places: i64,
}

impl Span {
    /// Returns the number of tokens of each row with the new ones.
    pub fn lengths(&self) -> Vec<i64> {
        self.starts.iter().zip(&self.counts).map(|(start, count)| start + count).collect()
    }

    /// Returns the number of tokens of each row before the new ones.
    pub fn starts(&self) -> &[i64] {
        &self.starts
    }

    /// Returns the number of tokens per row in the batch, with padding.
    pub fn width(&self) -> i64 {
        self.width
    }

    /// Returns true if no row has tokens before the new ones.
    pub fn is_first(&self) -> bool {
        self.starts.iter().all(|&start| start == 0)
    }

    /// Returns the first row if the rows follow one another, which makes them a view.
    fn first_of_adjacent(&self) -> Option<i64> {
        let first = *self.rows.first()?;
        self.rows.iter().zip(first..).all(|(row, next)| *row == next).then_some(first)
    }

    fn one_start(&self) -> Option<i64> {
        let first = *self.starts.first()?;
        self.starts.iter().all(|&start| start == first).then_some(first)
    }

    /// Returns the number of places that the tokens of this span look at.
    fn reach(&self) -> i64 {
        self.starts.iter().max().map_or(0, |start| start + self.width)
    }

    /// Returns the places that each new token sees, those up to its own: bool [rows or 1, 1, width, reach], true where
    /// it looks. None if every token of the span sees all of them.
    pub(in crate::models) fn mask(&self, device: Device) -> Option<Tensor> {
        if self.width == 1 && self.one_start().is_some() {
            return None;
        }
        let starts = self.one_start().map_or(self.starts.clone(), |start| vec![start]);
        let starts = Tensor::from_slice(&starts).to_device(device).view([-1, 1, 1, 1]); // [rows or 1, 1, 1, 1]
        let counting = |n: i64| Tensor::arange(n, (Kind::Int64, device));
        let own = starts + counting(self.width).view([1, 1, -1, 1]); // [rows or 1, 1, width, 1]
        Some(counting(self.reach()).view([1, 1, 1, -1]).le_tensor(&own))
    }
}

impl Cache {
    /// Allocates `rows` rows of `places` tokens. The pages of the memory are taken when they are first written to.
    pub fn new(size: CacheSize, rows: usize, places: i64, options: (Kind, Device)) -> Self {
        // Zeros, because a masked value that is not a number would still spoil the sum over all values.
        let zeros = |_| Tensor::zeros([rows as i64, size.kv_heads, places, size.head_dim], options);
        let side = || (0..size.layers).map(zeros).collect();
        Self { keys: side(), values: side(), lengths: vec![0; rows], places }
    }

    /// Returns the number of rows.
    pub fn rows(&self) -> usize {
        self.lengths.len()
    }

    /// Returns the number of places of each row.
    pub fn places(&self) -> i64 {
        self.places
    }

    /// Returns the number of tokens of a row.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn length(&self, row: usize) -> i64 {
        self.lengths[row]
    }

    /// Empties a row for another text.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn clear(&mut self, row: usize) {
        self.lengths[row] = 0;
    }

    /// Describes `counts` further tokens of each of `rows`.
    ///
    /// # Errors
    /// [`CacheFull`] if a row, padded to the longest of `counts`, has too few places.
    ///
    /// # Panics
    /// If there is no such row, or rows and counts are not as many.
    pub fn span(&self, rows: &[usize], counts: &[i64]) -> Result<Span, CacheFull> {
        assert_eq!(rows.len(), counts.len(), "one count per row");
        let starts: Vec<i64> = rows.iter().map(|&row| self.lengths[row]).collect();
        let width = counts.iter().copied().max().unwrap_or(0);
        let needed = starts.iter().max().map_or(0, |start| start + width);
        if needed > self.places {
            return Err(CacheFull { needed, places: self.places });
        }
        let rows: Vec<i64> = rows.iter().map(|&row| row as i64).collect();
        let mut span = Span { rows, starts, counts: counts.to_vec(), width, scattered: None };
        if width == 1 && span.one_start().is_none() {
            let device = self.keys.first().map_or(Device::Cpu, Tensor::device);
            let index = |values: &[i64]| Tensor::from_slice(values).to_device(device);
            span.scattered = Some([index(&span.rows), index(&span.starts)]);
        }
        Ok(span)
    }

    /// Writes the keys and values [rows, width, kv heads, head_dim] of a span's tokens in one layer.
    pub(super) fn write(&mut self, layer: usize, span: &Span, keys: &Tensor, values: &Tensor) {
        for (all, new) in [(&mut self.keys[layer], keys), (&mut self.values[layer], values)] {
            write(all, span, new);
        }
    }

    /// Returns the keys and values [rows, kv heads, reach, head_dim] that a span's tokens look at in one layer: views,
    /// if the rows are adjacent.
    pub(super) fn read(&self, layer: usize, span: &Span) -> [Tensor; 2] {
        [&self.keys[layer], &self.values[layer]].map(|all| {
            let rows = match span.first_of_adjacent() {
                Some(first) => all.narrow(0, first, span.rows.len() as i64),
                None => all.index_select(0, &Tensor::from_slice(&span.rows).to_device(all.device())),
            };
            rows.narrow(2, 0, span.reach())
        })
    }

    /// Counts the tokens of a span, which all layers have written.
    pub(in crate::models) fn commit(&mut self, span: &Span) {
        for (&row, length) in span.rows.iter().zip(span.lengths()) {
            self.lengths[row as usize] = length;
        }
    }

    /// Copies the first `tokens` tokens of a row of another cache into a row, in place of what was there.
    ///
    /// # Panics
    /// If there is no such row, or its places are too few.
    pub fn copy_from(&mut self, row: usize, other: &Self, other_row: usize, tokens: i64) {
        let pairs = self.keys.iter().zip(&other.keys).chain(self.values.iter().zip(&other.values));
        for (to, from) in pairs {
            let part = |x: &Tensor, row: usize| x.select(0, row as i64).narrow(1, 0, tokens);
            part(to, row).copy_(&part(from, other_row));
        }
        self.lengths[row] = tokens;
    }

    /// Replaces the first rows, which are of one length, by copies of the rows `parents`: row i by row `parents[i]`.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn reorder(&mut self, parents: &[usize]) {
        if parents.iter().enumerate().all(|(row, parent)| row == *parent) {
            return;
        }
        let lengths: Vec<i64> = parents.iter().map(|&parent| self.lengths[parent]).collect();
        let tokens = lengths.iter().copied().max().unwrap_or(0);
        let index: Vec<i64> = parents.iter().map(|&parent| parent as i64).collect();
        for all in self.keys.iter().chain(&self.values) {
            let index = Tensor::from_slice(&index).to_device(all.device());
            let part = all.narrow(2, 0, tokens);
            part.narrow(0, 0, parents.len() as i64).copy_(&part.index_select(0, &index));
        }
        self.lengths[..parents.len()].copy_from_slice(&lengths);
    }

    /// Moves a row to another place, so that the rows in use stay adjacent.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn move_row(&mut self, from: usize, to: usize) {
        let tokens = self.lengths[from];
        for all in self.keys.iter().chain(&self.values) {
            let part = |row: usize| all.select(0, row as i64).narrow(1, 0, tokens);
            part(to).copy_(&part(from));
        }
        self.lengths[to] = tokens;
        self.lengths[from] = 0;
    }
}

/// Writes [rows, width, kv heads, head_dim] into [all rows, kv heads, places, head_dim].
fn write(all: &mut Tensor, span: &Span, new: &Tensor) {
    if let Some([rows, places]) = &span.scattered {
        // index_put_ moves the indexed dimensions to the front: [rows, kv heads, head_dim]
        let _ = all.index_put_(&[Some(rows), None, Some(places)], &new.squeeze_dim(1), false);
        return;
    }
    let new = new.transpose(1, 2); // [rows, kv heads, width, head_dim]
    if let (Some(first), Some(start)) = (span.first_of_adjacent(), span.one_start()) {
        all.narrow(0, first, span.rows.len() as i64).narrow(2, start, span.width).copy_(&new);
        return;
    }
    for (i, (row, start)) in span.rows.iter().zip(&span.starts).enumerate() {
        all.select(0, *row).narrow(1, *start, span.width).copy_(&new.get(i as i64));
    }
}
