//! The photographs that a list or the page shows.

use std::{collections::BTreeSet, sync::Arc};

use serde::Deserialize;

use super::{answer::Word, archive::Kept, shared::Shared};

/// Photographs on a page.
const PAGE: usize = 24;

/// The order of photographs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Sort {
    /// The highest score first.
    Score,
    /// The newest first.
    Time,
}

impl Sort {
    /// Returns the word that a request has for it.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Score => "score",
            Self::Time => "time",
        }
    }
}

/// The verdicts of the photographs that are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Show {
    All,
    Anomalous,
    Good,
}

impl Show {
    /// Returns the word that a request has for it.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Anomalous => "anomalous",
            Self::Good => "good",
        }
    }
}

/// The photographs that a list shows.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Selection {
    /// The order; by default the highest score first.
    pub(super) sort: Option<Sort>,
    /// The verdict; by default any.
    pub(super) show: Option<Show>,
    pub(super) class: Option<String>,
    /// From 1.
    pub(super) page: Option<usize>,
    /// The seconds after which the page is loaded again.
    pub(super) refresh: Option<u32>,
}

/// Photographs of a list.
pub(super) struct Selected {
    /// The photographs of the page.
    pub(super) shown: Vec<Arc<Kept>>,
    /// The number of all that were chosen.
    pub(super) total: usize,
    /// The classes of all photographs.
    pub(super) classes: BTreeSet<String>,
    pub(super) page: usize,
    pub(super) pages: usize,
}

impl Selection {
    /// Selects from the photographs that the server keeps.
    pub(super) fn of(&self, shared: &Shared) -> Selected {
        let mut all = shared.archive.all();
        let classes = all.iter().map(|kept| kept.answer.judged.class.clone()).collect();
        all.retain(|kept| match self.show {
            Some(Show::Anomalous) => kept.answer.verdict == Word::Anomalous,
            Some(Show::Good) => kept.answer.verdict == Word::Good,
            Some(Show::All) | None => true,
        });
        let class = self.class.as_deref().filter(|class| !class.is_empty());
        all.retain(|kept| class.is_none_or(|class| kept.answer.judged.class == class));
        if self.sort != Some(Sort::Time) {
            let score = |kept: &Arc<Kept>| kept.answer.judged.score.unwrap_or(f64::NEG_INFINITY);
            all.sort_by(|a, b| score(b).total_cmp(&score(a)));
        }
        let (total, pages) = (all.len(), all.len().div_ceil(PAGE).max(1));
        let page = self.page.unwrap_or(1).clamp(1, pages);
        let shown = all.into_iter().skip((page - 1) * PAGE).take(PAGE).collect();
        Selected { shown, total, classes, page, pages }
    }
}
