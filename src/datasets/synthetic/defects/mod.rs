//! Flaws that any product can have, as changes of its surface; their look follows from the shading.

mod lines;
mod mark;
mod patches;

use super::defect::Defect;
use super::draw::Draw;

use super::scene::{Light, Scene};
use lines::{Crack, Fibre, Scratch};
use mark::Base;
pub(super) use mark::Mark;
use patches::{Hole, Litter, Stain};

/// Makes a flaw of the given kind somewhere on `scene`; `None` for a missing part, which the scene itself draws.
pub(super) fn mark(defect: Defect, scene: &dyn Scene, light: &Light, draw: &mut Draw) -> Option<Box<dyn Mark>> {
    let centre = scene.place(draw);
    let base = Base::around(centre, scene);
    Some(match defect {
        Defect::Scratch => Box::new(Scratch::new(centre, base.typical(), draw)),
        Defect::Crack => Box::new(Crack::new(centre, base.typical(), draw)),
        Defect::Hole => Box::new(Hole::new(centre, base.typical(), scene.core(), light, draw)),
        Defect::Stain => Box::new(Stain::new(centre, &base, draw)),
        Defect::Contamination => match draw.below(3) {
            0 => Box::new(Fibre::new(centre, &base, light, draw)),
            1 => Box::new(Litter::blob(centre, &base, light, draw)),
            _ => Box::new(Litter::crumbs(centre, &base, light, draw)),
        },
        Defect::MissingPart => return None,
    })
}
