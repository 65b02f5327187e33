//! Synthetic photographs: small pictures of products, flawless and flawed, with exact masks and captions, for trying
//! the method without a download.
//!
//! Every picture is a function of `(seed, class, split, defect, index)` alone, so that more pictures never change those
//! that exist, and is built from basic arithmetic, so that it is the same on every machine. Sizes change the
//! resolution, not the scene.

mod camera;
mod capsule;
mod connector;
mod defect;
mod defects;
mod draw;
mod fabric;
mod gear;
mod geometry;
mod noise;
mod scene;
mod tile;
mod tree;
mod wood;

use std::fmt;
use std::str::FromStr;

use image::{GrayImage, RgbImage};

use camera::View;
pub use defect::Defect;
use draw::Draw;
use scene::{Light, Scene};

pub use tree::{Error, write_mvtec};

/// A kind of product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// A plain weave of thick yarn (texture).
    Fabric,
    /// Boards with a waving grain (texture).
    Wood,
    /// A floor of octagons and dots (texture).
    Tile,
    /// A spur gear with five holes (object).
    Gear,
    /// A printed two-coloured capsule (object).
    Capsule,
    /// A pin header on a circuit board (object).
    Connector,
}

/// The names of all classes, textures first.
pub const CLASSES: &[&str] = &["fabric", "wood", "tile", "gear", "capsule", "connector"];

impl Class {
    /// All classes, in the order of [`CLASSES`].
    pub const ALL: [Self; 6] = [Self::Fabric, Self::Wood, Self::Tile, Self::Gear, Self::Capsule, Self::Connector];

    /// Returns the name of the class in folders.
    pub fn name(self) -> &'static str {
        CLASSES[self as usize]
    }

    fn scene(self, light: &Light, draw: &mut Draw) -> Box<dyn Scene> {
        match self {
            Self::Fabric => Box::new(fabric::Fabric::new(draw)),
            Self::Wood => Box::new(wood::Wood::new(light, draw)),
            Self::Tile => Box::new(tile::Tile::new(light, draw)),
            Self::Gear => Box::new(gear::Gear::new(light, draw)),
            Self::Capsule => Box::new(capsule::Capsule::new(light, draw)),
            Self::Connector => Box::new(connector::Connector::new(light, draw)),
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Class {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        Self::ALL.into_iter().find(|class| class.name() == name).ok_or_else(|| Error::UnknownClass(name.into()))
    }
}

/// The use of a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Split {
    /// Pictures to learn from, all flawless.
    Train,
    /// Pictures to test with.
    Test,
}

impl Split {
    /// Returns the name of the split in folders.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Test => "test",
        }
    }
}

/// The identity of a picture, from which it can be rendered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Item {
    /// The product.
    pub class: Class,
    /// Its use.
    pub split: Split,
    /// Its number, from 0 within class, split and defect.
    pub index: u32,
    /// The kind of flaw; `None` for a flawless product.
    pub defect: Option<Defect>,
}

impl Item {
    /// Returns the name of the defect, or `good`.
    pub fn label(&self) -> &'static str {
        self.defect.map_or("good", Defect::name)
    }

    /// Returns `CLASS/SPLIT/LABEL/INDEX`, such as `gear/test/scratch/003`: a unique name, and the path in a tree
    /// without the extension.
    pub fn image_id(&self) -> String {
        format!("{}/{}/{}/{:03}", self.class, self.split.name(), self.label(), self.index)
    }
}

/// A rendered picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The photograph.
    pub image: RgbImage,
    /// 255 where the defect changed the picture noticeably, 0 elsewhere; of the picture's size, and all 0 without a
    /// defect.
    pub mask: GrayImage,
    /// The product as it should look, in one or two sentences.
    pub caption: String,
}

/// The largest number of pictures of a class and kind.
pub const MOST: u32 = 100_000;

/// Returns the pictures of a data set, class by class: `train` flawless ones to learn from, then `test_good` flawless
/// ones and `test_per_defect` of each [`Defect`] to test with.
///
/// # Errors
/// [`Error::UnknownClass`] for a name that is not in [`CLASSES`].
pub fn items<S: AsRef<str>>(
    classes: &[S],
    train: u32,
    test_good: u32,
    test_per_defect: u32,
) -> Result<Vec<Item>, Error> {
    let mut items = Vec::new();
    for name in classes {
        let class = name.as_ref().parse()?;
        let mut add = |split, defect, count| items.extend((0..count).map(|index| Item { class, split, index, defect }));
        add(Split::Train, None, train);
        add(Split::Test, None, test_good);
        for defect in Defect::ALL {
            add(Split::Test, Some(defect), test_per_defect);
        }
    }
    Ok(items)
}

/// Streams of random choices that one picture draws from.
mod stream {
    pub(super) const SCENE: u64 = 0;
    pub(super) const CAMERA: u64 = 1;
    /// The first try at the defect; each further try takes the next.
    pub(super) const DEFECT: u64 = 2;
}

/// The share of the picture that a defect may change.
const AREA: std::ops::RangeInclusive<f32> = 0.004..=0.055;

/// Renders `item` of the data set `seed` in `size` x `size` pixels, of 64..=512 (other sizes work, but are not as
/// natural).
pub fn render(item: &Item, seed: u64, size: u32) -> Sample {
    let label = item.image_id();
    let build = || {
        let mut draw = Draw::new(seed, &label, stream::SCENE);
        let light = Light::new(&mut draw);
        let scene = item.class.scene(&light, &mut draw);
        (light, scene)
    };
    let (light, scene) = build();
    let caption = scene.caption(light.words);
    let mut camera = Draw::new(seed, &label, stream::CAMERA);
    let Some(defect) = item.defect else {
        let (image, mask) =
            View { scene: &*scene, broken: None, mark: None, light: &light }.photograph(size, &mut camera);
        return Sample { image, mask, caption };
    };
    // A defect that is hidden, too small or too large is drawn anew; if all tries fail, the last one is kept.
    const TRIES: u64 = 24;
    let mut attempt = 0;
    loop {
        let mut draw = Draw::new(seed, &label, stream::DEFECT + attempt);
        let mark = defects::mark(defect, &*scene, &light, &mut draw);
        let broken = mark.is_none().then(|| {
            let (_, mut broken) = build();
            broken.break_part(&mut draw);
            broken
        });
        let view = View { scene: &*scene, broken: broken.as_deref(), mark: mark.as_deref(), light: &light };
        attempt += 1;
        if AREA.contains(&view.changed_share()) || attempt == TRIES {
            let (image, mask) = view.photograph(size, &mut camera);
            return Sample { image, mask, caption };
        }
    }
}

#[cfg(test)]
mod tests;
