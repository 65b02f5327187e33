//! What `torch.save` writes: a pickle that names storages, and the storages, in a zip (since PyTorch 1.6) or one after
//! the other (before). The layouts are those of `torch/serialization.py` and `torch/_utils.py`.

use super::{entry::Entry, pickle::{Id, Pickle, Value}};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{Cursor, Read};
use tch::Kind;

/// First pickle of a pre-1.6 file.
const MAGIC: i128 = 0x1950_a86a_20f9_469c_fc6c;
/// Deeper nesting than any training program writes.
const MAX_DEPTH: usize = 64;
/// A container that holds itself many times over would otherwise be walked for ever.
const MAX_VISITS: usize = 1 << 24;
/// A longer name names no parameter.
const MAX_NAME: usize = 4096;

/// The tensors of a file by dotted name, and the names of the containers that hold some.
#[derive(Debug, Default)]
pub(super) struct Tensors {
    pub(super) entries: BTreeMap<String, Entry>,
    pub(super) containers: BTreeSet<String>,
}

type Result<T> = std::result::Result<T, String>;

/// Reads a zip archive as `torch.save` writes it.
pub(super) fn read_zip(file: &Bytes) -> Result<Tensors> {
    let mut archive = zip::ZipArchive::new(Cursor::new(file.clone())).map_err(|error| error.to_string())?;
    let root = archive.file_names().find_map(|name| name.strip_suffix("data.pkl")).map(str::to_owned);
    let Some(root) = root else { return Err("it is a zip archive without a data.pkl".to_owned()) };
    if archive.index_for_name(&format!("{root}byteorder")).is_some()
        && zip_member(file, &mut archive, &format!("{root}byteorder"))?.starts_with(b"big")
    {
        return Err("it was written by a big-endian machine".to_owned());
    }
    let bytes = zip_member(file, &mut archive, &format!("{root}data.pkl"))?;
    let pickle = Pickle::parse(&bytes).map_err(|error| error.to_string())?;
    walk(&pickle, |storage| zip_member(file, &mut archive, &format!("{root}data/{}", storage.key)))
}

/// One member, without a copy where it is stored uncompressed, as `torch.save` does.
fn zip_member(file: &Bytes, archive: &mut zip::ZipArchive<Cursor<Bytes>>, name: &str) -> Result<Bytes> {
    let broken = |error: &dyn std::fmt::Display| format!("its member {name} is broken: {error}");
    let index = archive.index_for_name(name).ok_or_else(|| format!("it has no member {name}"))?;
    let mut member = archive.by_index(index).map_err(|error| broken(&error))?;
    if let (zip::CompressionMethod::Stored, Some(start)) = (member.compression(), member.data_start()) {
        let end = usize::try_from(start.saturating_add(member.size())).unwrap_or(usize::MAX);
        let start = usize::try_from(start).unwrap_or(usize::MAX);
        return if end <= file.len() { Ok(file.slice(start..end)) } else { Err(broken(&"it is cut off")) };
    }
    let mut bytes = Vec::new();
    let size = member.size();
    member.by_ref().take(size).read_to_end(&mut bytes).map_err(|error| broken(&error))?;
    Ok(bytes.into())
}

/// Reads a pre-1.6 file: magic, version, system, the object, the keys of its storages, then per key its length (i64) and
/// its elements.
pub(super) fn read_legacy(file: &Bytes) -> Result<Tensors> {
    let mut at = 0;
    let mut next = || {
        let pickle = Pickle::parse(&file[at..]).map_err(|error| error.to_string())?;
        at += pickle.len;
        Ok::<_, String>((pickle, at))
    };
    let (magic, _) = next()?;
    if magic.int(magic.root) != Some(MAGIC) {
        return Err("it is a pickle, but not one that torch.save wrote".to_owned());
    }
    next()?;
    let (system, _) = next()?;
    if let Value::Dict(items) = system.get(system.root) {
        let big = |&(key, value): &(Id, Id)| {
            system.str(key) == Some("little_endian") && *system.get(value) == Value::Bool(false)
        };
        if items.iter().any(big) {
            return Err("it was written by a big-endian machine".to_owned());
        }
    }
    let (pickle, _) = next()?;
    let (keys, mut at) = next()?;

    // The order of the storages is in the last pickle, their element types in the one before.
    let storages = (0..pickle.values().len()).filter_map(|id| Storage::parse(&pickle, id));
    let storages: HashMap<&str, Storage> = storages.map(|storage| (storage.key, storage)).collect();
    let mut placed = HashMap::new();
    for &key in keys.sequence(keys.root).ok_or("its list of storages is missing")? {
        let key = keys.str(key).ok_or("a storage has no key")?;
        let storage = storages.get(key).ok_or_else(|| format!("storage {key} is used nowhere"))?;
        let width = storage.width.ok_or_else(|| format!("storage {key} has an unknown element type"))?;
        let cut_off = || format!("storage {key} is cut off");
        let length = file.get(at..).and_then(|rest| rest.first_chunk()).ok_or_else(cut_off)?;
        let bytes = usize::try_from(i64::from_le_bytes(*length)).ok().and_then(|length| length.checked_mul(width));
        let end = bytes.and_then(|bytes| bytes.checked_add(at + 8)).filter(|&end| end <= file.len());
        let end = end.ok_or_else(cut_off)?;
        placed.insert(key.to_owned(), file.slice(at + 8..end));
        at = end;
    }
    walk(&pickle, |storage| placed.get(storage.key).cloned().ok_or_else(|| format!("it has no storage {}", storage.key)))
}

