//! Normal photographs that are held out of training, for calibration.

use std::collections::BTreeMap;

use crate::{
    engine::{Hasher, store::Note},
    tables::images::{CALIBRATION, TRAIN},
};

/// The share of the training photographs that is held out, and the seed by which they are chosen.
#[derive(Clone, Copy, Debug)]
pub(super) struct HoldOut {
    pub(super) share: f64,
    pub(super) seed: u64,
}

impl HoldOut {
    /// Returns the split of a photograph. It depends on the seed and the photograph's id alone, so that a photograph
    /// that is added or removed changes the split of no other.
    pub(super) fn split<'a>(&self, split: &'a str, id: &str) -> &'a str {
        let digest = Hasher::new("hold out").field(&self.seed.to_le_bytes()).field(id.as_bytes()).finish();
        // A uniform number of 0..1.
        let drawn = u128::from_le_bytes(*digest.as_bytes()) as f64 / 2f64.powi(128);
        if split == TRAIN && drawn < self.share { CALIBRATION } else { split }
    }

    /// Returns notes on classes from which nothing is held out, or everything. `images` are the class and split of each
    /// photograph.
    pub(super) fn notes<'a>(&self, images: impl Iterator<Item = (&'a str, &'a str)>) -> Vec<Note> {
        if self.share == 0. {
            return Vec::new();
        }
        let mut classes: BTreeMap<&str, [usize; 2]> = BTreeMap::new();
        for (class, split) in images {
            let [train, held_out] = classes.entry(class).or_default();
            *train += usize::from(split == TRAIN);
            *held_out += usize::from(split == CALIBRATION);
        }
        let without = |what: &str, is_without: fn([usize; 2]) -> bool| {
            let names = classes.iter().filter(|(_, counts)| is_without(**counts)).map(|(class, _)| *class);
            Some(Note::about(what, names)).filter(|note| note.count > 0)
        };
        let none = "classes have so few normal photographs that `hold_out` holds out none of them";
        let all = "classes have so few normal photographs that `hold_out` leaves none to train on";
        let none = without(none, |[train, held_out]| train > 0 && held_out == 0);
        none.into_iter().chain(without(all, |[train, held_out]| train == 0 && held_out > 0)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::images::TEST;

    fn held_out(share: f64, seed: u64) -> Vec<usize> {
        let hold_out = HoldOut { share, seed };
        (0..2000).filter(|i| hold_out.split(TRAIN, &format!("nut/train/good/{i:04}.png")) == CALIBRATION).collect()
    }

    #[test]
    fn share_of_the_training_photographs_is_held_out() {
        assert_eq!(held_out(0., 0), [0; 0]);
        let (fifth, half) = (held_out(0.2, 0), held_out(0.5, 0));
        // Binomial: 400 and 500 ± 5 standard deviations, sqrt(2000 · 0.2 · 0.8) = 18 and sqrt(2000 · 0.5 · 0.5) = 22.
        assert!((310..=490).contains(&fifth.len()), "{}", fifth.len());
        assert!((888..=1112).contains(&half.len()), "{}", half.len());
        // A larger share holds out the same photographs and more; another seed others.
        assert!(fifth.iter().all(|image| half.contains(image)));
        assert_ne!(held_out(0.2, 1), fifth);
        assert_eq!(HoldOut { share: 0.9, seed: 0 }.split(TEST, "nut/test/good/000.png"), TEST);
    }

    #[test]
    fn note_on_classes_from_which_nothing_or_all_is_held_out() {
        let images = [("bolt", TRAIN), ("nut", TRAIN), ("nut", CALIBRATION), ("gear", CALIBRATION), ("pipe", TEST)];
        let notes = |share| HoldOut { share, seed: 0 }.notes(images.into_iter());
        let named: Vec<Vec<String>> = notes(0.5).into_iter().map(|note| note.names).collect();
        assert_eq!(named, [["bolt"], ["gear"]]);
        assert_eq!(notes(0.), []);
    }
}
