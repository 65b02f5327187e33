//! Captions beside their images: the longest, the shortest and the repeated.

use std::collections::{BTreeMap, HashMap};

use arrow::{array::AsArray, compute::cast, datatypes::DataType};
use indicatif::HumanCount;
use minijinja::{Value, context};

use super::{data::Source, pictures::thumbnails};
use crate::{
    engine::{Result, store::Manifest},
    tables::{Role, captions::CAPTION},
};

/// The number of captions of each kind.
const SHOWN: usize = 4;

/// A caption and the images that have it.
#[derive(Debug, PartialEq)]
struct Written<'a> {
    text: &'a str,
    words: usize,
    /// The first image in the order of ids.
    id: &'a str,
    images: usize,
}

/// The captions of a kind.
#[derive(Debug, PartialEq)]
struct Kind<'a> {
    name: &'static str,
    captions: Vec<Written<'a>>,
}

/// Returns a section for each table of captions.
pub(super) fn sections(source: &Source) -> Result<Vec<Value>> {
    source.of_role(Role::Captions).map(|table| section(source, table)).collect()
}

fn section(source: &Source, table: &Manifest) -> Result<Value> {
    let (ids, texts) = source.by_id(table, CAPTION)?;
    let texts = cast(&texts, &DataType::Utf8)?;
    let texts = texts.as_string::<i32>();
    let rows: Vec<(&str, &str)> =
        ids.iter().map(String::as_str).zip(texts.iter().map(Option::unwrap_or_default)).collect();
    let (summary, kinds) = (summary(&rows), kinds(&rows));
    let shown = kinds.iter().flat_map(|kind| &kind.captions).map(|written| written.id);
    let pictures = match source.table(Role::Images, &[Some(table)]) {
        Some(images) => thumbnails(source, images, shown)?,
        None => HashMap::new(),
    };
    let card = |written: &Written<'_>| {
        context! {
            text => written.text,
            words => written.words,
            id => written.id,
            images => written.images,
            picture => pictures.get(written.id),
        }
    };
    let kinds: Vec<Value> = kinds
        .iter()
        .map(|kind| context! { name => kind.name, captions => kind.captions.iter().map(card).collect::<Vec<_>>() })
        .collect();
    Ok(context! { table => table.variant.name(&table.table), summary, kinds })
}

/// Returns the captions in words: their number, and how many differ or are empty.
fn summary(rows: &[(&str, &str)]) -> String {
    let mut distinct: Vec<&str> = rows.iter().map(|(_, text)| *text).collect();
    distinct.sort_unstable();
    distinct.dedup();
    let empty = rows.iter().filter(|(_, text)| text.trim().is_empty()).count();
    let words: usize = rows.iter().map(|(_, text)| text.split_whitespace().count()).sum();
    let count = |n: usize| HumanCount(n as u64);
    let mean = words as f64 / (rows.len() - empty).max(1) as f64;
    let blank = if empty > 0 { format!(", {} empty", count(empty)) } else { String::new() };
    format!("{} captions, {} different{blank}; {mean:.0} words on average", count(rows.len()), count(distinct.len()))
}

/// Returns the longest captions, the shortest, and those of several images.
fn kinds<'a>(rows: &[(&'a str, &'a str)]) -> Vec<Kind<'a>> {
    let mut by_text: BTreeMap<&str, Written<'a>> = BTreeMap::new();
    for (id, text) in rows {
        let first = Written { text, words: text.split_whitespace().count(), id, images: 0 };
        by_text.entry(text).or_insert(first).images += 1;
    }
    let mut written: Vec<Written<'_>> = by_text.into_values().collect();
    let mut repeated: Vec<Written<'_>> = written.extract_if(.., |written| written.images > 1).collect();
    repeated.sort_by_key(|written| std::cmp::Reverse(written.images));
    repeated.truncate(SHOWN);
    written.sort_by_key(|written| std::cmp::Reverse((written.words, written.text.len())));
    let rest = written.split_off(written.len().min(SHOWN));
    let shortest = rest.into_iter().rev().take(SHOWN).collect();
    let kinds = [("longest", written), ("shortest", shortest), ("repeated", repeated)];
    kinds.into_iter().map(|(name, captions)| Kind { name, captions }).filter(|kind| !kind.captions.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn longest_shortest_and_repeated_captions_are_chosen() {
        let texts = ["a b c", "a", "", "", "a b c d e", "a b", "x y z w", "e f g h i j", "k l m n o p q", "a b"];
        let ids: Vec<String> = (0..texts.len()).map(|i| i.to_string()).collect();
        let rows: Vec<(&str, &str)> = ids.iter().map(String::as_str).zip(texts).collect();
        let chosen: Vec<(&str, Vec<(&str, usize)>)> = kinds(&rows)
            .iter()
            .map(|kind| (kind.name, kind.captions.iter().map(|one| (one.id, one.images)).collect()))
            .collect();
        assert_eq!(
            chosen,
            [
                ("longest", vec![("8", 1), ("7", 1), ("4", 1), ("6", 1)]),
                ("shortest", vec![("1", 1), ("0", 1)]),
                ("repeated", vec![("2", 2), ("5", 2)]),
            ]
        );
        assert_eq!(summary(&rows), "10 captions, 8 different, 2 empty; 4 words on average");
        assert_eq!(kinds(&[]), []);
        assert_eq!(summary(&[]), "0 captions, 0 different; 0 words on average");
    }
}
