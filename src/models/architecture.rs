//! Which published architecture some names and shapes are of, told by nothing else.
//!
//! The layouts stand in `architecture/*.txt`. No tensor is read and libtorch is not called.

mod compare;
mod layout;
mod part;

use compare::Tree;
use layout::Layout;
pub use part::{Nearest, Part};
use std::{collections::BTreeMap, fmt, sync::LazyLock};

static LAYOUTS: LazyLock<BTreeMap<String, Layout>> = LazyLock::new(|| {
    layout::parse(&[
        include_str!("architecture/diffusion.txt"),
        include_str!("architecture/vision.txt"),
        include_str!("architecture/language.txt"),
    ])
});

/// Containers with fewer tensors are no model of their own.
const FEWEST: usize = 5;

/// What a file is.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Recognised {
    /// The layouts that fit exactly.
    pub parts: Vec<Part>,
    /// Names that stand in none of them.
    pub rest: Vec<String>,
    /// Where none fits: the layout that is most like it.
    pub nearest: Option<Nearest>,
}

/// What people call a layout.
pub fn title(layout: &str) -> Option<&'static str> {
    LAYOUTS.get(layout).map(|layout| layout.title.as_str()).filter(|title| !title.is_empty())
}

/// Says what names with their shapes are.
///
/// A layout fits if it leaves nothing over on either side. Where none fits all of it, parts are sought below each prefix; where
/// these are less than half of the names, the file is a damaged or unknown whole, and the nearest layout is told.
pub fn recognise<'a>(shapes: impl IntoIterator<Item = (&'a str, &'a [i64])>) -> Recognised {
    let tree = Tree::new(shapes);
    let mut found = Recognised::default();
    seek(&tree, "", &mut found);
    let covered = tree.leaves() - found.rest.len();
    if !found.parts.is_empty() && covered * 2 >= tree.leaves() {
        return found;
    }
    let nearest = compare::nearest(&LAYOUTS, &tree, "");
    Recognised { nearest: nearest.filter(|nearest| nearest.matched > 0), ..Default::default() }
}

/// The layout that all of it has, if there is one: what [`recognise`] would find first, without a look at what else it may be.
pub fn whole<'a>(shapes: impl IntoIterator<Item = (&'a str, &'a [i64])>) -> Option<Part> {
    fitting(&Tree::new(shapes), "")
}

fn fitting(tree: &Tree, prefix: &str) -> Option<Part> {
    if tree.leaves() < FEWEST { None } else { compare::fitting(&LAYOUTS, tree, prefix) }
}

fn seek(tree: &Tree, prefix: &str, found: &mut Recognised) {
    if let Some(part) = fitting(tree, prefix) {
        found.parts.push(part);
        return;
    }
    tree.tensor().into_iter().for_each(|_| found.rest.push(prefix.to_owned()));
    for (name, child) in tree.children() {
        seek(child, &compare::join(prefix, name), found);
    }
}

impl Recognised {
    /// The layout that the file has as a whole, but for names that no layout knows.
    pub fn layout(&self) -> Option<&str> {
        if let [part] = self.parts.as_slice() { Some(&part.layout) } else { None }
    }

    /// In a few words, what a file that does not fit looks like: None where that would be a guess.
    pub fn looks_like(&self) -> Option<String> {
        let parts: Vec<String> = self.parts.iter().map(Part::to_string).collect();
        match &self.nearest {
            _ if !parts.is_empty() => Some(parts.join(" and ")),
            Some(nearest) if nearest.matched > nearest.mismatch.len() => {
                Some(format!("a damaged {}", nearest.titles()))
            }
            _ => None,
        }
    }
}

impl Nearest {
    /// What people call it, and the others.
    pub fn titles(&self) -> String {
        let also = self.also.iter().map(|(_, title)| format!(" or {title}"));
        self.title.clone() + &also.collect::<String>()
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.title)?;
        for (index, (name, value)) in self.sizes.iter().enumerate() {
            write!(f, "{} {name} {value}", if index == 0 { ":" } else { "," })?;
        }
        if !self.prefix.is_empty() {
            write!(f, " (below {})", self.prefix)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
