//! Observations of the program: its exit codes and messages, the rows of tables by SQL, and the number of rows that
//! its runs computed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write,
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::Duration,
};

use serde_json::Value;
use vlmdiff::engine::store::{Event, Logged};

use super::{
    pipeline::{Pipeline, Variant},
    sources::Row,
};
use crate::lab::Lab;

/// The end of a program.
#[derive(Debug)]
pub(super) struct Ended {
    /// The exit code; `None` if a signal ended the program.
    pub(super) code: Option<i32>,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

/// Waits for a program that is given `input`. A panic and an undeclared exit code are errors.
pub(super) fn ended(command: &mut Command, input: &str) -> Result<Ended, String> {
    let said = format!("{:?}", command.get_args().collect::<Vec<_>>());
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // A program that refuses its arguments may not read its input.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    end_of(child, &said)
}

/// A time limit that is longer than any command on tables of a few rows takes, even on a busy machine.
const LONGEST: Duration = Duration::from_secs(180);

/// Returns the end of a program that was started with pipes. A program that does not end is killed, which is an
/// error.
pub(super) fn end_of(child: Child, said: &str) -> Result<Ended, String> {
    let (done, is_done) = mpsc::channel::<()>();
    let id = child.id().to_string();
    let watch = std::thread::spawn(move || {
        let hangs = is_done.recv_timeout(LONGEST) == Err(mpsc::RecvTimeoutError::Timeout);
        if hangs {
            let _ = Command::new("kill").args(["-KILL", &id]).status();
        }
        hangs
    });
    let output = child.wait_with_output().unwrap();
    drop(done);
    if watch.join().unwrap() {
        return Err(format!("{said} does not end"));
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    checked(said, Ended { code: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) })
}

/// Returns the program with arguments. One thread is enough for tables of a few rows.
pub(super) fn command(lab: &Lab, arguments: &[&str]) -> Command {
    let mut command = lab.command(arguments);
    command.env("RAYON_NUM_THREADS", "1");
    command
}

/// Checks the end of a program. A panic, an undeclared exit code and a failure without a message are errors.
fn checked(said: &str, ended: Ended) -> Result<Ended, String> {
    let is_panic = ["panicked at", "RUST_BACKTRACE", "stack backtrace"].iter().any(|word| ended.stderr.contains(word));
    let is_code = ended.code.is_none_or(|code| [0, 1, 2, 3, 130].contains(&code));
    let is_said = ended.code.is_none_or(|code| code == 0 || code == 3 || !ended.stderr.trim().is_empty());
    match (is_panic, is_code, is_said) {
        (false, true, true) => Ok(ended),
        (true, ..) => Err(format!("{said} panicked: {}", ended.stderr)),
        (_, false, _) => Err(format!("{said} ended with code {:?}: {}", ended.code, ended.stderr)),
        _ => Err(format!("{said} failed without a word")),
    }
}

/// The identity of an instance of a table: the pipeline, the table and the swept values.
pub(super) type Place = (String, String, Variant);

/// Rows in a canonical order, each as text.
pub(super) type Content = Vec<String>;

/// Returns the content of rows. The columns of a swept table's axes are left out.
pub(super) fn content(rows: &[Row]) -> Content {
    let mut content: Content = rows.iter().map(|row| serde_json::to_string(row).unwrap()).collect();
    content.sort();
    content
}

/// Returns a picture's row in the form in which it is compared. The first and last value of pixels and mask are kept, as
/// each half of a picture has one value; the path is removed.
fn without_pixels(mut row: Row) -> Row {
    let Some(pixels) = row.remove("pixels") else { return row };
    let end = |values: &Value, at: usize| values[at].as_u64().unwrap();
    let last = |values: &Value| end(values, values.as_array().unwrap().len() - 1);
    row.extend([("first".to_owned(), end(&pixels, 0).into()), ("last".to_owned(), last(&pixels).into())]);
    if let Some(mask) = row.remove("mask") {
        row.extend([("left".to_owned(), (end(&mask, 0) > 0).into()), ("right".to_owned(), (last(&mask) > 0).into())]);
    }
    row.retain(|name, _| !["mask_grey", "uri"].contains(&name.as_str()));
    row
}

/// A table to query: the label of its rows, and its name in SQL.
pub(super) struct Wanted {
    pub(super) label: String,
    pub(super) name: String,
}

/// Queries tables in one process. `Ok(Err(_))` has the message of a refusal.
pub(super) fn ask(lab: &Lab, wanted: &[Wanted]) -> Result<Result<BTreeMap<String, Vec<Row>>, String>, String> {
    let mut rows: BTreeMap<String, Vec<Row>> = wanted.iter().map(|w| (w.label.clone(), Vec::new())).collect();
    if wanted.is_empty() {
        return Ok(Ok(rows));
    }
    let query = |w: &Wanted| format!("select '{}' as _of, * from {}", w.label, w.name);
    let queries: Vec<String> = wanted.iter().map(query).collect();
    let ended = ended(&mut command(lab, &["sql", "--format", "json"]), &queries.join(";\n"))?;
    if ended.code != Some(0) {
        return Ok(Err(ended.stderr));
    }
    for line in ended.stdout.lines() {
        let row: Value = serde_json::from_str(line).map_err(|e| format!("SQL wrote {line}: {e}"))?;
        let mut row = row_of(&row);
        let Some(Value::String(label)) = row.remove("_of") else { return Err(format!("SQL wrote {line}")) };
        rows.get_mut(&label).ok_or_else(|| format!("SQL wrote {line}"))?.push(without_pixels(row));
    }
    Ok(Ok(rows))
}

/// Returns a row of JSON without nulls; objects within it have sorted names.
fn row_of(value: &Value) -> Row {
    let members = value.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null());
    members.map(|(name, value)| (name.clone(), canonical(value))).collect()
}

