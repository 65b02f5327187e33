//! Published weights, as published: safetensors (one file or sharded) and what `torch.save` writes (zip or legacy, nested
//! or flat). The format is told by the content, not by the name. A pickle is parsed and never executed.
//!
//! Opening maps the file and reads its header; a tensor is copied out when it is asked for.

mod entry;
mod pickle;
mod preprocessing;
mod safe;
mod torch;

pub use preprocessing::Preprocessing;
pub use safe::to_safetensors;

use bytes::Bytes;
use entry::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};
use tch::{Kind, TchError, Tensor, nn};

/// What a folder in the Hugging Face layout may hold, best first.
const FILES: [&str; 10] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "diffusion_pytorch_model.bin",
    "diffusion_pytorch_model.bin.index.json",
    "model.fp16.safetensors",
    "diffusion_pytorch_model.fp16.safetensors",
];

/// Levels that training programs put above the weights, outermost first.
const LEVELS: [&str; 4] = ["state_dict", "model_state_dict", "model", "teacher"];

/// How many names one error message lists of each sort.
const LISTED: usize = 20;

/// Why weights cannot be read or do not fit.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The file or folder cannot be read.
    #[error("cannot read the weights {}: {source}", path.display())]
    Io {
        /// The file or folder asked for.
        path: PathBuf,
        /// Why it cannot be read.
        source: std::io::Error,
    },
    /// The file is read and not understood.
    #[error("cannot use {} as weights: {reason}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong and what would work.
        reason: String,
    },
    /// A tensor is asked for that the file lacks.
    #[error("{} has no tensor {name}", path.display())]
    NoTensor {
        /// The file.
        path: PathBuf,
        /// The name asked for.
        name: String,
    },
    /// The names or shapes are not those of the model.
    #[error("the weights {} do not fit the model: {mismatch}", path.display())]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// Every name that does not fit.
        mismatch: Mismatch,
    },
    /// libtorch refuses a tensor, mostly for want of memory.
    #[error("cannot load {name} of {}: {source}", path.display())]
    Torch {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// What libtorch says.
        source: TchError,
    },
}

/// How the names and shapes of a file differ from those of a model.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mismatch {
    /// Names of the model that the file lacks.
    pub missing: Vec<String>,
    /// Names of the file that the model lacks.
    pub unexpected: Vec<String>,
    /// Name, shape in the file, shape in the model.
    pub shapes: Vec<(String, Vec<i64>, Vec<i64>)>,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shape =
            |(name, file, model): &(String, Vec<i64>, Vec<i64>)| format!("{name} {file:?} instead of {model:?}");
        let shapes: Vec<String> = self.shapes.iter().map(shape).collect();
        let mut separator = "";
        for (what, names) in [("missing", &self.missing), ("unexpected", &self.unexpected), ("wrong shape", &shapes)] {
            if names.is_empty() {
                continue;
            }
            write!(f, "{separator}{} {what}: {}", names.len(), names[..names.len().min(LISTED)].join(", "))?;
            if names.len() > LISTED {
                write!(f, " and {} more", names.len() - LISTED)?;
            }
            separator = "; ";
        }
        Ok(())
    }
}

/// Named tensors in a file. Nested dicts and lists are flattened: `{"a": {"b": t}}` is `a.b`.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    path: PathBuf,
    entries: BTreeMap<String, Entry>,
    /// Names of the dicts that the file nests, which a dot in a name alone does not tell.
    containers: BTreeSet<String>,
    metadata: HashMap<String, String>,
}

/// The index of a sharded file: each tensor's name and the file beside the index that holds it.
#[derive(serde::Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// The weight file of a folder.
fn chosen(folder: &Path) -> Option<PathBuf> {
    FILES.iter().map(|file| folder.join(file)).find(|file| file.exists())
}

