//! Comparison of the names and shapes of a file with a layout.

use super::{
    super::mismatch::Mismatch,
    layout::{Dim, Layout, Node, Segment, Size},
    part::{Nearest, Part},
};
use std::collections::{BTreeMap, BTreeSet};

type Layouts = BTreeMap<String, Layout>;

/// The largest number of parts into which a name is split. No layout has as many; the rest of a longer name stays one
/// part.
const DEEPEST: usize = 64;

/// The names of a file as a tree of their dotted parts.
#[derive(Debug, Default)]
pub(super) struct Tree<'a> {
    tensor: Option<&'a [i64]>,
    children: BTreeMap<&'a str, Tree<'a>>,
    leaves: usize,
}

impl<'a> Tree<'a> {
    pub(super) fn new(shapes: impl IntoIterator<Item = (&'a str, &'a [i64])>) -> Self {
        let mut root = Self::default();
        for (name, shape) in shapes {
            root.leaves += 1;
            let leaf = name.splitn(DEEPEST, '.').fold(&mut root, |tree, part| {
                let child = tree.children.entry(part).or_default();
                child.leaves += 1;
                child
            });
            leaf.tensor = Some(shape);
        }
        root
    }

    /// Returns the number of tensors here and below.
    pub(super) fn leaves(&self) -> usize {
        self.leaves
    }

    pub(super) fn tensor(&self) -> Option<&'a [i64]> {
        self.tensor
    }

    pub(super) fn children(&self) -> impl Iterator<Item = (&str, &Self)> {
        self.children.iter().map(|(name, child)| (*name, child))
    }

    /// Returns the children that are named by numbers.
    fn numbered(&self) -> BTreeMap<usize, &Self> {
        let number = |name: &str| name.parse().ok().filter(|number: &usize| number.to_string() == name);
        self.children().filter_map(|(name, child)| Some((number(name)?, child))).collect()
    }

    fn names(&self, prefix: &str, into: &mut Vec<String>) {
        into.extend(self.tensor.map(|_| prefix.to_owned()));
        self.children().for_each(|(name, child)| child.names(&join(prefix, name), into));
    }

    /// Returns the subtrees at the places that a path with `#` names, in the order of the numbers.
    fn all_at(&self, path: &str) -> Vec<&Self> {
        path.split('.').fold(vec![self], |trees, part| match part {
            "#" => trees.iter().flat_map(|tree| tree.numbered().into_values()).collect(),
            name => trees.iter().filter_map(|tree| tree.children.get(name)).collect(),
        })
    }

    /// Returns the name and value of a size in words; None if the file has no such dimension.
    fn size(&self, Size { name, sources }: &Size) -> Option<(String, String)> {
        let values: Vec<String> = sources.iter().flat_map(|source| self.values(source)).collect();
        match values.as_slice() {
            [] => None,
            [value] => Some((name.clone(), value.clone())),
            values => Some((name.clone(), format!("[{}]", values.join(", ")))),
        }
    }

    fn values(&self, source: &str) -> Vec<String> {
        let (side, source) = match source.split_once(':') {
            Some((side, source)) => (Some(side), source),
            None => (None, source),
        };
        let Some((path, dim)) = source.trim_end_matches(']').split_once('[') else {
            let above = source.strip_suffix(".#").unwrap_or(source);
            return self.all_at(above).iter().map(|tree| tree.numbered().len().to_string()).collect();
        };
        let dim = |tree: &&Self| tree.tensor?.get(dim.parse::<usize>().ok()?).copied();
        let sides = |value: i64| match side {
            Some(side) => square(value, side == "grid"),
            None => value.to_string(),
        };
        self.all_at(path).iter().filter_map(dim).map(sides).collect()
    }
}

/// Returns the rows and columns of a number of positions, such as `14x14`, or the number if it is not a square. With
/// `class_token`, the first position stands for the whole image and does not count.
fn square(positions: i64, class_token: bool) -> String {
    let cells = positions - i64::from(class_token);
    let side = cells.max(0).isqrt();
    if side * side == cells { format!("{side}x{side}") } else { cells.to_string() }
}

pub(super) fn join(prefix: &str, name: &str) -> String {
    if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") }
}

/// The numbers that letters stand for.
type Letters = BTreeMap<String, i64>;

#[derive(Debug, Default)]
struct Outcome {
    matched: usize,
    mismatch: Mismatch,
    parts: Vec<Part>,
}

impl Outcome {
    fn add(&mut self, other: Self) {
        self.matched += other.matched;
        self.mismatch.missing.extend(other.mismatch.missing);
        self.mismatch.unexpected.extend(other.mismatch.unexpected);
        self.mismatch.shapes.extend(other.mismatch.shapes);
        self.parts.extend(other.parts);
    }
}

/// Returns the layout that fits a tree exactly.
pub(super) fn fitting(layouts: &Layouts, tree: &Tree, prefix: &str) -> Option<Part> {
    let titled = layouts.iter().filter(|(_, layout)| !layout.title.is_empty());
    let mut outcomes = titled.map(|(id, _)| compare(layouts, id, Some(tree), prefix, &Letters::new()));
    outcomes.find(|outcome| outcome.mismatch.is_empty())?.parts.pop()
}

