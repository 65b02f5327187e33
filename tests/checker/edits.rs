//! Random edits as users make them: of the files that a pipeline reads, and of the pipeline itself.

use std::{fs, path::Path};

use rand::{Rng, RngExt, seq::IndexedRandom};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use super::{
    pipeline::{Axis, Filter, Makes, Pipeline, Stage, Table},
    sources::{Class, File, Manner, Picture, Row, Sources},
};

/// The row that every file keeps, so that the types of its columns can be guessed.
const FIRST: &str = "k00";
const DEFAULTS: [&str; 4] = ["nothing", "a {class}", "", "é: 'x' # y"];
const MOST_ROWS: usize = 10;
const MOST_TABLES: usize = 11;

pub(super) fn one<T: Clone>(random: &mut ChaCha8Rng, from: &[T]) -> T {
    from.choose(random).unwrap().clone()
}

fn chance(random: &mut ChaCha8Rng, percent: u32) -> bool {
    random.random_range(0..100) < percent
}

fn number(random: &mut ChaCha8Rng) -> Value {
    if chance(random, 25) { Value::Null } else { json!(random.random_range(-3..9)) }
}

/// Returns a list of few small numbers and nulls, or null.
fn list(random: &mut ChaCha8Rng) -> Value {
    let mut item = |_| if chance(random, 40) { Value::Null } else { json!(random.random_range(0..2)) };
    let items: Vec<Value> = (0..3).map(&mut item).collect();
    match random.random_range(0..5) {
        0 => Value::Null,
        length => json!(items[..length - 1]),
    }
}

fn text(random: &mut ChaCha8Rng) -> Value {
    let texts = ["alpha", "beta, \"quoted\"", "line\nbreak", "é日", "null", "0", " padded "];
    if chance(random, 20) { Value::Null } else { json!(one(random, &texts)) }
}

fn words(random: &mut ChaCha8Rng) -> Value {
    let words = [json!("w"), json!(""), json!("null"), Value::Null];
    match random.random_range(0..5) {
        0 => Value::Null,
        length => (1..length).map(|_| one(random, &words)).collect(),
    }
}

/// Returns a value for a column of a file.
fn value(file: File, column: &str, random: &mut ChaCha8Rng) -> Value {
    match column {
        "n" => number(random),
        "x" if chance(random, 25) => Value::Null,
        "x" => json!(f64::from(random.random_range(-8..8)) / 4.),
        "t" if file == File::Json && chance(random, 20) => json!(""),
        "t" => text(random),
        "flag" => one(random, &[Value::Null, json!(true), json!(false)]),
        "words" => words(random),
        "at" if chance(random, 30) => Value::Null,
        "at" => object([("p", number(random)), ("q", text(random))]),
        "votes" | "grades" => list(random),
        "part" if chance(random, 30) => Value::Null,
        "part" => object([("a", number(random)), ("words", words(random))]),
        _ => one(random, &[Value::Null, json!(""), json!("00"), json!("0000"), json!("ff00")]),
    }
}

fn object<const N: usize>(members: [(&str, Value); N]) -> Value {
    members.into_iter().filter(|(_, v)| !v.is_null()).map(|(name, value)| (name.to_owned(), value)).collect()
}

fn record(file: File, id: &str, random: &mut ChaCha8Rng) -> Row {
    let mut row = Row::from([("id".to_owned(), json!(id))]);
    for column in file.columns() {
        // The first row has a value of the type of each column that may be null in other rows.
        let value = match (*column, id) {
            ("words", FIRST) => json!(["w"]),
            ("at", FIRST) => json!({ "p": 1, "q": "x" }),
            _ => value(file, column, random),
        };
        row.extend((!value.is_null()).then(|| ((*column).to_owned(), value)));
    }
    row
}

fn new_id(random: &mut ChaCha8Rng, rows: &[Row]) -> String {
    loop {
        let id = format!("k{:02}", random.random_range(0..30));
        if rows.iter().all(|row| row["id"] != id.as_str()) {
            return id;
        }
    }
}

