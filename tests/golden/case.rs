//! One case of a golden set: its files, and a record of what was compared.

use serde::de::DeserializeOwned;
use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    io::Read,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    rc::Rc,
};
use tch::{Kind, Tensor};
use vlmdiff::models::checkpoint::Checkpoint;

use super::tolerance::{NETWORK, share};

/// A case `models/NAME` or `methods/NAME`, a folder with `inputs`, `expected` and `meta.json`; or `reference/NAME`, whose files are
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

/// The result of a case.
pub(crate) struct Outcome {
    pub(crate) compared: usize,
    /// The comparison that came nearest to its tolerance, and the difference as a share of that tolerance.
    pub(crate) worst: Option<(String, f64)>,
    pub(crate) absent: Vec<String>,
    pub(crate) failures: Vec<String>,
}

/// A file or tensor that a set lacks, as the payload of a panic, which ends a part of a case.
struct Absent(String);

/// The tensors of a file. Each has to be asked for: a tensor of the set that is not compared is a failure.
pub(crate) struct Tensors {
    file: String,
    tensors: BTreeMap<String, Tensor>,
    used: RefCell<BTreeSet<String>>,
}

impl Tensors {
    /// Returns a tensor, if the file has it. Values that half precision holds exactly are stored in it, and widened
    /// here.
    pub(crate) fn find(&self, name: &str) -> Option<Tensor> {
        let tensor = self.tensors.get(name)?;
        self.used.borrow_mut().insert(name.to_owned());
        Some(if tensor.kind() == Kind::Half { tensor.to_kind(Kind::Float) } else { tensor.shallow_clone() })
    }

    /// Returns a tensor; ends the [part](Case::part) of the case if the set lacks it.
    pub(crate) fn get(&self, name: &str) -> Tensor {
        self.find(name).unwrap_or_else(|| std::panic::panic_any(Absent(format!("{name} of {}", self.file))))
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Counts tensors whose names begin with `prefix` as used, because they are compared elsewhere or not at all.
    pub(crate) fn skip(&self, prefix: &str) {
        self.used.borrow_mut().extend(self.tensors.keys().filter(|name| name.starts_with(prefix)).cloned());
    }
}

impl Case {
    pub(super) fn new(set: &Path, name: &str) -> Self {
        let (group, name) = name.split_once('/').unwrap();
        let folder = if group == "reference" { set.join(group) } else { set.join(group).join(name) };
        Self { folder, name: name.to_owned(), record: RefCell::default(), opened: RefCell::default() }
    }

    pub(super) fn exists(&self) -> bool {
        let own = |end: &str| self.folder.join(format!("{}{end}", self.name)).exists();
        self.folder.is_dir() && (!self.folder.ends_with("reference") || own(".safetensors") || own(".json"))
    }

    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.folder.join(file)
    }

    /// Returns true if the set has a file; else lists it as not compared.
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

    /// Runs a part of the case. A missing file or tensor ends the part and is listed; the other parts are still
    /// compared.
    pub(crate) fn part(&self, compare: impl FnOnce()) {
        let Err(panic) = catch_unwind(AssertUnwindSafe(compare)) else { return };
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        match panic.downcast_ref::<Absent>() {
            Some(Absent(what)) => self.absent(&format!("{what}, and what needs it")),
            None => self.fail(text.unwrap_or_default()),
        }
    }

    /// Ends the part because the set lacks something.
    pub(crate) fn missing(&self, what: &str) -> ! {
        std::panic::panic_any(Absent(what.to_owned()))
    }

