//! `vlmdiff models inspect`

use std::{collections::BTreeMap, fs};

use anyhow::Result;
use clap::Args;
use serde_json::{Value, json};

use super::{DIFFERENT, Format, input, locate, size};
use crate::{
    cli::{
        EXIT_DONE,
        text::{count, print, print_exactly},
    },
    models::{
        architecture::{Part, Recognised},
        checkpoint::Checkpoint,
    },
};

/// The maximum number of lines of names without `--keys`.
const LINES: usize = 40;

/// Show the tensors of a file of weights, and the architecture that they fit.
#[derive(Args)]
#[command(after_help = "\
Examples:
  vlmdiff models inspect v1-5-pruned.ckpt
  vlmdiff models inspect dino-vits8 --keys
  vlmdiff models inspect downloads/model.safetensors.index.json --format json")]
pub(super) struct Inspect {
    /// A file, a folder in the Hugging Face layout, a name of `vlmdiff models list`, or ORG/NAME[/FILE] that was
    /// fetched.
    file: String,
    /// Print every name; otherwise names that differ only in numbers share a line.
    #[arg(long)]
    keys: bool,
    /// The output format.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

impl Inspect {
    pub(super) fn run(self) -> Result<u8> {
        let whole = Checkpoint::open(locate(&self.file)?).map_err(input)?;
        let weights = whole.clone().state_dict();
        let found = weights.recognise();
        let around = Some(whole.recognise()).filter(|around| weights.len() < whole.len() && !around.parts.is_empty());
        match self.format {
            Format::Json => {
                print_exactly(serde_json::to_string_pretty(&object(&whole, &weights, &found, around.as_ref()))?)?
            }
            Format::Text => {
                print(whole.path().display())?;
                facts(&whole, &weights)?;
                around.iter().flat_map(|around| &around.parts).try_for_each(|part| row("around them", part))?;
                say(&found)?;
                names(&weights, self.keys)?;
            }
        }
        Ok(EXIT_DONE)
    }
}

fn row(what: &str, value: impl std::fmt::Display) -> Result<()> {
    Ok(print(format!("{what:12}  {value}"))?)
}

fn bytes(checkpoint: &Checkpoint) -> u64 {
    let files = Checkpoint::files(checkpoint.path());
    files.iter().filter_map(|file| Some(fs::metadata(file).ok()?.len())).sum()
}

/// Returns the number of elements of all tensors, and the number of tensors by type.
fn totals(checkpoint: &Checkpoint) -> (i64, BTreeMap<String, u64>) {
    let elements =
        checkpoint.names().filter_map(|name| checkpoint.shape(name)).map(|shape| shape.iter().product::<i64>());
    let mut types = BTreeMap::new();
    checkpoint
        .names()
        .filter_map(|name| checkpoint.dtype(name))
        .for_each(|dtype| *types.entry(dtype).or_default() += 1);
    (elements.fold(0, i64::saturating_add), types)
}

fn facts(whole: &Checkpoint, weights: &Checkpoint) -> Result<()> {
    row("format", format!("{}, {}", whole.format(), size(bytes(whole))))?;
    let beside = whole.len() - weights.len();
    let beside = if beside == 0 { String::new() } else { format!(", and {beside} beside them") };
    let (parameters, types) = totals(weights);
    let types: Vec<String> = match types.len() {
        1 => types.into_keys().collect(),
        _ => types.into_iter().map(|(dtype, tensors)| format!("{tensors} {dtype}")).collect(),
    };
    let tensors = count(weights.len() as u64, "tensor");
    row("holds", format!("{tensors} with {} parameters ({}){beside}", thousands(parameters), types.join(", ")))?;
    let mut metadata: Vec<_> = whole.metadata().iter().collect();
    metadata.sort();
    metadata.into_iter().try_for_each(|(key, value)| row("metadata", format!("{key} = {value:.200}")))
}

fn say(found: &Recognised) -> Result<()> {
    fn tell(part: &Part, depth: usize) -> Result<()> {
        row(if depth == 0 { "architecture" } else { "" }, format!("{}{part}", "  ".repeat(depth)))?;
        part.parts.iter().try_for_each(|part| tell(part, depth + 1))
    }
    found.parts.iter().try_for_each(|part| tell(part, 0))?;
    if !found.rest.is_empty() {
        let first = found.rest.iter().take(DIFFERENT).map(String::as_str).collect::<Vec<_>>().join(", ");
        let more = found.rest.len().saturating_sub(DIFFERENT);
        let more = if more == 0 { String::new() } else { format!(" and {more} more") };
        row("", format!("and {} that belong to none: {first}{more}", count(found.rest.len() as u64, "tensor")))?;
    }
    if found.parts.is_empty() {
        row("architecture", "none known")?;
    }
    match &found.nearest {
        Some(near) => {
            row("nearest", format!("{}, of which {} fit", near.titles(), count(near.matched as u64, "tensor")))?;
            row("", near.mismatch.listed(DIFFERENT))
        }
        None => Ok(()),
    }
}

/// Prints the names with their shapes and types.
fn names(weights: &Checkpoint, all: bool) -> Result<()> {
    let lines = if all { each(weights) } else { together(weights) };
    let shown = if all { lines.len() } else { lines.len().min(LINES) };
    print("")?;
    let widths = [0, 1].map(|column| lines[..shown].iter().map(|line| line[column].chars().count()).max().unwrap_or(0));
    for [name, shape, dtype, times] in &lines[..shown] {
        let line = format!("{name:0$}  {shape:1$}  {dtype:8} {times}", widths[0], widths[1]);
        print(line.trim_end())?;
    }
    let more = lines.len() - shown;
    let _: () = if more > 0 {
        print(format!("and {more} more lines; --keys prints every name"))?
    };
    Ok(())
}

fn line(weights: &Checkpoint, name: &str) -> [String; 4] {
    let shape = format!("{:?}", weights.shape(name).unwrap_or_default());
    [name.to_owned(), shape, weights.dtype(name).unwrap_or_default(), String::new()]
}

fn each(weights: &Checkpoint) -> Vec<[String; 4]> {
    weights.names().map(|name| line(weights, name)).collect()
}

/// Returns one line for all names with the same words, shape and type; differing numbers are shown as `#`.
fn together(weights: &Checkpoint) -> Vec<[String; 4]> {
    let mut groups: Vec<([String; 4], u64)> = Vec::new();
    let mut places = BTreeMap::new();
    for name in weights.names() {
        let mut line = line(weights, name);
        let number = |part: &str| part.parse::<usize>().is_ok();
        let words: Vec<&str> = name.split('.').map(|part| if number(part) { "#" } else { part }).collect();
        let place = *places.entry((words.join("."), line[1].clone(), line[2].clone())).or_insert(groups.len());
        match groups.get_mut(place) {
            None => groups.push((line, 1)),
            Some((first, times)) => {
                let merged = first[0].split('.').zip(name.split('.')).map(|(a, b)| if a == b { a } else { "#" });
                line[0] = merged.collect::<Vec<_>>().join(".");
                (*first, *times) = (line, *times + 1);
            }
        }
    }
    let times = |times: u64| if times == 1 { String::new() } else { format!("x {times}") };
    groups.into_iter().map(|([name, shape, dtype, _], n)| [name, shape, dtype, times(n)]).collect()
}

/// Formats a number with commas, such as `21,670,272`.
fn thousands(number: i64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn object(whole: &Checkpoint, weights: &Checkpoint, found: &Recognised, around: Option<&Recognised>) -> Value {
    let keys =
        weights.names().map(|name| json!({ "name": name, "shape": weights.shape(name), "dtype": weights.dtype(name) }));
    let (parameters, types) = totals(weights);
    let nearest = found.nearest.as_ref().map(|near| {
        json!({
            "layout": near.layout, "title": near.title, "also": near.also.iter().map(|(layout, _)| layout).collect::<Vec<_>>(),
            "matched": near.matched, "missing": near.mismatch.missing,
            "unexpected": near.mismatch.unexpected,
            "shapes": near.mismatch.shapes.iter().map(|(name, file, model)| json!([name, file, model])).collect::<Vec<_>>(),
        })
    });
    let mut metadata: Vec<_> = whole.metadata().iter().collect();
    metadata.sort();
    json!({
        "path": whole.path(),
        "format": whole.format().to_string(),
        "bytes": bytes(whole),
        "tensors": weights.len(),
        "parameters": parameters,
        "dtypes": types,
        "metadata": metadata.into_iter().collect::<BTreeMap<_, _>>(),
        "architecture": found.parts,
        "rest": found.rest,
        "nearest": nearest,
        "around": around.map(|around| &around.parts),
        "keys": keys.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_numbers_are_written_with_commas() {
        assert_eq!([0, 999, 1000, 21_670_272].map(thousands), ["0", "999", "1,000", "21,670,272"]);
    }
}