/// A persistent id: `("storage", type, key, device, length[, view])`.
struct Storage<'a> {
    key: &'a str,
    /// Element type, for typed storages.
    kind: std::result::Result<Kind, String>,
    /// Bytes per element, where the type is known.
    width: Option<usize>,
    /// First element: pre-1.6 files know storages that are a part of another, `(key, offset, length)`.
    offset: usize,
}

impl<'a> Storage<'a> {
    fn parse(pickle: &'a Pickle, id: Id) -> Option<Self> {
        let Value::Persistent(id) = *pickle.get(id) else { return None };
        let &[tag, kind, key, _device, _length, ref view @ ..] = pickle.sequence(id)? else { return None };
        if pickle.str(tag) != Some("storage") {
            return None;
        }
        let name = pickle.global(kind)?;
        let kind = storage_kind(name);
        let width = match name {
            "torch.UntypedStorage" | "torch.storage.UntypedStorage" => Some(1),
            _ => kind.as_ref().ok().map(|kind| kind.elt_size_in_bytes()),
        };
        let offset = match view.first().and_then(|&view| pickle.sequence(view)) {
            Some(&[_key, offset, _length]) => pickle.int(offset)?,
            _ => 0,
        };
        Some(Self { key: pickle.str(key)?, kind, width, offset })
    }
}

/// `torch.FloatStorage` and its like.
fn storage_kind(name: &str) -> std::result::Result<Kind, String> {
    let known = name.strip_prefix("torch.").map(|name| name.strip_prefix("cuda.").unwrap_or(name));
    match known.and_then(|name| name.strip_suffix("Storage")) {
        Some("Float") => Ok(Kind::Float),
        Some("Half") => Ok(Kind::Half),
        Some("BFloat16") => Ok(Kind::BFloat16),
        Some("Double") => Ok(Kind::Double),
        Some("Long") => Ok(Kind::Int64),
        Some("Int") => Ok(Kind::Int),
        Some("Short") => Ok(Kind::Int16),
        Some("Char") => Ok(Kind::Int8),
        Some("Byte") => Ok(Kind::Uint8),
        Some("Bool") => Ok(Kind::Bool),
        Some("ComplexFloat") => Ok(Kind::ComplexFloat),
        Some("ComplexDouble") => Ok(Kind::ComplexDouble),
        _ => Err(name.to_owned()),
    }
}

/// `torch.float32` and its like.
fn dtype_kind(name: &str) -> std::result::Result<Kind, String> {
    match name {
        "torch.float32" => Ok(Kind::Float),
        "torch.float16" => Ok(Kind::Half),
        "torch.bfloat16" => Ok(Kind::BFloat16),
        "torch.float64" => Ok(Kind::Double),
        "torch.int64" => Ok(Kind::Int64),
        "torch.int32" => Ok(Kind::Int),
        "torch.int16" => Ok(Kind::Int16),
        "torch.int8" => Ok(Kind::Int8),
        "torch.uint8" => Ok(Kind::Uint8),
        "torch.bool" => Ok(Kind::Bool),
        "torch.complex64" => Ok(Kind::ComplexFloat),
        "torch.complex128" => Ok(Kind::ComplexDouble),
        "torch.float8_e5m2" => Ok(Kind::Float8e5m2),
        "torch.float8_e4m3fn" => Ok(Kind::Float8e4m3fn),
        _ => Err(name.to_owned()),
    }
}

/// A tensor as the pickle describes it.
struct View<'a> {
    storage: Storage<'a>,
    offset: usize,
    shape: Vec<i64>,
    strides: Vec<i64>,
}

