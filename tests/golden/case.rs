//! One case of a golden set: its files, and a record of what was compared.

use serde::de::DeserializeOwned;
use serde_json::Value;
use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    io::Read,
    path::{Path, PathBuf},
    rc::Rc,
};
use tch::{Kind, Tensor};
use vlmdiff::models::checkpoint::Checkpoint;

/// A case `models/NAME`, a folder with `inputs`, `expected` and `meta.json`; or `reference/NAME`, whose files are
/// `NAME.safetensors` and `NAME.json` in the folder `reference`.
pub(crate) struct Case {
    folder: PathBuf,
    name: String,
    record: RefCell<Record>,
    opened: RefCell<BTreeMap<String, Rc<Tensors>>>,
}

#[derive(Default)]
struct Record {
    compared: usize,
    worst: Option<(String, f64)>,
    absent: Vec<String>,
    failures: Vec<String>,
}

/// What came of a case.
pub(crate) struct Outcome {
    pub(crate) compared: usize,
    /// What came nearest to its tolerance, and how near: 1 is at it.
    pub(crate) worst: Option<(String, f64)>,
    pub(crate) absent: Vec<String>,
    pub(crate) failures: Vec<String>,
}

/// A file that a set lacks, as the payload of a panic: what comes after it in a case is not compared.
pub(super) struct Absent(pub(super) String);

/// The tensors of a file. Each must be asked for: what is in a set and not compared is a failure.
pub(crate) struct Tensors {
    file: String,
    tensors: BTreeMap<String, Tensor>,
    used: RefCell<BTreeSet<String>>,
}

impl Tensors {
    /// Half precision is widened: it is how values that it holds exactly are stored.
    pub(crate) fn find(&self, name: &str) -> Option<Tensor> {
        let tensor = self.tensors.get(name)?;
        self.used.borrow_mut().insert(name.to_owned());
        Some(if tensor.kind() == Kind::Half { tensor.to_kind(Kind::Float) } else { tensor.shallow_clone() })
    }

    pub(crate) fn get(&self, name: &str) -> Tensor {
        self.find(name).unwrap_or_else(|| panic!("{} has no tensor {name}", self.file))
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Counts what begins with `prefix` as used: it is compared elsewhere.
    pub(crate) fn skip(&self, prefix: &str) {
        self.used.borrow_mut().extend(self.tensors.keys().filter(|name| name.starts_with(prefix)).cloned());
    }
}

impl Case {
    pub(super) fn new(set: &Path, name: &str) -> Self {
        let (group, name) = name.split_once('/').unwrap();
        let folder = if group == "models" { set.join(group).join(name) } else { set.join(group) };
        Self { folder, name: name.to_owned(), record: RefCell::default(), opened: RefCell::default() }
    }

    pub(super) fn exists(&self) -> bool {
        let own = |end: &str| self.folder.join(format!("{}{end}", self.name)).exists();
        self.folder.is_dir() && (!self.folder.ends_with("reference") || own(".safetensors") || own(".json"))
    }

    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.folder.join(file)
    }

    /// Whether the set has a file; if not, it is listed as not compared.
    pub(crate) fn has(&self, file: &str) -> bool {
        let there = self.path(file).exists();
        if !there {
            self.absent(file);
        }
        there
    }

    /// Lists something as not compared.
    pub(crate) fn absent(&self, what: &str) {
        self.record.borrow_mut().absent.push(what.to_owned());
    }

    pub(crate) fn fail(&self, failure: String) {
        self.record.borrow_mut().failures.push(failure);
    }

    /// Ends the case if the set lacks a file.
    fn need(&self, file: &str) -> PathBuf {
        let path = self.path(file);
        if !path.exists() {
            std::panic::panic_any(Absent(file.to_owned()));
        }
        path
    }