/// Returns a value in a canonical form: objects without nulls and with sorted names. Nulls in lists stay.
pub(super) fn canonical(value: &Value) -> Value {
    match value {
        Value::Array(items) => items.iter().map(canonical).collect(),
        Value::Object(_) => row_of(value).into_iter().collect(),
        other => other.clone(),
    }
}

/// Splits the rows of a table into its instances by the columns of the axes.
pub(super) fn by_variant(rows: Vec<Row>, variants: &BTreeSet<Variant>) -> Result<BTreeMap<Variant, Content>, String> {
    let axes: BTreeSet<&String> = variants.iter().flatten().map(|(axis, _)| axis).collect();
    let mut split: BTreeMap<Variant, Vec<Row>> = variants.iter().map(|v| (v.clone(), Vec::new())).collect();
    for mut row in rows {
        let values: Variant = axes
            .iter()
            .filter_map(|axis| Some(((*axis).clone(), row.remove(*axis)?.as_str().unwrap_or_default().to_owned())))
            .collect();
        let same =
            |variant: &&Variant| variant.len() == values.len() && variant.iter().all(|value| values.contains(value));
        let variant = variants.iter().find(same).ok_or_else(|| format!("a row of no instance: {values:?} {row:?}"))?;
        split.get_mut(variant).unwrap().push(row);
    }
    Ok(split.into_iter().map(|(variant, rows)| (variant, content(&rows))).collect())
}

/// Returns the tables in SQL, with their swept values.
pub(super) fn published(lab: &Lab) -> Result<BTreeSet<Place>, String> {
    let folder = lab.path(".vlmdiff");
    if !folder.is_dir() {
        return Ok(BTreeSet::new());
    }
    let store = vlmdiff::engine::store::Store::open(&folder.to_string_lossy()).map_err(|e| e.to_string())?;
    let manifests = vlmdiff::query::manifests(&store).map_err(|e| e.to_string())?;
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let place = |(pipeline, manifest): (String, vlmdiff::engine::store::Manifest)| {
        let variant = manifest.variant.0.iter().map(|(axis, value)| (axis.clone(), text(value))).collect();
        (pipeline, manifest.table, variant)
    };
    Ok(manifests.into_iter().map(place).collect())
}

/// Returns the logs of runs in the store.
pub(super) fn logs(lab: &Lab) -> BTreeSet<String> {
    let Ok(entries) = fs::read_dir(lab.path(".vlmdiff/runs")) else { return BTreeSet::new() };
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).filter(|n| n.ends_with(".jsonl")).collect()
}

/// The number of rows that runs computed, by table; `None` for a table that was found fresh.
pub(super) type Computed = BTreeMap<String, Option<u64>>;

/// Returns the numbers of computed rows according to these logs.
pub(super) fn computed<'a>(lab: &Lab, logs: impl IntoIterator<Item = &'a String>) -> Computed {
    let mut computed = Computed::new();
    for log in logs {
        let text = fs::read_to_string(lab.path(".vlmdiff/runs").join(log)).unwrap_or_default();
        for logged in text.lines().filter_map(|line| serde_json::from_str::<Logged>(line).ok()) {
            match logged.event {
                Event::TableFresh { table, .. } => drop(computed.entry(table).or_default()),
                Event::TablePublished { table, computed: rows, .. } => {
                    let before = computed.entry(table).or_default();
                    *before = Some(before.unwrap_or(0) + rows);
                }
                _ => {}
            }
        }
    }
    computed
}

/// Returns a table's name in SQL.
pub(super) fn in_sql(pipeline: &Pipeline, table: &str, tag: Option<&str>) -> String {
    let tag = tag.map(|tag| format!("@{tag}")).unwrap_or_default();
    format!("{}.\"{table}{tag}\"", pipeline.name)
}