fn picture(random: &mut ChaCha8Rng) -> Picture {
    let captions = ["a red tile", "a green gear", "é", ""];
    Picture {
        colour: [random.random_range(0..4), 7, random.random_range(0..4)],
        caption: chance(random, 60).then(|| one(random, &captions).to_owned()),
        is_broken: false,
        left: chance(random, 50),
    }
}

/// Returns the initial sources.
pub(super) fn sources(random: &mut ChaCha8Rng) -> Sources {
    let mut sources = Sources::default();
    for file in File::ALL {
        let mut rows = vec![record(file, FIRST, random)];
        for _ in 0..random.random_range(2..7) {
            let id = new_id(random, &rows);
            rows.push(record(file, &id, random));
        }
        sources.records.insert(file, rows);
    }
    for class in ["gear", "tile"] {
        let paths = ["train/good/0.png", "train/good/1.png", "test/good/0.png", "test/hole/0.png"];
        let pictures = paths.iter().map(|path| ((*path).to_owned(), picture(random))).collect();
        sources.classes.insert(class.into(), Class { pictures, has_masks: class == "gear" });
    }
    sources
}

/// Edits a file that pipelines read. Returns a description of the edit.
pub(super) fn edit_sources(sources: &mut Sources, folder: &Path, random: &mut ChaCha8Rng) -> String {
    match random.random_range(0..10) {
        0..6 => edit_records(sources, folder, random),
        6..9 => edit_pictures(sources, folder, random),
        _ => {
            sources.tool = random.random_range(0..4);
            sources.write_tool(folder);
            format!("tool.sh says {}", sources.tool)
        }
    }
}

fn edit_records(sources: &mut Sources, folder: &Path, random: &mut ChaCha8Rng) -> String {
    let file = one(random, &File::ALL);
    let manner = one(random, &[Manner::InPlace, Manner::Replaced, Manner::WithOldTime]);
    let rows = sources.records.get_mut(&file).unwrap();
    let at = random.random_range(0..rows.len());
    let what = match random.random_range(0..12) {
        0 | 1 if rows.len() < MOST_ROWS => {
            let id = new_id(random, rows);
            rows.insert(random.random_range(0..=rows.len()), record(file, &id, random));
            format!("add {id}")
        }
        2 if rows[at]["id"] != FIRST => format!("remove {}", rows.remove(at)["id"]),
        3 if rows[at]["id"] != FIRST => {
            let id = new_id(random, rows);
            let before = rows[at].insert("id".into(), json!(id));
            format!("rename {} to {id}", before.unwrap())
        }
        4 => {
            let other = random.random_range(0..rows.len());
            rows.swap(at, other);
            format!("swap the lines {at} and {other}")
        }
        5 if rows.len() > 2 => {
            // The values of two rows are swapped.
            let (a, b) = (rows.len() - 1, random.random_range(0..rows.len() - 1));
            let [first, second] = [rows[a]["id"].clone(), rows[b]["id"].clone()];
            if first != FIRST && second != FIRST {
                rows[a].insert("id".into(), second.clone());
                rows[b].insert("id".into(), first.clone());
            }
            format!("swap the ids {first} and {second}")
        }
        6 | 9 if file == File::Parquet => {
            // Nulls and zeros in a list are swapped.
            let column = one(random, &["votes", "grades"]);
            let turned = |item: &Value| if item.is_null() { json!(0) } else { Value::Null };
            if let Some(Value::Array(items)) = rows[at].get_mut(column) {
                *items = items.iter().map(turned).collect();
            }
            format!("turn nulls and zeros of {column} of {}", rows[at]["id"])
        }
        7 => "touch".into(),
        8 if chance(random, 15) => {
            let mut twice = rows[at].clone();
            twice.insert("n".into(), json!(5));
            rows.push(twice);
            format!("list {} twice", rows[at]["id"])
        }
        _ => {
            let column = one(random, file.columns());
            let value = match (column, rows[at]["id"] == FIRST) {
                ("words" | "at", true) => rows[at][column].clone(),
                _ => value(file, column, random),
            };
            let said = format!("set {column} of {} to {value}", rows[at]["id"]);
            match value {
                Value::Null => drop(rows[at].remove(column)),
                value => drop(rows[at].insert(column.into(), value)),
            }
            said
        }
    };
    // An id that occurs twice stays for one or two steps.
    if !what.starts_with("list") && chance(random, 60) {
        list_once(rows);
    }
    sources.write_records(file, folder, manner);
    format!("{}: {what} ({manner:?})", file.name())
}

