//! Weights in the formats in which they are published: safetensors (one file or sharded) and the files of `torch.save`
//! (zip or legacy, nested or flat). The format is recognised by the content, not by the name. A pickle is parsed and
//! never executed.
//!
//! Opening maps the file and reads its header. A tensor is copied out when it is asked for, and the memory of its part
//! of the map is given back. Opening, names and shapes need no libtorch, so the driver may ask for them.

mod entry;
mod error;
mod format;
mod map;
mod mapped;
mod pickle;
mod safe;
mod torch;
mod wrappers;

pub use super::mismatch::Mismatch;
pub use error::CheckpointError;
pub use format::Format;
pub use mapped::Mapped;
pub use safe::to_safetensors;

use super::architecture::{self, Part, Recognised};
use bytes::Bytes;
use entry::{Entry, same_shape};
use map::Map;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tch::{Device, Kind, TchError, Tensor, nn};

/// The weight files that a folder in the Hugging Face layout may hold; the first that exists is read.
pub const FILES: [&str; 10] = [
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

/// Levels that training programs put above the weights, outermost first; the last is DeepSpeed's.
const LEVELS: [&str; 5] = ["state_dict", "model_state_dict", "model", "teacher", "module"];

/// Named tensors in a file. Nested dicts and lists are flattened: `{"a": {"b": t}}` is `a.b`.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    path: PathBuf,
    entries: BTreeMap<String, Entry>,
    /// The names of the nested dicts of the file. They are kept because a dot in the name of a tensor need not come
    /// from one.
    containers: BTreeSet<String>,
    metadata: HashMap<String, String>,
    format: Format,
    /// The files; empty for weights in memory.
    maps: Vec<Map>,
    /// The names and shapes of the file, before any renaming.
    published: Arc<BTreeMap<String, Vec<i64>>>,
}

/// The index of a sharded file: each tensor's name and the file beside the index that holds it.
#[derive(serde::Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Returns the weight file of a folder.
fn chosen(folder: &Path) -> Option<PathBuf> {
    FILES.iter().map(|file| folder.join(file)).find(|file| file.exists())
}