impl Checkpoint {
    /// Opens a weight file, the index of a sharded one, or a folder in the Hugging Face layout.
    ///
    /// # Errors
    /// [`CheckpointError::Io`], or [`CheckpointError::Format`] for a file that is none of the known formats, is damaged
    /// or holds no tensor.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, CheckpointError> {
        let path = path.as_ref();
        if path.is_dir() {
            let reason = || format!("the folder has none of {}", FILES.join(", "));
            return Self::open(chosen(path).ok_or_else(|| format_error(path, reason()))?);
        }
        let io = |source| CheckpointError::Io { path: path.to_owned(), source };
        let file = std::fs::File::open(path).map_err(io)?;
        // SAFETY: as with any mapped file, nobody may shorten it meanwhile. Weights are replaced, not rewritten in place.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(io)?;
        let bytes = Bytes::from_owner(map);
        match bytes.first() {
            Some(b'{') => Self::open_shards(path, &bytes),
            _ => Self::read(path, &bytes),
        }
    }

    /// Reads a safetensors file that is in memory already.
    ///
    /// # Errors
    /// [`CheckpointError::Format`].
    pub fn from_safetensors(bytes: impl Into<Bytes>) -> Result<Self, CheckpointError> {
        Self::read_safetensors(Path::new("(in memory)"), &bytes.into())
    }

    fn read(path: &Path, bytes: &Bytes) -> Result<Self, CheckpointError> {
        let error = |reason| format_error(path, reason);
        let tensors = match &bytes[..] {
            [b'P', b'K', 3, 4, ..] => torch::read_zip(bytes).map_err(error)?,
            [0x80, ..] if bytes.get(8) != Some(&b'{') => torch::read_legacy(bytes).map_err(error)?,
            [_, _, _, _, _, _, _, _, b'{', ..] => return Self::read_safetensors(path, bytes),
            [b'v', b'e', b'r', b's', b'i', b'o', b'n', b' ', ..] => {
                return Err(error("it is a Git LFS pointer; fetch the file itself with `git lfs pull`".to_owned()));
            }
            _ => return Err(error("it is neither safetensors nor a file of torch.save".to_owned())),
        };
        if tensors.entries.is_empty() {
            let reason = "it holds no named tensors; a state_dict would work, a pickled module or TorchScript does not";
            return Err(error(reason.to_owned()));
        }
        let torch::Tensors { entries, containers } = tensors;
        Ok(Self { path: path.to_owned(), entries, containers, metadata: HashMap::new() })
    }

    fn read_safetensors(path: &Path, bytes: &Bytes) -> Result<Self, CheckpointError> {
        let (entries, metadata) = safe::read(bytes).map_err(|reason| format_error(path, reason))?;
        Ok(Self { path: path.to_owned(), entries, containers: BTreeSet::new(), metadata })
    }

    /// The files that [`Checkpoint::open`] reads: one, or an index and its shards. What cannot be opened stands for itself.
    pub fn files(path: impl AsRef<Path>) -> Vec<PathBuf> {
        let file = chosen(path.as_ref()).unwrap_or_else(|| path.as_ref().to_owned());
        let index = file.extension().is_some_and(|extension| extension == "json").then(|| std::fs::read(&file).ok());
        let index = index.flatten().and_then(|text| serde_json::from_slice::<Index>(&text).ok());
        let names: BTreeSet<String> = index.into_iter().flat_map(|index| index.weight_map.into_values()).collect();
        let shards: Vec<PathBuf> = names.iter().map(|name| file.with_file_name(name)).collect();
        std::iter::once(file).chain(shards).collect()
    }

    fn open_shards(path: &Path, index: &[u8]) -> Result<Self, CheckpointError> {
        let index: Index = serde_json::from_slice(index)
            .map_err(|error| format_error(path, format!("it is no index of a sharded file: {error}")))?;
        let mut whole = Self {
            path: path.to_owned(),
            entries: BTreeMap::new(),
            containers: BTreeSet::new(),
            metadata: HashMap::new(),
        };
        for shard in index.weight_map.values().collect::<BTreeSet<_>>() {
            if Path::new(shard).file_name() != Some(shard.as_ref()) {
                return Err(format_error(path, format!("its shard {shard} does not lie beside it")));
            }
            let shard = Self::open(path.with_file_name(shard))?;
            whole.entries.extend(shard.entries);
            whole.metadata.extend(shard.metadata);
        }
        match index.weight_map.iter().find(|(name, _)| !whole.entries.contains_key(*name)) {
            Some((name, shard)) => Err(format_error(path, format!("its shard {shard} has no tensor {name}"))),
            None => Ok(whole),
        }
    }

    /// The file that was opened: of a folder, the file chosen in it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The `__metadata__` of a safetensors file; empty for the other formats.
    pub fn metadata(&self) -> &HashMap<String, String> {
        &self.metadata
    }

    /// The names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// How many tensors there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no tensor, as after a [`select`](Self::select) that matches nothing.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether a tensor has this name.
    pub fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// Shape of a tensor, without reading it.
    pub fn shape(&self, name: &str) -> Option<&[i64]> {
        self.entries.get(name).map(|entry| entry.shape.as_slice())
    }

    /// Element type of a tensor, without reading it. None also for a type that libtorch lacks.
    pub fn kind(&self, name: &str) -> Option<Kind> {
        self.entries.get(name)?.kind.clone().ok()
    }

    /// Copies one tensor out of the file: on the CPU, dense, in the type of the file.
    ///
    /// # Errors
    /// [`CheckpointError::NoTensor`]; [`CheckpointError::Format`] for an element type that libtorch cannot compute with.
    pub fn tensor(&self, name: &str) -> Result<Tensor, CheckpointError> {
        let no_tensor = || CheckpointError::NoTensor { path: self.path.clone(), name: name.to_owned() };
        let entry = self.entries.get(name).ok_or_else(no_tensor)?;
        let unknown = |dtype| format_error(&self.path, format!("{name} has the element type {dtype}"));
        let kind = entry.kind.clone().map_err(unknown)?;
        entry.tensor(kind).map_err(|source| self.torch_error(name, source))
    }

    /// Copies every tensor out of the file.
    ///
    /// # Errors
    /// As [`tensor`](Self::tensor).
    pub fn tensors(&self) -> Result<BTreeMap<String, Tensor>, CheckpointError> {
        self.names().map(|name| Ok((name.to_owned(), self.tensor(name)?))).collect()
    }

    /// Gives every tensor another name, or drops it where `f` is None.
    ///
    /// # Errors
    /// [`CheckpointError::Format`] if two tensors would get one name.
    pub fn rename(mut self, f: impl Fn(&str) -> Option<String>) -> Result<Self, CheckpointError> {
        let mut renamed = BTreeMap::new();
        for (name, entry) in std::mem::take(&mut self.entries) {
            if let Some(new) = f(&name)
                && let Some(_other) = renamed.insert(new.clone(), entry)
            {
                return Err(format_error(&self.path, format!("{name} and another tensor are both renamed to {new}")));
            }
        }
        self.entries = renamed;
        self.containers.clear();
        Ok(self)
    }

    /// Splits every tensor that `f` names parts for into as many equal parts along its first dimension, as a packed
    /// `qkv` into query, key and value.
    ///
    /// # Errors
    /// [`CheckpointError::Format`] if the dimension does not divide, or a part has the name of another tensor.
    pub fn split(mut self, f: impl Fn(&str) -> Option<Vec<String>>) -> Result<Self, CheckpointError> {
        let mut split = BTreeMap::new();
        for (name, entry) in std::mem::take(&mut self.entries) {
            let names = f(&name).unwrap_or_else(|| vec![name.clone()]);
            let indivisible = || format_error(&self.path, format!("{name} does not split into {} parts", names.len()));
            let parts = entry.split(names.len()).ok_or_else(indivisible)?;
            for (part, entry) in names.iter().zip(parts) {
                if split.insert(part.clone(), entry).is_some() {
                    return Err(format_error(
                        &self.path,
                        format!("a part of {name} and another tensor are both {part}"),
                    ));
                }
            }
        }
        self.entries = split;
        Ok(self)
    }

    /// Keeps the tensors below `prefix` and strips it: `select("teacher")` makes `teacher.norm.bias` `norm.bias`.
    pub fn select(self, prefix: &str) -> Self {
        let prefix = prefix.trim_end_matches('.');
        if prefix.is_empty() {
            return self;
        }
        let below = |name: &str| name.strip_prefix(prefix)?.strip_prefix('.').map(str::to_owned);
        Self {
            entries: self.entries.into_iter().filter_map(|(name, entry)| Some((below(&name)?, entry))).collect(),
            containers: self.containers.iter().filter_map(|name| below(name)).collect(),
            ..self
        }
    }

    /// Steps into the dict that a training program keeps the weights in (`state_dict`, `model_state_dict`, `model`,
    /// `teacher`), also where two are nested. A flat file stays as it is, even if its names begin with `model.`.
    pub fn state_dict(mut self) -> Self {
        let holds = |this: &Self, level: &str| {
            this.containers.contains(level) && this.names().any(|name| name.starts_with(&format!("{level}.")))
        };
        while let Some(level) = LEVELS.into_iter().find(|level| holds(&self, level)) {
            self = self.select(level);
        }
        self
    }

    /// Fills the variables of a model, converted to their type and device. The names and shapes must be the same on both
    /// sides; if they are not, no variable is changed.
    ///
    /// # Errors
    /// [`CheckpointError::Mismatch`] lists every name that does not fit.
    pub fn load_into(&self, vs: &nn::VarStore) -> Result<(), CheckpointError> {
        self.fill(&vs.variables())
    }

    /// As [`load_into`](Self::load_into), for variables that are not all of a store.
    ///
    /// # Errors
    /// As [`load_into`](Self::load_into).
    pub fn fill(&self, variables: &HashMap<String, Tensor>) -> Result<(), CheckpointError> {
        let variables: BTreeMap<_, _> = variables.iter().map(|(name, x)| (name.clone(), x.shallow_clone())).collect();
        let mut mismatch = Mismatch {
            missing: variables.keys().filter(|name| !self.contains(name)).cloned().collect(),
            unexpected: self.names().filter(|name| !variables.contains_key(*name)).map(str::to_owned).collect(),
            shapes: vec![],
        };
        for (name, variable) in &variables {
            match self.shape(name) {
                // a 1×1 convolution is a matrix
                Some(shape) if !same_shape(shape, &variable.size()) => {
                    mismatch.shapes.push((name.clone(), shape.to_vec(), variable.size()));
                }
                _ => (),
            }
        }
        if mismatch != Mismatch::default() {
            return Err(CheckpointError::Mismatch { path: self.path.clone(), mismatch });
        }
        let _no_grad = tch::no_grad_guard();
        for (name, mut variable) in variables {
            let tensor = self.tensor(&name)?;
            variable.f_copy_(&tensor.reshape(variable.size())).map_err(|source| self.torch_error(&name, source))?;
        }
        Ok(())
    }

    fn torch_error(&self, name: &str, source: TchError) -> CheckpointError {
        CheckpointError::Torch { path: self.path.clone(), name: name.to_owned(), source }
    }
}