fn edit_pictures(sources: &mut Sources, folder: &Path, random: &mut ChaCha8Rng) -> String {
    let class = one(random, &["gear", "tile"]).to_owned();
    let manner = one(random, &[Manner::InPlace, Manner::Replaced, Manner::WithOldTime]);
    let paths: Vec<String> = sources.classes[&class].pictures.keys().cloned().collect();
    let (path, other) = (one(random, &paths), one(random, &paths));
    let found = sources.classes.get_mut(&class).unwrap();
    let what = match random.random_range(0..11) {
        0 | 1 if paths.len() < MOST_ROWS => {
            let kind = one(random, &["train/good", "test/good", "test/hole", "test/crack"]);
            let new = format!("{kind}/{}.png", random.random_range(0..6));
            found.pictures.insert(new.clone(), picture(random));
            sources.write_picture(&class, &new, folder, manner);
            format!("write {new}")
        }
        2 if path != "train/good/0.png" => {
            found.pictures.remove(&path);
            Sources::erase_picture(&class, &path, folder);
            format!("remove {path}")
        }
        3 if path != "train/good/0.png" => {
            let picture = found.pictures.remove(&path).unwrap();
            let new = path.replace(".png", "9.png");
            // The file is renamed on the disk, so that it keeps its times and its inode.
            let class_folder = folder.join("photos").join(&class);
            fs::rename(class_folder.join(&path), class_folder.join(&new)).unwrap();
            let masks =
                super::sources::mask_path(&path).zip(super::sources::mask_path(&new)).filter(|_| found.has_masks);
            masks.into_iter().for_each(|(a, b)| fs::rename(class_folder.join(a), class_folder.join(b)).unwrap());
            found.pictures.insert(new.clone(), picture);
            format!("rename {path} to {new}")
        }
        4 | 5 if path != other => {
            let [a, b] = [&path, &other].map(|path| found.pictures[path].clone());
            let class_folder = folder.join("photos").join(&class);
            let [a_file, b_file, between] = [&path, &other, "between"].map(|path| class_folder.join(path));
            for (from, to) in [(&a_file, &between), (&b_file, &a_file), (&between, &b_file)] {
                fs::rename(from, to).unwrap();
            }
            // Captions and masks stay with the names.
            let swapped = |file: &Picture, name: &Picture| Picture {
                colour: file.colour,
                is_broken: file.is_broken,
                ..name.clone()
            };
            found.pictures.extend([(path.clone(), swapped(&b, &a)), (other.clone(), swapped(&a, &b))]);
            format!("swap {path} and {other}")
        }
        6 => {
            let picture = found.pictures.get_mut(&path).unwrap();
            picture.caption = chance(random, 70).then(|| format!("caption {}", random.random_range(0..4)));
            format!("say {:?} of {path}", picture.caption)
        }
        7 if chance(random, 40) => {
            found.pictures.get_mut(&path).unwrap().is_broken ^= true;
            sources.write_picture(&class, &path, folder, manner);
            format!("break or mend {path}")
        }
        8 => {
            found.has_masks ^= true;
            paths.iter().for_each(|path| sources.write_picture(&class, path, folder, manner));
            "masks come or go".into()
        }
        9 => {
            sources.write_picture(&class, &path, folder, manner);
            format!("touch {path}")
        }
        _ => {
            let picture = found.pictures.get_mut(&path).unwrap();
            // A few bits of a colour are flipped, so that the file keeps its size.
            picture.colour[random.random_range(0..3)] ^= 1 << random.random_range(0..2);
            picture.left ^= chance(random, 50);
            sources.write_picture(&class, &path, folder, manner);
            format!("change {path}")
        }
    };
    sources.write_captions(&class, folder);
    format!("photos/{class}: {what} ({manner:?})")
}

/// Repairs the sources: every picture can be decoded, and every id occurs once in its file.
pub(super) fn mend(sources: &mut Sources, folder: &Path) {
    sources.records.values_mut().for_each(list_once);
    let pictures = |class: &mut Class| class.pictures.values_mut().for_each(|picture| picture.is_broken = false);
    sources.classes.values_mut().for_each(pictures);
    sources.write(folder);
}