/// Describes a folder without weights: the files that would work, and the folders in it that have weights.
fn no_weights(folder: &Path) -> String {
    let below = std::fs::read_dir(folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let mut below: Vec<String> = below
        .filter(|path| path.is_dir() && chosen(path).is_some())
        .filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
        .collect();
    below.sort();
    let none = "the folder has no model.safetensors, diffusion_pytorch_model.safetensors or .bin, pytorch_model.bin, nor the \
                index of one in shards";
    match below.as_slice() {
        [] => none.to_owned(),
        below => format!("{none}, but these folders in it have: {}", below.join(", ")),
    }
}

fn map(path: &Path) -> Result<Map, CheckpointError> {
    Map::open(path).map_err(|source| CheckpointError::Io { path: path.to_owned(), source })
}

/// Returns true if a file is JSON, and so the index of a sharded one.
fn is_index(map: &Map) -> bool {
    map.as_ref().first() == Some(&b'{')
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
            return Self::open(chosen(path).ok_or_else(|| format_error(path, no_weights(path)))?);
        }
        let map = map(path)?;
        if is_index(&map) { Self::open_shards(path, map.as_ref()) } else { Self::read(path, map) }
    }

    /// Reads a safetensors file that is in memory already.
    ///
    /// # Errors
    /// [`CheckpointError::Format`].
    pub fn from_safetensors(bytes: impl Into<Bytes>) -> Result<Self, CheckpointError> {
        Self::parse(Path::new("(in memory)"), &bytes.into(), vec![])
    }

    /// Reads one file that is not an index.
    fn read(path: &Path, map: Map) -> Result<Self, CheckpointError> {
        Self::parse(path, &map.bytes(), vec![map])
    }

    fn parse(path: &Path, bytes: &Bytes, maps: Vec<Map>) -> Result<Self, CheckpointError> {
        let (format, tensors, metadata) = format::read(bytes).map_err(|reason| format_error(path, reason))?;
        let torch::Tensors { entries, containers } = tensors;
        Ok(Self { path: path.to_owned(), entries, containers, metadata, format, maps, published: Arc::default() }
            .as_published())
    }

    fn as_published(mut self) -> Self {
        let shapes = self.entries.iter().map(|(name, entry)| (name.clone(), entry.shape.clone()));
        self.published = Arc::new(shapes.collect());
        self
    }

    /// Returns the files that [`Checkpoint::open`] reads: one, or an index and its shards. A path without weights is
    /// returned as it is.
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
            .map_err(|error| format_error(path, format!("it is JSON and no index of a sharded file: {error}")))?;
        let mut whole = Self {
            path: path.to_owned(),
            entries: BTreeMap::new(),
            containers: BTreeSet::new(),
            metadata: HashMap::new(),
            format: Format::Sharded,
            maps: vec![],
            published: Arc::default(),
        };
        for shard in index.weight_map.values().collect::<BTreeSet<_>>() {
            if Path::new(shard).file_name() != Some(shard.as_ref()) {
                return Err(format_error(path, format!("its shard {shard} does not lie beside it")));
            }
            let file = path.with_file_name(shard);
            let map = map(&file)?;
            if is_index(&map) {
                return Err(format_error(path, format!("its shard {shard} is itself an index")));
            }
            let shard = Self::read(&file, map)?;
            whole.entries.extend(shard.entries);
            whole.metadata.extend(shard.metadata);
            whole.maps.extend(shard.maps);
        }
        match index.weight_map.iter().find(|(name, _)| !whole.entries.contains_key(*name)) {
            Some((name, shard)) => Err(format_error(path, format!("its shard {shard} has no tensor {name}"))),
            None => Ok(whole.as_published()),
        }
    }

    /// Returns the file that was opened; for a folder, the file chosen in it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the `__metadata__` of a safetensors file; empty for the other formats.
    pub fn metadata(&self) -> &HashMap<String, String> {
        &self.metadata
    }

    /// Returns the format of the file.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Returns the names of the tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Returns the number of tensors.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns true if there is no tensor, as after a [`select`](Self::select) that matches nothing.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Returns true if a tensor has this name.
    pub fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// Returns the shape of a tensor without reading it.
    pub fn shape(&self, name: &str) -> Option<&[i64]> {
        self.entries.get(name).map(|entry| entry.shape.as_slice())
    }

    /// Returns the element type of a tensor without reading it. None also for a type that libtorch lacks.
    pub fn kind(&self, name: &str) -> Option<Kind> {
        self.entries.get(name)?.kind.clone().ok()
    }

    /// Returns the element type of a tensor as safetensors names it, also if libtorch lacks it.
    pub fn dtype(&self, name: &str) -> Option<String> {
        self.entries.get(name).map(|entry| entry.kind.clone().map_or_else(|name| name, safe::kind_name))
    }

    /// Copies one tensor out of the file: on the CPU, dense, in the type of the file.
    ///
    /// # Errors
    /// [`CheckpointError::NoTensor`]; [`CheckpointError::Format`] for an element type that libtorch cannot compute
    /// with.
    pub fn tensor(&self, name: &str) -> Result<Tensor, CheckpointError> {
        let (entry, kind) = self.entry(name)?;
        entry.tensor(kind, &self.release()).map_err(|source| self.torch_error(name, source))
    }

    /// Returns one tensor in the type of the file without a copy, if it can be read where it lies in the map. If its
    /// elements are not aligned, it is copied.
    ///
    /// # Errors
    /// The errors of [`tensor`](Self::tensor).
    pub fn mapped(&self, name: &str) -> Result<Mapped, CheckpointError> {
        let (entry, kind) = self.entry(name)?;
        match entry.mapped(kind) {
            Some(mapped) => mapped.map_err(|source| self.torch_error(name, source)),
            None => Ok(Mapped::owned(self.tensor(name)?)),
        }
    }

    /// Copies one tensor to a device, converted to `to`. No memory is needed beside that of the copy.
    ///
    /// # Errors
    /// The errors of [`tensor`](Self::tensor).
    pub fn converted(&self, name: &str, to: Kind, device: Device) -> Result<Tensor, CheckpointError> {
        let (entry, kind) = self.entry(name)?;
        let copy = || {
            let mut tensor = Tensor::f_empty(&entry.shape, (to, device))?;
            entry.copy_to(kind, &mut tensor, &self.release())?;
            Ok(tensor)
        };
        copy().map_err(|source| self.torch_error(name, source))
    }

    /// Gives back the memory that reading a [mapped](Self::mapped) tensor took. It can still be read.
    pub fn give_back(&self, name: &str) {
        if let Ok((entry, kind)) = self.entry(name) {
            entry.give_back(kind, &self.release());
        }
    }

    /// Copies every tensor out of the file.
    ///
    /// # Errors
    /// The errors of [`tensor`](Self::tensor).
    pub fn tensors(&self) -> Result<BTreeMap<String, Tensor>, CheckpointError> {
        self.names().map(|name| Ok((name.to_owned(), self.tensor(name)?))).collect()
    }

    /// Renames every tensor to what `f` returns for its name, or drops it if that is None.
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

    /// Keeps the tensors whose names `f` is true for.
    pub fn retain(mut self, f: impl Fn(&str) -> bool) -> Self {
        self.entries.retain(|name, _| f(name));
        self
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

    /// Returns the part of a file with all parts that lies below `prefix`, as [`select`](Self::select) does. A file
    /// that has nothing there is taken for the part itself and returned whole.
    pub fn part(self, prefix: &str) -> Self {
        if self.has_part(prefix) { self.select(prefix) } else { self }
    }

    /// Returns true if a tensor lies below `prefix`.
    pub fn has_part(&self, prefix: &str) -> bool {
        self.names().any(|name| name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('.')))
    }

    /// Steps into the dict in which a training program keeps the weights (`state_dict`, `model_state_dict`, `model`,
    /// `teacher`), also if two are nested. A flat file keeps a `model.` before its names, unless a published
    /// architecture stands below it. The parts of names that wrappers such as DataParallel and torch.compile add are
    /// removed.
    pub fn state_dict(mut self) -> Self {
        let holds = |this: &Self, level: &str| {
            this.containers.contains(level) && this.names().any(|name| name.starts_with(&format!("{level}.")))
        };
        while let Some(level) = LEVELS.into_iter().find(|level| holds(&self, level)) {
            self = self.select(level);
        }
        self.unwrapped()
    }

    /// Fills the variables of a model, converted to their type and device. The names and shapes must be the same on
    /// both sides, but for dimensions of 1 at the end of a shape: a 1x1 convolution is a matrix. If they are not, no
    /// variable is changed.
    ///
    /// No memory is needed beside that of the variables: each part of the file is given back once it is copied.
    ///
    /// # Errors
    /// [`CheckpointError::Mismatch`] lists every name that does not fit.
    pub fn load_into(&self, vs: &nn::VarStore) -> Result<(), CheckpointError> {
        self.fill(&vs.variables())
    }

    /// Does as [`load_into`](Self::load_into), for variables that are only a part of a store.
    ///
    /// # Errors
    /// The errors of [`load_into`](Self::load_into).
    pub fn fill(&self, variables: &HashMap<String, Tensor>) -> Result<(), CheckpointError> {
        let variables: BTreeMap<_, _> = variables.iter().map(|(name, x)| (name.clone(), x.shallow_clone())).collect();
        let wrong = |(name, variable): (&String, &Tensor)| {
            let (shape, size) = (self.shape(name)?, variable.size());
            (!same_shape(shape, &size)).then(|| (name.clone(), shape.to_vec(), size))
        };
        let mismatch = Mismatch {
            missing: variables.keys().filter(|name| !self.contains(name)).cloned().collect(),
            unexpected: self.names().filter(|name| !variables.contains_key(*name)).map(str::to_owned).collect(),
            shapes: variables.iter().filter_map(wrong).collect(),
        };
        if !mismatch.is_empty() {
            let looks_like = self.looks_like();
            return Err(CheckpointError::Mismatch { path: self.path.clone(), mismatch, looks_like });
        }
        // Tensors are copied in the order of the file, because the system reads ahead.
        let mut variables: Vec<(String, Tensor)> = variables.into_iter().collect();
        variables.sort_by_key(|(name, _)| self.entries.get(name).map(Entry::place));
        let _no_grad = tch::no_grad_guard();
        for (name, variable) in &mut variables {
            let (entry, kind) = self.entry(name)?;
            entry.copy_to(kind, variable, &self.release()).map_err(|source| self.torch_error(name, source))?;
        }
        Ok(())
    }

    /// Recognises the published architectures in the file by its names and shapes.
    pub fn recognise(&self) -> Recognised {
        architecture::recognise(self.shapes())
    }

    /// Returns the published architecture that fits all of the file exactly; quicker than
    /// [`recognise`](Self::recognise).
    pub fn architecture(&self) -> Option<Part> {
        architecture::whole(self.shapes())
    }

    fn shapes(&self) -> impl Iterator<Item = (&str, &[i64])> {
        self.entries.iter().map(|(name, entry)| (name.as_str(), entry.shape.as_slice()))
    }

    /// Describes the file in a few words, by the names that it had before any renaming.
    fn looks_like(&self) -> Option<String> {
        let published = self.published.iter().map(|(name, shape)| (name.as_str(), shape.as_slice()));
        architecture::recognise(published).looks_like()
    }

    /// Returns the error for weights that are not those of a `wanted`. `lacks` says what is missing, as `no conv1`.
    pub(in crate::models) fn foreign(&self, wanted: &str, lacks: &str) -> CheckpointError {
        let looks_like = self.looks_like().map_or(String::new(), |what| format!("; it looks like {what}"));
        format_error(&self.path, format!("it is no {wanted}: it has {lacks}{looks_like}"))
    }

    /// Returns a tensor in its file with its element type; fails if libtorch cannot compute with that type.
    fn entry(&self, name: &str) -> Result<(&Entry, Kind), CheckpointError> {
        let no_tensor = || CheckpointError::NoTensor { path: self.path.clone(), name: name.to_owned() };
        let entry = self.entries.get(name).ok_or_else(no_tensor)?;
        let unknown = |dtype| format_error(&self.path, format!("{name} has the element type {dtype}"));
        Ok((entry, entry.kind.clone().map_err(unknown)?))
    }

    /// Returns a function that gives back the memory of a part of the files.
    fn release(&self) -> impl Fn(&[u8]) {
        |part| self.maps.iter().for_each(|map| map.release(part))
    }

    fn torch_error(&self, name: &str, source: TchError) -> CheckpointError {
        CheckpointError::Torch { path: self.path.clone(), name: name.to_owned(), source }
    }
}

/// Reads the `config.json` in a folder of weights.
///
/// # Errors
/// [`CheckpointError::Io`] if there is none, and [`CheckpointError::Format`] if it is not understood.
pub(in crate::models) fn read_config<C>(
    folder: impl AsRef<Path>,
    parse: impl FnOnce(&str) -> Result<C, String>,
) -> Result<C, CheckpointError> {
    let path = folder.as_ref().join("config.json");
    let text = std::fs::read_to_string(&path).map_err(|source| CheckpointError::Io { path: path.clone(), source })?;
    parse(&text).map_err(|problem| format_error(&path, problem))
}

pub(in crate::models) fn format_error(path: &Path, reason: String) -> CheckpointError {
    CheckpointError::Format { path: path.to_owned(), reason }
}

#[cfg(test)]
mod tests;
