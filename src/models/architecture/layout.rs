//! Key lists with placeholders, as they stand in `*.txt` beside this file.
//!
//! ```text
//! [dino] DINO ViT (original names)       a layout; without a title, a fragment of layouts
//! = patch: patch_embed.proj.weight[2]    a size to report: a dimension, or the number of blocks for `blocks.#`
//! cls_token        tensor 1 1 D          a tensor and its shape; a letter stands for the same number everywhere
//! patch_embed.proj conv D 3 P            a layer: `weight` [D, 3, P, P] and `bias` [D]
//! blocks.#.mlp     @mlp|swiglu D         one of two fragments, below each number from 0, with this D; its other letters are its own
//! mlp.{fc1,fc2}    linear 4D _           two layers; four times D; `_` is any number
//! head?            linear _ D            a layer that may be missing as a whole
//! main.%           norm _                below some numbers
//! . @other                               all that stands in another fragment
//! optimizer        any                   any names with any shapes
//! ```

use std::collections::BTreeMap;

/// A set of names with their shapes.
#[derive(Debug, Default)]
pub(super) struct Layout {
    /// The name that people use; empty for a fragment.
    pub(super) title: String,
    pub(super) sizes: Vec<Size>,
    pub(super) root: Node,
}

/// A size that is reported: its name, and the places from which its numbers are read.
#[derive(Debug, Clone)]
pub(super) struct Size {
    pub(super) name: String,
    pub(super) sources: Vec<String>,
}

/// The content of one place in a dotted name.
#[derive(Debug, Default, Clone)]
pub(super) struct Node {
    pub(super) optional: bool,
    pub(super) tensor: Option<Vec<Dim>>,
    pub(super) children: Vec<(Segment, Node)>,
    pub(super) include: Option<Include>,
    /// Anything may stand below.
    pub(super) any: bool,
}

/// One part of a dotted name.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Segment {
    Name(String),
    /// Each number from 0 to the largest.
    Index,
    /// The numbers that the file has, which need not be all.
    Sparse,
}

/// One of several layouts, which share some letters with the place where they are used.
#[derive(Debug, Clone)]
pub(super) struct Include {
    pub(super) alternatives: Vec<String>,
    pub(super) shared: Vec<String>,
}

/// A dimension of a shape.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Dim {
    Any,
    Fixed(i64),
    /// A multiple of a letter.
    Times(i64, String),
}

/// Parses texts and returns their layouts by short name.
///
/// # Panics
/// If a text is not well-formed: the texts are parts of the program.
pub(super) fn parse(texts: &[&str]) -> BTreeMap<String, Layout> {
    let mut sections: BTreeMap<&str, (&str, Vec<&str>)> = BTreeMap::new();
    for text in texts {
        let mut current = "";
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            match line.strip_prefix('[').and_then(|line| line.split_once(']')) {
                Some((id, title)) => {
                    current = id;
                    assert!(sections.insert(id, (title.trim(), vec![])).is_none(), "[{id}] stands twice");
                }
                None => sections.get_mut(current).expect("a line stands below a [name]").1.push(line),
            }
        }
    }
    let layout = |id: &&str| {
        let mut layout = Layout { title: sections[id].0.to_owned(), ..Default::default() };
        fill(&mut layout, id, &sections);
        layout.root.check(id);
        ((*id).to_owned(), layout)
    };
    sections.keys().map(layout).collect()
}

fn fill(layout: &mut Layout, id: &str, sections: &BTreeMap<&str, (&str, Vec<&str>)>) {
    let (_, lines) = sections.get(id).unwrap_or_else(|| panic!("there is no [{id}]"));
    for line in lines {
        if let Some(size) = line.strip_prefix("= ") {
            let (name, sources) = size.split_once(": ").unwrap_or_else(|| panic!("{line}: no `: `"));
            let sources = sources.split_whitespace().map(str::to_owned).collect();
            layout.sizes.push(Size { name: name.to_owned(), sources });
            continue;
        }
        let mut words = line.split_whitespace();
        let (path, kind) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let arguments: Vec<&str> = words.collect();
        match (path, kind.strip_prefix('@')) {
            (".", Some(other)) => fill(layout, other, sections),
            (path, Some(alternatives)) => {
                let alternatives: Vec<String> = alternatives.split('|').map(str::to_owned).collect();
                assert!(alternatives.iter().all(|id| sections.contains_key(id.as_str())), "{line}: no such fragment");
                let include = Include { alternatives, shared: arguments.iter().map(|s| (*s).to_owned()).collect() };
                expand(path).iter().for_each(|path| layout.root.at(path).include = Some(include.clone()));
            }
            (path, None) => expand(path).iter().for_each(|path| add(layout.root.at(path), kind, &arguments)),
        }
    }
}