/// Recognises the calls that rebuild a tensor. None for any other value.
fn view(pickle: &Pickle, id: Id) -> Result<Option<View<'_>>> {
    let Value::Call { mut function, mut arguments, .. } = *pickle.get(id) else { return Ok(None) };
    loop {
        let items = pickle.sequence(arguments).unwrap_or_default();
        // Wrappers: a loop, for they may wrap one another as deep as the file likes.
        match (pickle.global(function), items) {
            (Some("torch._tensor._rebuild_from_type_v2"), &[inner, _class, inner_arguments, ..]) => {
                (function, arguments) = (inner, inner_arguments);
                continue;
            }
            (
                Some(
                    "torch._utils._rebuild_parameter"
                    | "torch._utils._rebuild_parameter_with_state"
                    | "torch.nn.parameter.Parameter",
                ),
                &[data, ..],
            ) => {
                let Value::Call { function: inner, arguments: inner_arguments, .. } = *pickle.get(data) else {
                    return Ok(None);
                };
                (function, arguments) = (inner, inner_arguments);
                continue;
            }
            (
                Some(
                    name @ ("torch._utils._rebuild_tensor"
                    | "torch._utils._rebuild_tensor_v2"
                    | "torch._utils._rebuild_tensor_v3"),
                ),
                &[storage, offset, shape, strides, ref rest @ ..],
            ) => {
                let mut storage = Storage::parse(pickle, storage).ok_or("a tensor has no storage")?;
                if name.ends_with("_v3") {
                    let dtype = rest.get(2).and_then(|&dtype| pickle.global(dtype)).ok_or("a tensor has no dtype")?;
                    storage.kind = dtype_kind(dtype);
                }
                let ints = |id| pickle.sequence(id)?.iter().map(|&int| pickle.int(int)).collect::<Option<Vec<i64>>>();
                let offset = pickle.int::<usize>(offset).and_then(|offset| offset.checked_add(storage.offset));
                return match (offset, ints(shape), ints(strides)) {
                    (Some(offset), Some(shape), Some(strides)) => Ok(Some(View { storage, offset, shape, strides })),
                    _ => Err("a tensor has no valid offset, shape and strides".to_owned()),
                };
            }
            _ => return Ok(None),
        }
    }
}

/// Finds the tensors below the root. Dict keys and list positions become the parts of their names.
fn walk(pickle: &Pickle, mut bytes: impl FnMut(&Storage) -> Result<Bytes>) -> Result<Tensors> {
    let mut found = Tensors::default();
    let mut storages: HashMap<String, Bytes> = HashMap::new();
    let mut pending = vec![(pickle.root, String::new(), 0)];
    let mut visits = 0;
    while let Some((id, name, depth)) = pending.pop() {
        visits += 1;
        if depth > MAX_DEPTH || visits > MAX_VISITS || name.len() > MAX_NAME {
            return Err(format!("its containers are nested too deep at {:.60}", name));
        }
        if let Some(View { storage, offset, shape, strides }) =
            view(pickle, id).map_err(|error| format!("{name}: {error}"))?
        {
            let bytes = match storages.get(storage.key) {
                Some(bytes) => bytes.clone(),
                None => {
                    let bytes = bytes(&storage).map_err(|error| format!("{name}: {error}"))?;
                    storages.insert(storage.key.to_owned(), bytes.clone());
                    bytes
                }
            };
            let entry = Entry::view(bytes, offset, shape, strides, storage.kind)
                .ok_or_else(|| format!("{name} reaches outside of its storage"))?;
            let parents = name.match_indices('.').map(|(dot, _)| name[..dot].to_owned());
            found.containers.extend(parents);
            if found.entries.insert(name.clone(), entry).is_some() {
                return Err(format!("two tensors are named {name}"));
            }
            continue;
        }
        let mut child = |key: &str, value: Id| {
            let name = if name.is_empty() { key.to_owned() } else { format!("{name}.{key}") };
            pending.push((value, name, depth + 1));
        };
        match pickle.get(id) {
            Value::Dict(items) => each_item(pickle, items, &mut child),
            Value::Call { arguments, items, .. } => {
                // OrderedDict([[key, value], ...]), as Python 2 wrote it
                let given = pickle.sequence(*arguments).and_then(|arguments| pickle.sequence(*arguments.first()?));
                let pair = |&id: &Id| pickle.sequence(id).and_then(|pair| Some((*pair.first()?, *pair.get(1)?)));
                each_item(pickle, &given.unwrap_or_default().iter().filter_map(pair).collect::<Vec<_>>(), &mut child);
                each_item(pickle, items, &mut child);
            }
            Value::Tuple(items) | Value::List(items) => {
                items.iter().enumerate().for_each(|(index, &item)| child(&index.to_string(), item));
            }
            _ => (),
        }
    }
    Ok(found)
}

fn each_item(pickle: &Pickle, items: &[(Id, Id)], child: &mut impl FnMut(&str, Id)) {
    for &(key, value) in items {
        match pickle.get(key) {
            Value::Str(key) => child(key, value),
            Value::Int(key) => child(&key.to_string(), value),
            _ => (),
        }
    }
}
