//! The memory of weights and of the keys and values of texts, compared with that of the machine before anything is
//! loaded.

use tch::Device;

use crate::{
    engine::{Error, Result},
    models::{
        language::weights::WeightBytes,
        memory::{free, in_words},
    },
};

/// The number of texts that are written at once, if the run does not say.
const ROWS: usize = 8;

/// The memory of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::captioners) struct Memory {
    /// The bytes of the weights.
    weights: u64,
    /// The bytes of keys and values.
    cache: u64,
    /// The number of texts at once.
    pub(in crate::captioners) rows: usize,
}

impl Memory {
    /// Chooses the number of texts at once: `rows` if the run says so, or as many up to 8 as fit. `cache` returns the
    /// bytes of keys and values of a number of texts.
    ///
    /// # Errors
    /// [`Error::Memory`] if the weights, or the texts that the run asks for, do not fit into the free memory. That of a GPU
    /// is not known before it is used.
    pub(in crate::captioners) fn plan(
        weights: WeightBytes,
        rows: Option<usize>,
        cache: impl Fn(usize) -> u64,
        device: Device,
    ) -> Result<Self> {
        Self::within(weights.total(), rows, cache, if device == Device::Cpu { free() } else { None })
    }

    fn within(weights: u64, rows: Option<usize>, cache: impl Fn(usize) -> u64, free: Option<u64>) -> Result<Self> {
        let free = free.unwrap_or(u64::MAX);
        let fits = |rows: &usize| weights.saturating_add(cache(*rows)) <= free;
        let tried = rows.map_or_else(|| (1..=ROWS).rev().collect(), |rows| vec![rows]);
        if let Some(rows) = tried.iter().copied().find(fits) {
            return Ok(Self { weights, cache: cache(rows), rows });
        }
        let least = tried.last().copied().unwrap_or(1);
        let texts = if least == 1 { "a text".to_owned() } else { format!("{least} texts at once") };
        let advice = if fits(&1) {
            "a smaller --batch-size"
        } else {
            "`precision: int8`, fewer `max_new_tokens` or `max_tiles`"
        };
        Err(Error::Memory(format!(
            "the model needs {} for its weights and {} for the keys and values of {texts}, and {} are free; less is needed \
             with {advice}, or a smaller model",
            in_words(weights),
            in_words(cache(least)),
            in_words(free)
        )))
    }

    /// Returns a sentence about it.
    pub(in crate::captioners) fn sentence(&self) -> String {
        format!(
            "weights take {}, and keys and values of {} texts at once up to {}",
            in_words(self.weights),
            self.rows,
            in_words(self.cache)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_texts_as_fit_are_written_at_once() {
        let plan =
            |rows, free| Memory::within(1000, rows, |rows| 100 * rows as u64, Some(free)).map(|memory| memory.rows);
        assert_eq!(plan(None, 5000).unwrap(), 8);
        assert_eq!(plan(None, 1350).unwrap(), 3);
        assert_eq!(plan(Some(20), 5000).unwrap(), 20);
        let told = |rows, free| plan(rows, free).unwrap_err().to_string();
        assert!(told(Some(4), 1300).contains("4 texts at once") && told(Some(4), 1300).contains("--batch-size"));
        assert!(told(None, 1050).contains("`precision: int8`"), "{}", told(None, 1050));
    }
}