/// Whether two shapes are equal up to dimensions of 1 at their ends.
fn same_shape(a: &[i64], b: &[i64]) -> bool {
    let significant = |shape: &[i64]| shape.iter().rposition(|&size| size != 1).map_or(0, |last| last + 1);
    a[..significant(a)] == b[..significant(b)]
}

fn format_error(path: &Path, reason: String) -> CheckpointError {
    CheckpointError::Format { path: path.to_owned(), reason }
}

/// Fixtures of the reference implementations, for the tests of every network.
#[cfg(test)]
pub(crate) mod golden {
    use super::Checkpoint;
    use std::path::{Path, PathBuf};
    use tch::{Kind, Tensor};

    /// A file or folder below the one that `VLMDIFF_GOLDEN` names, else below `shared/golden` beside the checkout. None,
    /// and a line on stderr, where this machine has no fixtures.
    pub(crate) fn path(name: &str) -> Option<PathBuf> {
        let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/golden");
        let path = std::env::var_os("VLMDIFF_GOLDEN").map_or_else(beside, PathBuf::from).join(name);
        if !path.exists() && std::env::var_os("VLMDIFF_GOLDEN").is_none() {
            eprintln!("not compared: no {}", path.display());
            return None;
        }
        Some(path)
    }

    /// As [`path`], opened.
    pub(crate) fn open(name: &str) -> Option<Checkpoint> {
        path(name).map(|path| Checkpoint::open(path).unwrap())
    }

