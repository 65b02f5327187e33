//! The numbers of images that the paper states for its data sets.

/// The paper's tables of data sets.
const PAPER: &str = include_str!("../../data/paper_datasets.csv");

/// The name of COCO-AD in these tables.
const COCO_AD: &str = "COCO-AD";

/// The numbers of images that the paper states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stated {
    /// The classes; none of COCO-AD, of which the paper counts categories and background.
    pub classes: Option<u64>,
    /// Normal training images.
    pub train: u64,
    /// Normal test images.
    pub normal: u64,
    /// Anomalous test images.
    pub anomalous: u64,
    /// True if the paper prints the two numbers of test images in each other's place. They are in the right place here.
    pub swapped: bool,
}

impl Stated {
    /// Returns the numbers of a data set (`VisA`) or a part of it (`COCO-AD`, `split0`); `None` if the paper states none.
    pub fn of(dataset: &str, part: &str) -> Option<Self> {
        let cells = PAPER.lines().skip(1).map(|line| line.split(',').collect::<Vec<_>>());
        let row = cells.into_iter().find(|cells| cells.get(1) == Some(&dataset) && cells.get(2) == Some(&part))?;
        // Only the note, which is the last column, has commas of its own.
        let [_, _, _, _, classes, train, printed_anomalous, _, anomalous, normal, ..] = row[..] else { return None };
        Some(Self {
            classes: classes.parse().ok().filter(|_| dataset != COCO_AD),
            train: train.parse().ok()?,
            normal: normal.parse().ok()?,
            anomalous: anomalous.parse().ok()?,
            swapped: printed_anomalous != anomalous,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_that_the_paper_swaps_are_in_their_places() {
        let visa = Stated { classes: Some(12), train: 8659, normal: 962, anomalous: 1200, swapped: true };
        assert_eq!(Stated::of("VisA", "all"), Some(visa));
        let coco = Stated { classes: None, train: 30_438, normal: 1291, anomalous: 3661, swapped: true };
        assert_eq!(Stated::of("COCO-AD", "split0"), Some(coco));
        let mvtec = Stated { classes: Some(15), train: 3629, normal: 467, anomalous: 1258, swapped: false };
        assert_eq!(Stated::of("MVTec-AD", "all"), Some(mvtec));
        assert_eq!(
            Stated::of("Real-IAD", "all").map(|stated| stated.train + stated.normal + stated.anomalous),
            Some(151_050)
        );
        assert_eq!(Stated::of("COCO-AD", "split4"), None);
    }
}