/// Adds the tensors of a layer.
fn add(node: &mut Node, kind: &str, arguments: &[&str]) {
    let dims: Vec<Dim> = arguments.iter().map(|word| dim(word)).collect();
    let mut tensor = |name: &str, dims: &[Dim]| node.at(name).tensor = Some(dims.to_vec());
    match (kind, dims.as_slice()) {
        ("any", []) => node.any = true,
        ("tensor", dims) => node.tensor = Some(dims.to_vec()),
        ("matrix", [_, _]) | ("scale", [_]) => tensor("weight", &dims),
        ("linear", [out, _]) | ("norm", [out]) => {
            tensor("weight", &dims);
            tensor("bias", std::slice::from_ref(out));
        }
        ("kernel", [out, inputs, side]) => tensor("weight", &[out, inputs, side, side].map(Dim::clone)),
        ("conv", [out, inputs, side]) => {
            tensor("weight", &[out, inputs, side, side].map(Dim::clone));
            tensor("bias", std::slice::from_ref(out));
        }
        ("batchnorm", [_]) => {
            ["weight", "bias", "running_mean", "running_var"].iter().for_each(|name| tensor(name, &dims));
            tensor("num_batches_tracked?", &[]);
        }
        _ => panic!("no such layer: {kind} {}", arguments.join(" ")),
    }
}

fn dim(word: &str) -> Dim {
    let letter = word.trim_start_matches(|c: char| c.is_ascii_digit());
    let number = word[..word.len() - letter.len()].parse();
    match (letter, number) {
        ("_", _) => Dim::Any,
        ("", Ok(number)) => Dim::Fixed(number),
        (letter, number) => Dim::Times(number.unwrap_or(1), letter.to_owned()),
    }
}

/// Expands braces: `a.{b,c}` becomes `a.b` and `a.c`.
fn expand(path: &str) -> Vec<String> {
    let Some((before, rest)) = path.split_once('{') else { return vec![path.to_owned()] };
    let (choices, after) = rest.split_once('}').unwrap_or_else(|| panic!("{path}: no closing brace"));
    choices.split(',').flat_map(|choice| expand(&format!("{before}{choice}{after}"))).collect()
}

impl Node {
    /// Checks that a place with a fragment, or with `any`, has nothing else.
    fn check(&self, layout: &str) {
        let alone = self.children.is_empty() && self.tensor.is_none();
        assert!(alone || (self.include.is_none() && !self.any), "[{layout}]: something stands beside a fragment");
        self.children.iter().for_each(|(_, child)| child.check(layout));
    }

    /// Returns the node at `path` below this one, which is added if it is missing.
    fn at(&mut self, path: &str) -> &mut Self {
        path.split('.').filter(|part| !part.is_empty()).fold(self, |node, part| {
            let name = part.trim_end_matches('?');
            let segment = match name {
                "#" => Segment::Index,
                "%" => Segment::Sparse,
                name => Segment::Name(name.to_owned()),
            };
            let known = node.children.iter().position(|(other, _)| *other == segment);
            let at = known.unwrap_or_else(|| {
                node.children.push((segment, Self::default()));
                node.children.len() - 1
            });
            let child = &mut node.children[at].1;
            child.optional |= part.ends_with('?');
            child
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_layer() {
        let layouts = parse(&["[a] A layout\n= width: x.weight[0]\n. @b\nx.{y,z.0} linear 3D _\n[b]\nhead?.# norm D"]);
        let a = &layouts["a"];
        assert_eq!((a.title.as_str(), a.sizes[0].name.as_str()), ("A layout", "width"));
        let mut root = a.root.clone();
        assert_eq!(root.at("x.z.0.weight").tensor, Some(vec![Dim::Times(3, "D".into()), Dim::Any]));
        assert_eq!(root.at("x.y.bias").tensor, Some(vec![Dim::Times(3, "D".into())]));
        assert!(root.at("head").optional && !root.at("x").optional);
        assert_eq!(root.at("head.#.bias").tensor, Some(vec![Dim::Times(1, "D".into())]));
        assert!(layouts["b"].title.is_empty());
    }
}
