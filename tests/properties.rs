//! Properties that hold for any pipeline file, and for any bytes in place of a store's objects.

use std::{fs, path::PathBuf, sync::Arc};

use arrow::{
    array::{ArrayRef, Int64Array, RecordBatch, StringArray},
    datatypes::{DataType, Field, Schema},
};
use proptest::prelude::*;
use vlmdiff::{
    engine::{
        Digest, Error, pipeline,
        store::{Current, Entry, PartRef, Store, encode_part, gc, read_table},
    },
    stages::KINDS,
};

use crate::lab::{LIGHT, TOY};

const SWEEP: &str = "sweep:\n  default: [a, b]\n  images.size: [32, 16]\n";

/// Returns the shipped pipelines and those of the tests.
fn pipelines() -> Vec<String> {
    let shipped = std::fs::read_dir(crate::lab::project().join("pipelines")).unwrap();
    let shipped = shipped.filter_map(|entry| std::fs::read_to_string(entry.unwrap().path()).ok());
    shipped.chain([TOY.to_owned(), format!("{LIGHT}{SWEEP}")]).collect()
}

/// A typing mistake: a character or a line is removed, doubled or inserted.
#[derive(Clone, Debug)]
enum Slip {
    Lose(usize),
    Double(usize),
    Insert(usize, char),
    LoseLine(usize),
    DoubleLine(usize),
    SwapLines(usize, usize),
}

fn slip() -> impl Strategy<Value = Slip> {
    let at = any::<usize>;
    prop_oneof![
        at().prop_map(Slip::Lose),
        at().prop_map(Slip::Double),
        (at(), prop::sample::select("{}[]:,-#&*!|>'\"%@`?~. \t\n0aé$".chars().collect::<Vec<_>>()))
            .prop_map(|(at, c)| Slip::Insert(at, c)),
        at().prop_map(Slip::LoseLine),
        at().prop_map(Slip::DoubleLine),
        (at(), at()).prop_map(|(a, b)| Slip::SwapLines(a, b)),
    ]
}