/// Returns the layout that leaves the fewest names of a tree unexplained and, among equals, lacks the fewest.
pub(super) fn nearest(layouts: &Layouts, tree: &Tree, prefix: &str) -> Option<Nearest> {
    let titled = layouts.iter().filter(|(_, layout)| !layout.title.is_empty());
    let mut outcomes: Vec<_> = titled
        .map(|(id, layout)| (id, &layout.title, compare(layouts, id, Some(tree), prefix, &Letters::new())))
        .collect();
    let unexplained = |wrong: &Mismatch| wrong.unexpected.len() + wrong.shapes.len();
    outcomes.sort_by_key(|(_, _, outcome)| (unexplained(&outcome.mismatch), outcome.mismatch.missing.len()));
    let mut outcomes = outcomes.into_iter();
    let (id, title, Outcome { matched, mismatch, .. }) = outcomes.next()?;
    let most = mismatch.missing.len() * 3 / 2;
    let like = |other: &Mismatch| unexplained(other) == unexplained(&mismatch) && other.missing.len() <= most;
    let also = outcomes.filter(|(_, _, other)| like(&other.mismatch)).map(|(id, title, _)| (id.clone(), title.clone()));
    let also = also.collect();
    Some(Nearest { layout: id.clone(), title: title.clone(), also, matched, mismatch })
}

fn compare(layouts: &Layouts, id: &str, tree: Option<&Tree>, path: &str, letters: &Letters) -> Outcome {
    let layout = &layouts[id];
    let mut outcome = Outcome::default();
    visit(layouts, &layout.root, tree, path, &mut letters.clone(), &mut outcome);
    if let Some(tree) = tree.filter(|_| !layout.title.is_empty()) {
        let parts = std::mem::take(&mut outcome.parts);
        let sizes = layout.sizes.iter().filter_map(|size| tree.size(size)).collect();
        let (layout, title, prefix) = (id.to_owned(), layout.title.clone(), path.to_owned());
        outcome.parts.push(Part { prefix, layout, title, sizes, parts });
    }
    outcome
}

/// Compares one place and all below it. If a layout has names below a number and the file has no number there, they are
/// reported as missing below 0.
fn visit(layouts: &Layouts, node: &Node, tree: Option<&Tree>, path: &str, letters: &mut Letters, out: &mut Outcome) {
    if node.any {
        return out.matched += tree.map_or(0, Tree::leaves);
    }
    if let Some(include) = &node.include {
        let shared = |letter: &String| Some((letter.clone(), *letters.get(letter)?));
        let shared: Letters = include.shared.iter().filter_map(shared).collect();
        let outcomes = include.alternatives.iter().map(|id| compare(layouts, id, tree, path, &shared));
        return outcomes.min_by_key(|outcome| outcome.mismatch.len()).into_iter().for_each(|best| out.add(best));
    }
    match (&node.tensor, tree.and_then(Tree::tensor)) {
        (Some(dims), Some(shape)) => match expected(dims, shape, letters) {
            None => out.matched += 1,
            Some(expected) => out.mismatch.shapes.push((path.to_owned(), shape.to_vec(), expected)),
        },
        (Some(_), None) => out.mismatch.missing.push(path.to_owned()),
        (None, Some(_)) => out.mismatch.unexpected.push(path.to_owned()),
        (None, None) => (),
    }
    let mut known: BTreeSet<String> = BTreeSet::new();
    let numbered = tree.map(Tree::numbered).unwrap_or_default();
    for (segment, child) in &node.children {
        if let Segment::Name(name) = segment {
            known.insert(name.clone());
            let below = tree.and_then(|tree| tree.children.get(name.as_str()));
            if below.is_some() || !child.optional {
                visit(layouts, child, below, &join(path, name), letters, out);
            }
            continue;
        }
        // Numbers count from 0 and each has a tensor, so a number that is not below the count of tensors belongs to no
        // such row.
        let last = numbered.range(..tree.map_or(0, Tree::leaves)).next_back();
        let numbers: Vec<usize> = match (segment, last) {
            (Segment::Sparse, _) if !numbered.is_empty() => numbered.keys().copied().collect(),
            (_, Some((&last, _))) => (0..=last).collect(),
            (_, None) if child.optional => vec![],
            (_, None) => vec![0],
        };
        for number in numbers {
            // A number that the layout names itself is not one of the others.
            if known.insert(number.to_string()) {
                let below = numbered.get(&number).copied();
                visit(layouts, child, below, &join(path, &number.to_string()), &mut letters.clone(), out);
            }
        }
    }
    let unknown = tree.into_iter().flat_map(Tree::children).filter(|(name, _)| !known.contains(*name));
    unknown.for_each(|(name, child)| child.names(&join(path, name), &mut out.mismatch.unexpected));
}

/// Compares a shape with its dimensions in the layout; letters without a number yet get theirs from the shape. Returns
/// the shape that would fit, or None if this one does. Dimensions of 1 at the end do not count, as in loading.
fn expected(dims: &[Dim], shape: &[i64], letters: &mut Letters) -> Option<Vec<i64>> {
    let at = |index: usize| shape.get(index).copied().unwrap_or(1);
    let mut fits = shape.iter().skip(dims.len()).all(|&size| size == 1);
    let mut sizes = Vec::with_capacity(dims.len());
    for (index, dim) in dims.iter().enumerate() {
        let size = match dim {
            Dim::Any => at(index),
            Dim::Fixed(size) => *size,
            Dim::Times(factor, letter) => {
                if !letters.contains_key(letter) && at(index) % factor == 0 {
                    letters.insert(letter.clone(), at(index) / factor);
                }
                letters.get(letter).map_or(at(index) / factor * factor, |value| factor * value)
            }
        };
        fits &= size == at(index);
        sizes.push(size);
    }
    (!fits).then_some(sizes)
}