/// Keeps the first row of each id.
fn list_once(rows: &mut Vec<Row>) {
    let mut seen = Vec::new();
    rows.retain(|row| {
        let is_new = !seen.contains(&row["id"]);
        seen.push(row["id"].clone());
        is_new
    });
}

/// Returns the initial pipeline.
pub(super) fn pipeline(name: &str, random: &mut ChaCha8Rng) -> Pipeline {
    let mut pipeline = Pipeline {
        name: name.into(),
        tables: vec![
            Table::new("a", Stage::Read(File::Csv), &[]),
            Table::new("c", Stage::Read(File::Parquet), &[]),
            Table::new("images", Stage::Ingest { size: 16 }, &[]),
            Table::new("captions", Stage::Caption { default: "nothing".into() }, &["images"]),
            Table::new("parts", Stage::Parts, &["c"]),
            Table::new("scaled", Stage::Scale { by: 2 }, &["a"]),
            Table::new("kept", Stage::Keep { above: 1, makes: Makes::Rows }, &["a"]),
            Table::new("left", Stage::Left, &["a", "kept"]),
        ],
        sweep: Vec::new(),
    };
    for _ in 0..4 {
        edit_pipeline(&mut pipeline, random);
    }
    pipeline
}

/// Edits a pipeline so that it stays valid. Returns a description of the edit.
pub(super) fn edit_pipeline(pipeline: &mut Pipeline, random: &mut ChaCha8Rng) -> String {
    for _ in 0..100 {
        let mut edited = pipeline.clone();
        let what = try_edit(&mut edited, random);
        let names: Vec<&str> = edited.sweep.iter().filter_map(|a| Some(a.values[0].setting()?.0)).collect();
        let unique = names.iter().all(|name| names.iter().filter(|other| *other == name).count() == 1);
        if edited != *pipeline && edited.is_valid() && unique && !edited.tables.is_empty() {
            *pipeline = edited;
            return format!("{}: {what}", pipeline.file());
        }
    }
    "nothing".into()
}

fn try_edit(pipeline: &mut Pipeline, random: &mut ChaCha8Rng) -> String {
    let kept = pipeline.tables.iter().position(|table| matches!(table.stage, Stage::Keep { .. }));
    // A table that may lose its ids is preferred, because tables below then read it in another way.
    let at = match kept.filter(|_| chance(random, 25)) {
        Some(at) => at,
        None => random.random_range(0..pipeline.tables.len()),
    };
    let name = pipeline.tables[at].name.clone();
    let names: Vec<String> = pipeline.tables.iter().map(|table| table.name.clone()).collect();
    let is_read = pipeline.tables.iter().any(|table| table.from.contains(&name));
    let table = &mut pipeline.tables[at];
    match random.random_range(0..16) {
        0..3 => {
            table.stage = changed(&table.stage, random);
            format!("{name} is {:?}", table.stage)
        }
        3 | 4 => {
            table.filter = chance(random, 70).then(|| filter(random));
            format!("{name} where {:?}", table.filter)
        }
        5 if at > 0 => {
            pipeline.tables.swap(at - 1, at);
            format!("{name} goes up")
        }
        6 => {
            table.is_turned ^= table.from.len() > 1;
            format!("{name} is turned")
        }
        7 => {
            let new = one(random, &["p", "q", "r", "s", "u", "images", "v"]).to_owned();
            let renamed = |old: &mut String| {
                if *old == name {
                    old.clone_from(&new)
                }
            };
            pipeline.tables.iter_mut().for_each(|table| {
                renamed(&mut table.name);
                table.from.iter_mut().for_each(renamed);
            });
            pipeline.sweep.iter_mut().for_each(|axis| renamed(&mut axis.table));
            format!("{name} is called {new}")
        }
        8 => {
            let inputs = table.from.len();
            if inputs > 0 {
                table.from[random.random_range(0..inputs)] = one(random, &names);
            }
            format!("{name} reads {:?}", table.from)
        }
        9 if !is_read => {
            pipeline.tables.remove(at);
            pipeline.sweep.retain(|axis| axis.table != name);
            format!("{name} goes")
        }
        10..13 if names.len() < MOST_TABLES => {
            let stage = stage(random);
            let from = stage.ports().iter().map(|_| one(random, &names)).collect();
            let name = one(random, &["d", "e", "f", "g", "h", "images", "captions", "a", "c"]).to_owned();
            let table = Table { name: name.clone(), stage, from, is_turned: false, filter: None, skips: false };
            let what = format!("new {name}: {:?} from {:?}", table.stage, table.from);
            pipeline.tables.insert(random.random_range(0..=pipeline.tables.len()), table);
            what
        }
        13 => {
            if matches!(table.stage, Stage::Ingest { .. }) {
                table.skips ^= true;
            }
            format!("{name} skips or not")
        }
        14 if !pipeline.sweep.is_empty() && chance(random, 60) => {
            let which = random.random_range(0..pipeline.sweep.len());
            let axis = &mut pipeline.sweep[which];
            match random.random_range(0..3) {
                0 => drop(pipeline.sweep.remove(which)),
                1 if axis.values.len() > 1 => drop(axis.values.pop()),
                _ => {
                    let new = changed(&axis.values[0], random);
                    if !axis.values.contains(&new) && axis.values.len() < 3 {
                        axis.values.insert(0, new);
                    }
                }
            }
            format!("sweep {:?}", pipeline.sweep)
        }
        _ => {
            let mut values = vec![table.stage.clone()];
            for _ in 0..2 {
                let new = changed(&table.stage, random);
                if !values.contains(&new) {
                    values.push(new);
                }
            }
            if table.stage.setting().is_some() && values.len() > 1 {
                pipeline.sweep.push(Axis { table: name, values });
            }
            format!("sweep {:?}", pipeline.sweep)
        }
    }
}