fn slipped(text: &str, slip: &Slip) -> String {
    let mut chars: Vec<char> = text.chars().collect();
    let mut lines: Vec<&str> = text.split('\n').collect();
    let (in_chars, in_lines) = (chars.len().max(1), lines.len());
    match *slip {
        _ if chars.is_empty() => return text.to_owned(),
        Slip::LoseLine(at) => drop(lines.remove(at % in_lines)),
        Slip::DoubleLine(at) => lines.insert(at % in_lines, lines[at % in_lines]),
        Slip::SwapLines(a, b) => lines.swap(a % in_lines, b % in_lines),
        Slip::Lose(at) => drop(chars.remove(at % in_chars)),
        Slip::Double(at) => chars.insert(at % in_chars, chars[at % in_chars]),
        Slip::Insert(at, c) => chars.insert(at % in_chars, c),
    }
    match slip {
        Slip::LoseLine(_) | Slip::DoubleLine(_) | Slip::SwapLines(..) => lines.join("\n"),
        _ => chars.into_iter().collect(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    /// Reading a file gives a pipeline or an error that names the file.
    #[test]
    fn changed_pipeline_file_never_panics(
        which in any::<prop::sample::Index>(),
        slips in prop::collection::vec(slip(), 1..6),
    ) {
        let text = slips.iter().fold(which.get(&pipelines()).clone(), |text, slip| slipped(&text, slip));
        if let Err(error) = pipeline::parse("slip.yaml", "slip", &text, KINDS, &[], &[], &|_| Some("x".into())) {
            prop_assert!(error.is_input(), "{}", error);
            prop_assert!(error.to_string().starts_with("slip.yaml:"), "{}", error);
        }
    }

    #[test]
    fn any_text_is_parsed_without_a_panic(text in "[ \\n:{}\\[\\],a-c&*!|>'\"-]{0,60}") {
        drop(pipeline::parse("noise.yaml", "noise", &text, KINDS, &[], &[], &|_| None));
    }

    /// A variable's value is text, even if it looks like YAML.
    #[test]
    fn variable_value_is_passed_unchanged(value in "([ -~]|\\n|\\t|é|\\$\\{X\\}|: |- |# ){0,24}") {
        let text = LIGHT.replace("root: data", "root: \"${X}\"").replace("name: light\n", "name: light\n# ${Y}\n");
        let lookup = |name: &str| (name == "X").then(|| value.clone());
        let loaded = pipeline::parse("p.yaml", "p", &text, KINDS, &[], &[], &lookup).unwrap();
        prop_assert_eq!(loaded.tables.len(), 3);
        prop_assert_eq!(&loaded.tables[0].stage.params()["root"], &serde_json::json!(value));
    }
}

/// Returns bytes with some changed, truncated or extended.
fn damage(bytes: &[u8], changes: &[(usize, u8)], length: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for (at, value) in changes {
        let at = at % bytes.len();
        bytes[at] = *value;
    }
    // The length is unchanged in most cases.
    bytes.resize(if length.is_multiple_of(3) { length % (bytes.len() * 2) } else { bytes.len() }, b'0');
    bytes
}

fn changes() -> impl Strategy<Value = Vec<(usize, u8)>> {
    prop::collection::vec((any::<usize>(), any::<u8>()), 0..6)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// A damaged part is either read as it was written, or it is an error: Parquet's own, or a wrong digest.
    #[test]
    fn damaged_part_is_never_read_as_undamaged(changes in changes(), length: usize, chosen: bool) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().to_string_lossy()).unwrap();
        let ids: ArrayRef = Arc::new(StringArray::from_iter_values((0..9).map(|i| format!("row {i}"))));
        let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(0..9));
        let batch = RecordBatch::try_from_iter([("id", ids), ("n", numbers)]).unwrap();
        let whole = encode_part(&batch).unwrap();
        let part = store.put_part(whole.clone()).unwrap();
        let damaged = damage(&whole, &changes, length);
        fs::write(folder.path().join(format!("parts/{part}.parquet")), &damaged).unwrap();
        let chosen = chosen.then(|| vec![(1, 2), (8, 1)]);
        let part = [PartRef { part, bytes: whole.len() as u64, rows: 9, chosen }];
        let columns = ["id".to_owned()];
        let schema = Arc::new(Schema::new(vec![Field::new("id", DataType::Utf8, false)]));
        match read_table(&store, &part, &columns, &schema) {
            Ok(read) => {
                prop_assert_eq!(&damaged[..], &whole[..]);
                prop_assert_eq!(read.num_rows() as u64, part[0].len());
            }
            Err(error) => prop_assert!(matches!(error, Error::Lost { .. }), "{error}"),
        }
    }

    /// Changed records count as missing, and changed manifests as damaged.
    #[test]
    fn damaged_manifests_and_records_are_detected(changes in changes(), length: usize) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().to_string_lossy()).unwrap();
        let stage = Digest::of(b"stage");
        let entry = Entry {
            part: Some(stage),
            bytes: 1,
            keys: vec![stage; 3],
            contents: vec![stage; 3],
            errors: Vec::new(),
            blobs: vec![stage],
            notes: Vec::new(),
            replaces: Vec::new(),
            recorded_ms: 7,
        };
        store.record(stage, &entry).unwrap();
        let record: PathBuf =
            fs::read_dir(folder.path().join(format!("computed/{stage}"))).unwrap().next().unwrap().unwrap().path();
        let written = fs::read(&record).unwrap();
        let damaged = damage(&written, &changes, length);
        fs::write(&record, &damaged).unwrap();
        let whole = damaged == written;
        let recorded = store.computed(stage).unwrap();
        prop_assert_eq!((recorded.entries.len(), recorded.damaged.len()), if whole { (1, 0) } else { (0, 1) });
        gc::collect(&store, 1, false).unwrap();
        store.put("published/p/t/0000000001.json", damaged).unwrap();
        let is_damaged = matches!(store.published("p", "t").unwrap(), Current::Damaged { version: 1, .. });
        prop_assert!(is_damaged);
        prop_assert!(gc::collect(&store, 1, false).is_err());
    }
}
