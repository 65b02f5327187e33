//! The kinds of flaws.

/// A kind of flaw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Defect {
    /// A groove or two with raised rims.
    Scratch,
    /// A dark, jagged, branching gap.
    Crack,
    /// A dark opening with a rim.
    Hole,
    /// A spill that tints the surface.
    Stain,
    /// A fibre, a drop or crumbs of another material.
    Contamination,
    /// A part that is gone or in the wrong place: a thread, a piece of board, a dot, a tooth, the print, a pin.
    MissingPart,
}

impl Defect {
    /// All kinds of flaw.
    pub const ALL: [Self; 6] =
        [Self::Scratch, Self::Crack, Self::Hole, Self::Stain, Self::Contamination, Self::MissingPart];

    /// Returns the name of the kind in folders.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scratch => "scratch",
            Self::Crack => "crack",
            Self::Hole => "hole",
            Self::Stain => "stain",
            Self::Contamination => "contamination",
            Self::MissingPart => "missing_part",
        }
    }
}
