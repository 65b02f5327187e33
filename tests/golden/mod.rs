//! Every network, schedule, metric and resampler beside its reference implementation, on tiny instances.
//!
//! `VLMDIFF_GOLDEN=DIR` compares another set of the same layout, with other sizes and values; without it `data/golden` is
//! compared, where nothing may be missing. `VLMDIFF_GOLDEN_ONLY=unet` compares the cases whose name has `unet` in it.

mod case;
mod inspect;
mod pickles;
mod tokenizer;
mod weights;

pub(crate) use case::Case;

use std::{
    io::Write,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
};

/// The cases: a folder of `models`, or files of `reference`, and what is compared there.
const CASES: &[(&str, fn(&Case))] = &[
    ("models/pickles", pickles::compare),
    ("reference/sample_ckpt_expected", pickles::samples),
    ("models/manifests", inspect::manifests),
    ("reference/full_manifest", inspect::full_manifest),
    ("reference/weight_generator_vectors", weights::compare),
    ("models/clip_tokenizer", tokenizer::compare),
];

/// The folder of the set, and whether it is the one of this repository.
fn set() -> (PathBuf, bool) {
    match std::env::var_os("VLMDIFF_GOLDEN") {
        Some(folder) => (PathBuf::from(folder), false),
        None => (PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("data/golden"), true),
    }
}

#[test]
fn networks_equal_their_reference_implementations() {
    let (folder, own) = set();
    assert!(folder.is_dir(), "{}: there is no such folder", folder.display());
    let only = std::env::var("VLMDIFF_GOLDEN_ONLY").unwrap_or_default();
    let mut report = format!("\ngolden set {}\n", folder.display());
    let (mut cases, mut tensors, mut failed) = (0, 0, Vec::new());
    for (name, compare) in CASES.iter().filter(|(name, _)| name.contains(&only)) {
        let case = Case::new(&folder, name);
        if !case.exists() {
            report += &format!("  {name:28} not compared: the set has no such case\n");
            failed.extend(own.then(|| format!("{name}: the set has no such case")));
            continue;
        }
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| compare(&case))) {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            case.fail(text.unwrap_or_default());
        }
        let outcome = case.finish();
        report += &format!("  {name:28} {:4} compared", outcome.compared);
        report += &outcome
            .worst
            .map_or(String::new(), |(name, share)| format!(", worst {share:.0e} of what is allowed: {name}"));
        report += "\n";
        report.extend(outcome.absent.iter().map(|absent| format!("  {:28} not compared: {absent}\n", "")));
        failed.extend(outcome.failures.iter().map(|failure| format!("{name}: {failure}")));
        failed.extend(outcome.absent.iter().filter(|_| own).map(|absent| format!("{name}: not compared: {absent}")));
        cases += 1;
        tensors += outcome.compared;
    }
    report += &format!("{cases} cases and {tensors} tensors and numbers compared, {} differ\n", failed.len());
    // not by `eprintln`, which a passing test swallows
    std::io::stderr().write_all(report.as_bytes()).unwrap();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