    pub(crate) fn tensors(&self, file: &str) -> Rc<Tensors> {
        let mut opened = self.opened.borrow_mut();
        let open = || {
            let tensors = Tensor::read_safetensors(self.need(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
            let tensors = tensors.into_iter().collect();
            Rc::new(Tensors { file: file.to_owned(), tensors, used: RefCell::default() })
        };
        opened.entry(file.to_owned()).or_insert_with(open).clone()
    }

    /// A tensor of `inputs.safetensors`.
    pub(crate) fn input(&self, name: &str) -> Tensor {
        self.tensors("inputs.safetensors").get(name)
    }

    pub(crate) fn json<T: DeserializeOwned>(&self, file: &str) -> T {
        let bytes = std::fs::read(self.need(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
        let bytes = if file.ends_with(".gz") {
            let mut text = Vec::new();
            flate2::read::GzDecoder::new(&bytes[..]).read_to_end(&mut text).unwrap();
            text
        } else {
            bytes
        };
        serde_json::from_slice(&bytes).unwrap_or_else(|e| panic!("{file}: {e}"))
    }

    pub(crate) fn config<T: DeserializeOwned>(&self) -> T {
        self.json("config.json")
    }

    pub(crate) fn checkpoint(&self, file: &str) -> Checkpoint {
        Checkpoint::open(self.need(file)).unwrap_or_else(|e| panic!("{e}")).state_dict()
    }

    /// Weights of a reference case, from `NAME_i8.safetensors` and `NAME_scale.json`; where the former is absent, from the
    /// formula.
    pub(crate) fn weights(&self, name: &str) -> Checkpoint {
        super::weights::read(self, name)
    }

    /// Compares with `expected.safetensors`, within `slack` times what two correct f32 implementations differ by
    /// according to `meta.json`.
    pub(crate) fn close(&self, name: &str, got: &Tensor, slack: f64) {
        let meta: Value = self.json("meta.json");
        let of = |what: &str| meta[what][name].as_f64().unwrap_or_default();
        let bound = slack * f64::max(1e-5, f64::max(2e-5 * of("scale_max_abs"), 10. * of("noise_max_abs")));
        self.compare("expected.safetensors", name, got, |_| bound);
    }

    /// Compares with a tensor of `NAME.safetensors`, within `tolerance` times its largest absolute value.
    pub(crate) fn near(&self, name: &str, got: &Tensor, tolerance: f64) {
        self.compare(&format!("{}.safetensors", self.name), name, got, |want| tolerance * largest(want));
    }

    /// Compares with a tensor of a file, within what `bound` makes of the expected values.
    pub(crate) fn compare(&self, file: &str, name: &str, got: &Tensor, bound: impl FnOnce(&Tensor) -> f64) {
        let Some(want) = self.tensors(file).find(name) else { return self.absent(name) };
        let got = if want.dim() == 1 && got.dim() == 0 { got.unsqueeze(0) } else { got.shallow_clone() };
        if got.size() != want.size() {
            return self.fail(format!("{name} has the shape {:?}, not {:?}", got.size(), want.size()));
        }
        let difference = largest(&(got.to_kind(Kind::Double) - want.to_kind(Kind::Double)));
        self.judge(name, difference, bound(&want));
    }

    /// Compares one number, within an absolute tolerance.
    pub(crate) fn number(&self, name: &str, got: f64, want: f64, tolerance: f64) {
        self.judge(name, (got - want).abs(), tolerance);
    }

    /// Compares anything that has to be equal.
    pub(crate) fn equal<T: PartialEq + std::fmt::Debug>(&self, name: &str, got: &T, want: &T) {
        self.record.borrow_mut().compared += 1;
        if got != want {
            self.fail(format!("{name} is {got:?}, not {want:?}"));
        }
    }

    fn judge(&self, name: &str, difference: f64, bound: f64) {
        let mut record = self.record.borrow_mut();
        record.compared += 1;
        if !(difference <= bound) {
            record.failures.push(format!("{name} differs by {difference:.1e}, {bound:.1e} allowed"));
        }
        let share = if difference == 0. { 0. } else { difference / bound };
        if record.worst.as_ref().is_none_or(|(_, worst)| share > *worst) {
            record.worst = Some((name.to_owned(), share));
        }
    }

    pub(super) fn finish(self) -> Outcome {
        let mut record = self.record.into_inner();
        for tensors in self.opened.into_inner().into_values() {
            let used = tensors.used.borrow();
            let left = tensors.tensors.keys().filter(|name| !used.contains(*name));
            record.failures.extend(left.map(|name| format!("{name} of {} is not compared", tensors.file)));
        }
        let Record { compared, worst, absent, failures } = record;
        Outcome { compared, worst, absent, failures }
    }
}

fn largest(x: &Tensor) -> f64 {
    if x.numel() == 0 { 0. } else { x.to_kind(Kind::Double).abs().max().double_value(&[]) }
}
