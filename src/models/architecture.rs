//! Recognition of published architectures by nothing but the names and shapes of tensors.
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

/// The smallest number of tensors that is recognised as a model of its own.
const FEWEST: usize = 5;

/// The architectures that were recognised in a file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Recognised {
    /// The layouts that fit exactly.
    pub parts: Vec<Part>,
    /// The names that belong to none of these layouts.
    pub rest: Vec<String>,
    /// The layout that is most like the file, if none fits.
    pub nearest: Option<Nearest>,
}

/// Returns the title of a layout, which people know it by; None for a fragment or an unknown layout.
pub fn title(layout: &str) -> Option<&'static str> {
    LAYOUTS.get(layout).map(|layout| layout.title.as_str()).filter(|title| !title.is_empty())
}

/// Recognises the architectures that names with their shapes belong to.
///
/// A layout fits if neither the layout nor the file has a name that the other lacks. If no layout fits the whole, parts
/// are sought below each prefix. If these cover less than half of the names, the file is taken for a damaged or unknown
/// whole, and only the nearest layout is returned.
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

/// Returns the layout that fits all of the names, if there is one. [`recognise`] would return the same, but also
/// searches for parts and for the nearest layout if there is none.
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
    /// Returns the layout of the file if exactly one was found; names that belong to no layout are ignored.
    pub fn layout(&self) -> Option<&str> {
        if let [part] = self.parts.as_slice() { Some(&part.layout) } else { None }
    }

    /// Describes in a few words a file that does not fit; None if that would be a guess.
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
    /// Returns its title, and those of the layouts that are nearly as like the file.
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