    /// Returns the path of a file; ends the part if the set lacks it.
    fn need(&self, file: &str) -> PathBuf {
        let path = self.path(file);
        if !path.exists() {
            self.missing(file);
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

    /// Returns a tensor of `inputs.safetensors`.
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

    /// Returns the weights of a reference case, from `NAME_i8.safetensors` and `NAME_scale.json`; without the former,
    /// from the formula.
    pub(crate) fn weights(&self, name: &str) -> Checkpoint {
        super::weights::read(self, name)
    }

    /// Compares the output of a network with `expected.safetensors`, within `times` [`NETWORK`] of the largest value.
    pub(crate) fn close(&self, name: &str, got: &Tensor, times: f64) {
        self.compare("expected.safetensors", name, got, |want| share(want, times * NETWORK));
    }

    /// Compares two outputs of this program that have to be equal but for the order of their sums, within [`NETWORK`]
    /// of the largest value.
    pub(crate) fn close_to(&self, name: &str, got: &Tensor, want: &Tensor) {
        let difference = (got - want).abs().to_kind(Kind::Double);
        self.judge_all(name, &difference, &share(&want.to_kind(Kind::Double), NETWORK).expand_as(&difference));
    }

    /// Compares with `expected.safetensors`, within the tolerance that `bound` computes from the expected values.
    pub(crate) fn expect(&self, name: &str, got: &Tensor, bound: impl FnOnce(&Tensor) -> Tensor) {
        self.compare("expected.safetensors", name, got, bound);
    }

    /// Compares with `expected.safetensors` without any tolerance.
    pub(crate) fn exact(&self, name: &str, got: &Tensor) {
        self.expect(name, got, |_| Tensor::from(0_f64));
    }

    /// Compares with a tensor of `NAME.safetensors`, within `tolerance` times its largest absolute value.
    pub(crate) fn near(&self, name: &str, got: &Tensor, tolerance: f64) {
        self.compare(&format!("{}.safetensors", self.name), name, got, |want| share(want, tolerance));
    }

    /// Compares with a tensor of `NAME.safetensors`, within the tolerance that `bound` computes from the expected
    /// values.
    pub(crate) fn within(&self, name: &str, got: &Tensor, bound: impl FnOnce(&Tensor) -> Tensor) {
        self.compare(&format!("{}.safetensors", self.name), name, got, bound);
    }

    /// Compares with a tensor of a file. `bound` computes from the expected values, in f64, the tolerance of each; it
    /// has their shape or one that is broadcast to it.
    pub(crate) fn compare(&self, file: &str, name: &str, got: &Tensor, bound: impl FnOnce(&Tensor) -> Tensor) {
        let Some(want) = self.tensors(file).find(name) else { return self.absent(name) };
        let got = if want.dim() == 1 && got.dim() == 0 { got.unsqueeze(0) } else { got.shallow_clone() };
        if got.size() != want.size() {
            return self.fail(format!("{name} has the shape {:?}, not {:?}", got.size(), want.size()));
        }
        let want = want.to_kind(Kind::Double);
        let difference = (got.to_kind(Kind::Double) - &want).abs();
        // A finite number and an infinite or undefined one differ by more than any tolerance.
        let difference = difference.nan_to_num(f64::INFINITY, f64::INFINITY, f64::INFINITY);
        self.judge_all(name, &difference, &bound(&want).expand_as(&difference));
    }

    /// Compares one number, within an absolute tolerance.
    pub(crate) fn number(&self, name: &str, got: f64, want: f64, tolerance: f64) {
        self.judge(name, (got - want).abs(), tolerance);
    }

    /// Compares any two values that have to be equal.
    pub(crate) fn equal<T: PartialEq + std::fmt::Debug>(&self, name: &str, got: &T, want: &T) {
        self.record.borrow_mut().compared += 1;
        if got != want {
            self.fail(format!("{name} is {got:?}, not {want:?}"));
        }
    }

    /// Judges each of several values, and records the worst.
    fn judge_all(&self, name: &str, difference: &Tensor, bound: &Tensor) {
        if difference.numel() == 0 {
            return self.judge(name, 0., 0.);
        }
        // 0 / 0 is no difference where none is allowed, and so no excess.
        let over = (difference / bound).nan_to_num(0., f64::INFINITY, 0.);
        let at = over.argmax(None, false);
        let of = |x: &Tensor| x.reshape([-1]).index_select(0, &at.reshape([1])).double_value(&[0]);
        self.judge(name, of(difference), of(bound));
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

    /// Returns the result. A tensor of the set that was not compared is a failure, unless something that it may need is
    /// absent.
    pub(super) fn finish(self) -> Outcome {
        let mut record = self.record.into_inner();
        let whole = record.absent.is_empty();
        for tensors in self.opened.into_inner().into_values() {
            let used = tensors.used.borrow();
            let left = tensors.tensors.keys().filter(|name| !used.contains(*name));
            let into = if whole { &mut record.failures } else { &mut record.absent };
            into.extend(left.map(|name| format!("{name} of {} is not compared", tensors.file)));
        }
        let Record { compared, worst, absent, failures } = record;
        Outcome { compared, worst, absent, failures }
    }
}