fn filter(random: &mut ChaCha8Rng) -> Filter {
    let n = random.random_range(-1..5);
    let last = format!("k{:02}", random.random_range(5..30));
    one(random, &[Filter::Above(n), Filter::Null, Filter::Even, Filter::UpTo(last), Filter::Train, Filter::Captioned])
}

fn stage(random: &mut ChaCha8Rng) -> Stage {
    let above = random.random_range(-1..4);
    let stages = [
        Stage::Read(one(random, &File::ALL)),
        Stage::Ingest { size: 16 },
        Stage::Caption { default: "nothing".into() },
        Stage::Lengths,
        Stage::Parts,
        Stage::Scale { by: 3 },
        Stage::Add,
        Stage::Keep { above, makes: one(random, &[Makes::Rows, Makes::Table]) },
        Stage::Total,
        Stage::Against,
        Stage::Left,
        Stage::Copy,
        Stage::Pass,
    ];
    one(random, &stages)
}

/// Returns a stage with another parameter, or another stage that fits in the same place of the pipeline.
pub(super) fn changed(stage: &Stage, random: &mut ChaCha8Rng) -> Stage {
    match stage {
        Stage::Ingest { size } => Stage::Ingest { size: if *size == 16 { 32 } else { 16 } },
        Stage::Caption { .. } => Stage::Caption { default: one(random, &DEFAULTS).to_owned() },
        Stage::Scale { .. } => Stage::Scale { by: random.random_range(1..5) },
        Stage::Keep { above, makes } => match (chance(random, 50), makes) {
            (true, _) => Stage::Keep { above: random.random_range(-1..4), makes: *makes },
            (false, Makes::Rows) => Stage::Keep { above: *above, makes: Makes::Table },
            (false, _) => Stage::Keep { above: *above, makes: Makes::Rows },
        },
        Stage::Read(_) => Stage::Read(one(random, &File::ALL)),
        Stage::Copy | Stage::Pass => one(random, &[Stage::Copy, Stage::Pass]),
        Stage::Add | Stage::Left => one(random, &[Stage::Add, Stage::Left]),
        other => other.clone(),
    }
}

/// Returns a random number that chooses a file of the store, a moment or a seed.
pub(super) fn below(random: &mut ChaCha8Rng, end: u64) -> u64 {
    random.next_u64() % end.max(1)
}
