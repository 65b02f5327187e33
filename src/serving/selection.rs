//! The photographs that a list or the page shows.

use std::{collections::BTreeSet, sync::Arc};

use serde::Deserialize;

use super::{answer::Word, archive::Kept, shared::Shared};

/// Photographs on a page.
const PAGE: usize = 24;

/// The photographs that a list shows.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub(super) struct Selection {
    /// `time` for the newest first; else the highest score first.
    pub(super) sort: Option<String>,
    /// `anomalous` or `good`; else all.
    pub(super) show: Option<String>,
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
        let word = self.show.as_deref();
        all.retain(|kept| match word {
            Some("anomalous") => kept.answer.verdict == Word::Anomalous,
            Some("good") => kept.answer.verdict == Word::Good,
            _ => true,
        });
        let class = self.class.as_deref().filter(|class| !class.is_empty());
        all.retain(|kept| class.is_none_or(|class| kept.answer.judged.class == class));
        if self.sort.as_deref() != Some("time") {
            let score = |kept: &Arc<Kept>| kept.answer.judged.score.unwrap_or(f64::NEG_INFINITY);
            all.sort_by(|a, b| score(b).total_cmp(&score(a)));
        }
        let (total, pages) = (all.len(), all.len().div_ceil(PAGE).max(1));
        let page = self.page.unwrap_or(1).clamp(1, pages);
        let shown = all.into_iter().skip((page - 1) * PAGE).take(PAGE).collect();
        Selected { shown, total, classes, page, pages }
    }
}