    /// Fails unless the shapes are equal and the values differ by at most 2e-5 of the largest (1e-5 if that is small).
    #[track_caller]
    pub(crate) fn assert_close(got: &Tensor, want: &Tensor, what: &str) {
        assert_eq!(got.size(), want.size(), "{what}");
        let (got, want) = (got.to_kind(Kind::Double), want.to_kind(Kind::Double));
        let largest = |x: &Tensor| if x.numel() == 0 { 0. } else { x.abs().max().double_value(&[]) };
        let (error, scale) = (largest(&(got - &want)), largest(&want));
        assert!(error <= f64::max(1e-5, 2e-5 * scale), "{what}: off by {error:e} at scale {scale}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, nn::Init};

    fn named(tensors: &[(&str, Tensor)]) -> Vec<(String, Tensor)> {
        tensors.iter().map(|(name, tensor)| ((*name).to_owned(), tensor.shallow_clone())).collect()
    }

    fn file(tensors: &[(&str, Tensor)]) -> Checkpoint {
        Checkpoint::from_safetensors(to_safetensors(named(tensors), HashMap::new()).unwrap()).unwrap()
    }

    fn ramp(shape: &[i64]) -> Tensor {
        Tensor::arange(shape.iter().product::<i64>(), tch::kind::FLOAT_CPU).reshape(shape)
    }

    #[test]
    fn equal_tensors_give_equal_bytes_in_any_order() {
        let (a, b) = (("a", ramp(&[2, 3])), ("b", ramp(&[5]).to_kind(Kind::Half)));
        let metadata: HashMap<_, _> =
            ["step", "seed", "model", "note"].map(|key| (key.to_owned(), key.repeat(2))).into();
        let write = |tensors: &[(&str, Tensor)]| {
            // A fresh map each time has its own order.
            to_safetensors(named(tensors), metadata.iter().map(|(k, v)| (k.clone(), v.clone())).collect()).unwrap()
        };
        let (a2, b2) = (("a", a.1.shallow_clone()), ("b", b.1.shallow_clone()));
        let bytes = write(&[a, b]);
        assert_eq!(bytes, write(&[b2, a2]));
        let read = Checkpoint::from_safetensors(bytes).unwrap();
        assert_eq!(read.metadata(), &metadata);
        assert_eq!(read.kind("b"), Some(Kind::Half));
        assert_eq!(read.tensor("a").unwrap(), ramp(&[2, 3]));
    }

    #[test]
    fn every_element_type_survives_a_round_trip() {
        let kinds =
            [Kind::Uint8, Kind::Int8, Kind::Int16, Kind::Int, Kind::Int64, Kind::Half, Kind::BFloat16, Kind::Float];
        for kind in kinds.into_iter().chain([Kind::Double, Kind::Bool]) {
            let transposed = ramp(&[2, 3]).to_kind(kind).tr();
            let read = file(&[("t", transposed.shallow_clone()), ("empty", ramp(&[0, 3])), ("scalar", ramp(&[]))]);
            assert_eq!(read.tensor("t").unwrap(), transposed, "{kind:?}");
            assert_eq!(read.shape("empty"), Some([0, 3].as_slice()));
            assert_eq!(read.tensor("scalar").unwrap().size(), [0i64; 0]);
        }
    }

    #[test]
    fn loading_is_strict_and_names_everything_that_differs() {
        let vs = nn::VarStore::new(Device::Cpu);
        let weight = (vs.root() / "layer" / 0).var("weight", &[2, 3], Init::Const(7.));
        let _bias = (vs.root() / "layer" / 0).var("bias", &[2], Init::Const(7.));
        let wrong = file(&[("layer.0.weight", ramp(&[3, 2])), ("layer.1.weight", ramp(&[1]))]);
        let message = wrong.load_into(&vs).unwrap_err().to_string();
        assert_eq!(
            message,
            "the weights (in memory) do not fit the model: 1 missing: layer.0.bias; 1 unexpected: layer.1.weight; \
             1 wrong shape: layer.0.weight [3, 2] instead of [2, 3]"
        );
        assert_eq!(weight.double_value(&[0, 0]), 7., "a failed load changes nothing");

        let right = file(&[("layer.0.weight", ramp(&[2, 3]).to_kind(Kind::Half)), ("layer.0.bias", ramp(&[2]))]);
        right.load_into(&vs).unwrap();
        assert_eq!(weight.detach(), ramp(&[2, 3]), "converted to the type of the variable");
        assert!(weight.requires_grad(), "and still trainable");
    }

    #[test]
    fn a_long_list_of_names_is_cut() {
        let mismatch = Mismatch { missing: (0..25).map(|i| format!("w{i}")).collect(), ..Default::default() };
        let text = mismatch.to_string();
        assert!(text.starts_with("25 missing: w0, ") && text.ends_with("w19 and 5 more"), "{text}");
    }

    #[test]
    fn names_are_changed_selected_and_split() {
        let whole = file(&[("a.qkv", ramp(&[6, 2])), ("a.b", ramp(&[1])), ("ab.c", ramp(&[1]))]);
        assert_eq!(whole.clone().select("a").names().collect::<Vec<_>>(), ["b", "qkv"]);
        let thirds = |name: &str| name.ends_with("qkv").then(|| ["q", "k", "v"].map(str::to_owned).to_vec());
        let split = whole.clone().split(thirds).unwrap();
        assert_eq!(split.tensor("k").unwrap(), ramp(&[6, 2]).narrow(0, 2, 2));
        assert!(split.split(|name| (name == "q").then(|| thirds("qkv").unwrap())).is_err(), "2 rows, 3 parts");
        let renamed = whole.clone().rename(|name| name.strip_prefix("a.").map(str::to_owned)).unwrap();
        assert_eq!(renamed.names().collect::<Vec<_>>(), ["b", "qkv"]);
        assert!(whole.clone().rename(|_| Some("same".to_owned())).is_err());
        assert_eq!(whole.clone().state_dict().len(), 3);
    }

    #[test]
    fn shards_are_one_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).unwrap();
        let shard = |name: &str| to_safetensors(named(&[(name, ramp(&[2]))]), HashMap::new()).unwrap();
        write("model-1.safetensors", &shard("a"));
        write("model-2.safetensors", &shard("b"));
        let index = |map: &str| write("model.safetensors.index.json", map.as_bytes());
        index(r#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#);
        assert_eq!(Checkpoint::open(folder.path()).unwrap().names().collect::<Vec<_>>(), ["a", "b"]);
        let files = ["model.safetensors.index.json", "model-1.safetensors", "model-2.safetensors"];
        assert_eq!(Checkpoint::files(folder.path()), files.map(|file| folder.path().join(file)));
        index(r#"{"weight_map": {"a": "model-1.safetensors", "c": "model-2.safetensors"}}"#);
        assert!(
            Checkpoint::open(folder.path()).unwrap_err().to_string().contains("model-2.safetensors has no tensor c")
        );
        index(r#"{"weight_map": {"a": "../model-1.safetensors"}}"#);
        assert!(Checkpoint::open(folder.path()).unwrap_err().to_string().contains("does not lie beside it"));
    }

    #[test]
    fn a_file_that_is_no_checkpoint_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let message = |bytes: &[u8]| {
            let path = folder.path().join("weights");
            std::fs::write(&path, bytes).unwrap();
            Checkpoint::open(path).unwrap_err().to_string()
        };
        assert!(message(b"").contains("neither safetensors nor"));
        assert!(message(b"<html>not found</html>").contains("neither safetensors nor"));
        assert!(message(b"version https://git-lfs.github.com/spec/v1\n").contains("git lfs pull"));
        assert!(message(b"{\"weights\": 1}").contains("missing field `weight_map`"));
        assert!(message(b"\x80\x02}q\x00.").contains("not one that torch.save wrote"));
        assert!(message(b"PK\x03\x04").contains("invalid Zip archive"));
        assert!(Checkpoint::open(folder.path()).unwrap_err().to_string().contains("has none of model.safetensors, "));
        assert!(Checkpoint::open(folder.path().join("none")).unwrap_err().to_string().starts_with("cannot read"));
    }
}
