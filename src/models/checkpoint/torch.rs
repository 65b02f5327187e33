//! The files of `torch.save`: a pickle that names storages, and the storages, in a zip (since PyTorch 1.6) or one after
//! the other (before). The layouts are those of `torch/serialization.py` and `torch/_utils.py`.

use super::{
    entry::Entry,
    pickle::{Id, Pickle, Value},
};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{Cursor, Read};
use tch::Kind;

/// The number in the first pickle of a pre-1.6 file.
const MAGIC: i128 = 0x1950_a86a_20f9_469c_fc6c;
/// The largest depth of nesting: more than any training program writes.
const MAX_DEPTH: usize = 64;
/// The largest size of the names of all containers and tensors, about, in bytes. Without a limit, a container that
/// holds itself many times over would be walked for ever.
const MAX_NAMES: usize = 1 << 27;
/// The bytes that a container takes beside its name until it is walked.
const PENDING: usize = 64;
/// The largest number of dimensions of a tensor: more than libtorch has.
const MAX_DIMS: usize = 64;
/// The largest size of compressed members, in multiples of the size of their file. Weights hardly compress.
const MAX_INFLATED: u64 = 8;

/// The tensors of a file by dotted name, and the names of the containers that hold some.
#[derive(Debug, Default)]
pub(super) struct Tensors {
    pub(super) entries: BTreeMap<String, Entry>,
    pub(super) containers: BTreeSet<String>,
}

type Result<T> = std::result::Result<T, String>;

/// Reads a zip archive as `torch.save` writes it.
pub(super) fn read_zip(file: &Bytes) -> Result<Tensors> {
    let damaged =
        |error| format!("it begins like a zip archive and is cut off or damaged ({error}); download it again");
    let zip = zip::ZipArchive::new(Cursor::new(file.clone())).map_err(damaged)?;
    let mut archive = Archive { file, zip, room: MAX_INFLATED * file.len() as u64 };
    let folder =
        |name: &str| name.strip_suffix("data.pkl").filter(|at| at.is_empty() || at.ends_with('/')).map(str::to_owned);
    let root = archive.zip.file_names().find_map(folder);
    let Some(root) = root else {
        let reason =
            "it is a zip archive without a data.pkl, so torch.save did not write it; unpack it if weights are in it";
        return Err(reason.to_owned());
    };
    if archive.has(&format!("{root}constants.pkl")) {
        let reason =
            "it is TorchScript; in Python, torch.save(torch.jit.load(FILE).state_dict(), NEW) makes weights of it";
        return Err(reason.to_owned());
    }
    let byteorder = format!("{root}byteorder");
    if archive.has(&byteorder) && archive.member(&byteorder)?.starts_with(b"big") {
        return Err("it was written by a big-endian machine".to_owned());
    }
    let bytes = archive.member(&format!("{root}data.pkl"))?;
    let pickle = Pickle::parse(&bytes).map_err(|error| error.to_string())?;
    walk(&pickle, |storage| archive.member(&format!("{root}data/{}", storage.key)))
}

struct Archive<'a> {
    file: &'a Bytes,
    zip: zip::ZipArchive<Cursor<Bytes>>,
    /// The bytes that compressed members may still take.
    room: u64,
}

impl Archive<'_> {
    fn has(&self, name: &str) -> bool {
        self.zip.index_for_name(name).is_some()
    }

    /// Returns one member, without a copy if it is stored uncompressed, as `torch.save` stores it.
    fn member(&mut self, name: &str) -> Result<Bytes> {
        let broken = |error: &dyn std::fmt::Display| format!("its member {name} is broken: {error}");
        let index = self.zip.index_for_name(name).ok_or_else(|| format!("it has no member {name}"))?;
        let member = self.zip.by_index(index).map_err(|error| broken(&error))?;
        let size = member.size();
        if let (zip::CompressionMethod::Stored, Some(start)) = (member.compression(), member.data_start()) {
            let end = usize::try_from(start.saturating_add(size)).unwrap_or(usize::MAX);
            let start = usize::try_from(start).unwrap_or(usize::MAX);
            return if end <= self.file.len() {
                Ok(self.file.slice(start..end))
            } else {
                Err(broken(&"it is cut off"))
            };
        }
        let much = || broken(&format!("it is compressed from more than {MAX_INFLATED} times the file; unpack it"));
        self.room = self.room.checked_sub(size).ok_or_else(much)?;
        let mut bytes = Vec::new();
        member.take(size).read_to_end(&mut bytes).map_err(|error| broken(&error))?;
        Ok(bytes.into())
    }
}

/// Reads a pre-1.6 file: magic, version, system, the object, the keys of its storages, then per key its length (i64)
/// and its elements.
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
        let cut_off = || format!("storage {key} is cut off; download it again");
        let length = file.get(at..).and_then(|rest| rest.first_chunk()).ok_or_else(cut_off)?;
        let bytes = usize::try_from(i64::from_le_bytes(*length)).ok().and_then(|length| length.checked_mul(width));
        let end = bytes.and_then(|bytes| bytes.checked_add(at + 8)).filter(|&end| end <= file.len());
        let end = end.ok_or_else(cut_off)?;
        placed.insert(key.to_owned(), file.slice(at + 8..end));
        at = end;
    }
    walk(&pickle, |storage| {
        placed.get(storage.key).cloned().ok_or_else(|| format!("it has no storage {}", storage.key))
    })
}

/// A persistent id: `("storage", type, key, device, length[, view])`.
struct Storage<'a> {
    key: &'a str,
    /// Element type, for typed storages.
    kind: std::result::Result<Kind, String>,
    /// Bytes per element, if the type is known.
    width: Option<usize>,
    /// Index of the first element. In a pre-1.6 file, a storage may be a part of another, `(key, offset, length)`.
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

/// Returns the element type of a storage such as `torch.FloatStorage`, or its name if it has none.
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

/// Returns the element type for a dtype such as `torch.float32`, or its name if libtorch lacks it.
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

/// Recognises the calls that rebuild a tensor, also inside of the wrappers that make it a parameter or give it another
/// class. None for any other value.
fn view(pickle: &Pickle, id: Id) -> Result<Option<View<'_>>> {
    let Value::Call { mut function, mut arguments, .. } = *pickle.get(id) else { return Ok(None) };
    for _ in 0..MAX_DEPTH {
        let Some(name) = pickle.global(function) else { return Ok(None) };
        match (name, pickle.sequence(arguments).unwrap_or_default()) {
            ("torch._tensor._rebuild_from_type_v2", &[inner, _class, inner_arguments, ..]) => {
                (function, arguments) = (inner, inner_arguments);
            }
            (
                "torch._utils._rebuild_parameter"
                | "torch._utils._rebuild_parameter_with_state"
                | "torch.nn.parameter.Parameter",
                &[data, ..],
            ) => match *pickle.get(data) {
                Value::Call { function: inner, arguments: inner_arguments, .. } => {
                    (function, arguments) = (inner, inner_arguments);
                }
                _ => return Ok(None),
            },
            (
                "torch._utils._rebuild_tensor" | "torch._utils._rebuild_tensor_v2",
                &[storage, offset, shape, strides, ..],
            ) => {
                return rebuild(pickle, storage, offset, shape, strides).map(Some);
            }
            ("torch._utils._rebuild_tensor_v3", &[storage, offset, shape, strides, _grad, _hooks, dtype, ..]) => {
                let mut view = rebuild(pickle, storage, offset, shape, strides)?;
                view.storage.kind = dtype_kind(pickle.global(dtype).unwrap_or("an unnamed dtype"));
                return Ok(Some(view));
            }
            _ => return Ok(None),
        }
    }
    Ok(None)
}

fn rebuild(pickle: &Pickle, storage: Id, offset: Id, shape: Id, strides: Id) -> Result<View<'_>> {
    let ints = |id| -> Option<Vec<i64>> {
        let ints = pickle.sequence(id).filter(|ints| ints.len() <= MAX_DIMS)?;
        ints.iter().map(|&int| pickle.int(int)).collect()
    };
    let parse = || {
        let storage = Storage::parse(pickle, storage)?;
        let offset = pickle.int::<usize>(offset)?.checked_add(storage.offset)?;
        Some(View { storage, offset, shape: ints(shape)?, strides: ints(strides)? })
    };
    parse().ok_or_else(|| "it has no valid storage, offset, shape and strides".to_owned())
}

/// Finds the tensors below the root. Dict keys and list positions become the parts of their names.
fn walk(pickle: &Pickle, mut bytes: impl FnMut(&Storage) -> Result<Bytes>) -> Result<Tensors> {
    let mut found = Tensors::default();
    let mut storages: HashMap<String, Bytes> = HashMap::new();
    let mut pending = vec![(pickle.root, String::new(), 0)];
    let mut taken = 0;
    while let Some((id, name, depth)) = pending.pop() {
        let named = |error| format!("{name}: {error}");
        if let Some(View { storage, offset, shape, strides }) = view(pickle, id).map_err(named)? {
            let bytes = match storages.get(storage.key) {
                Some(bytes) => bytes.clone(),
                None => storages.entry(storage.key.to_owned()).or_insert(bytes(&storage).map_err(named)?).clone(),
            };
            let entry = Entry::view(bytes, offset, shape, strides, storage.kind)
                .ok_or_else(|| format!("{name} reaches outside of its storage"))?;
            if found.entries.insert(name.clone(), entry).is_some() {
                return Err(format!("two tensors are named {name}"));
            }
            continue;
        }
        if matches!(pickle.get(id), Value::Dict(_) | Value::Call { .. }) {
            found.containers.insert(name.clone());
        }
        let below = |key: &str| if name.is_empty() { key.to_owned() } else { format!("{name}.{key}") };
        // The limits are checked before memory is taken.
        let mut child = |key: &str, value: Id| -> Result<()> {
            let holds =
                matches!(pickle.get(value), Value::Dict(_) | Value::Call { .. } | Value::Tuple(_) | Value::List(_));
            taken += if holds { PENDING + name.len() + key.len() } else { 1 };
            if taken > MAX_NAMES || (holds && depth == MAX_DEPTH) {
                return Err(format!("its containers are nested too deep at {:.60}", below(key)));
            }
            if holds {
                pending.push((value, below(key), depth + 1));
            }
            Ok(())
        };
        match pickle.get(id) {
            Value::Dict(items) => each_item(pickle, items, &mut child)?,
            Value::Call { function, arguments, items } => {
                each_item(pickle, &pairs_given(pickle, *function, *arguments), &mut child)?;
                each_item(pickle, items, &mut child)?;
            }
            Value::Tuple(items) | Value::List(items) => {
                items.iter().enumerate().try_for_each(|(index, &item)| child(&index.to_string(), item))?;
            }
            _ => (),
        }
    }
    Ok(found)
}

/// Returns the items of `OrderedDict([[key, value], ...])`, as Python 2 wrote it.
fn pairs_given(pickle: &Pickle, function: Id, arguments: Id) -> Vec<(Id, Id)> {
    let list = match (pickle.global(function), pickle.sequence(arguments)) {
        (Some("collections.OrderedDict"), Some(&[list])) => pickle.sequence(list).unwrap_or_default(),
        _ => &[],
    };
    let pair = |&id: &Id| pickle.sequence(id).and_then(|pair| Some((*pair.first()?, *pair.get(1)?)));
    list.iter().filter_map(pair).collect()
}

fn each_item(pickle: &Pickle, items: &[(Id, Id)], child: &mut impl FnMut(&str, Id) -> Result<()>) -> Result<()> {
    items.iter().try_for_each(|&(key, value)| match pickle.get(key) {
        Value::Str(key) => child(key, value),
        Value::Int(key) => child(&key.to_string(), value),
        _ => Ok(()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{io::Write, path::Path};
    use zip::{CompressionMethod, write::SimpleFileOptions};

    /// Returns a legacy file around a hand-written object pickle, with one storage `0` of four floats.
    fn legacy(object: &[u8]) -> Bytes {
        let magic = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.";
        let rest = b"\x80\x02](X\x01\x00\x00\x000e.\x04\x00\x00\x00\x00\x00\x00\x00";
        let elements = [1f32, 2., 3., 4.].map(f32::to_le_bytes).concat();
        [magic, b"\x80\x02M\xe9\x03.".as_slice(), b"\x80\x02}.", object, rest, &elements].concat().into()
    }

    /// Returns the pickle of `_rebuild_tensor_v2(storage 0, offset, (size,), (stride,), False, {})`.
    fn tensor(offset: u8, size: u8, stride: u8) -> Vec<u8> {
        let head = b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n\
                     X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04NtQ";
        [head.as_slice(), b"K", &[offset], b"K", &[size], b"\x85K", &[stride], b"\x85\x89}tR"].concat()
    }

    fn text(text: &str) -> Vec<u8> {
        [b"X".as_slice(), &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat()
    }

    fn dict(items: &[(&str, Vec<u8>)]) -> Vec<u8> {
        let items: Vec<u8> = items.iter().flat_map(|(key, value)| [text(key), value.clone()].concat()).collect();
        [b"}(".as_slice(), &items, b"u"].concat()
    }

    /// Returns a zip archive around a hand-written object pickle, with the same storage.
    fn zipped(object: &[u8], method: CompressionMethod) -> Bytes {
        let mut zip = zip::ZipWriter::new(Cursor::new(vec![]));
        let elements = [1f32, 2., 3., 4.].map(f32::to_le_bytes).concat();
        for (member, content) in [("a/data.pkl", object), ("a/byteorder", b"little"), ("a/data/0", &elements)] {
            zip.start_file(member, SimpleFileOptions::default().compression_method(method)).unwrap();
            zip.write_all(content).unwrap();
        }
        zip.finish().unwrap().into_inner().into()
    }

    fn read(object: Vec<u8>) -> Result<Tensors> {
        read_legacy(&legacy(&[object, b".".to_vec()].concat()))
    }

    #[test]
    fn lists_and_numbered_dicts_are_named_by_position_and_number() {
        let list = [b"](".to_vec(), tensor(0, 4, 1), tensor(1, 2, 1), b"e".to_vec()].concat();
        let numbered = [b"}K\x07".to_vec(), tensor(2, 1, 1), b"s".to_vec()].concat();
        let found = read(dict(&[("list", list), ("state", numbered)])).unwrap();
        assert_eq!(found.entries.keys().collect::<Vec<_>>(), ["list.0", "list.1", "state.7"]);
        let second = found.entries["list.1"].tensor(Kind::Float, &|_| ()).unwrap();
        assert_eq!(Vec::<f32>::try_from(second).unwrap(), [2., 3.]);
    }

    #[test]
    fn a_call_is_never_made() {
        let touched = std::env::temp_dir().join(format!("vlmdiff-pickle-{}", std::process::id()));
        let command = format!("touch {}", touched.display());
        let call = [b"cposix\nsystem\n(".to_vec(), text(&command), b"tR".to_vec()].concat();
        let built = [b"cbuiltins\neval\n(".to_vec(), text("1"), b"t\x81}b".to_vec()].concat();
        let found = read(dict(&[("evil", call), ("object", built), ("w", tensor(0, 4, 1))])).unwrap();
        assert_eq!(found.entries.keys().collect::<Vec<_>>(), ["w"]);
        assert!(!Path::new(&touched).exists());
    }

    #[test]
    fn a_tensor_outside_of_its_storage_is_refused() {
        assert!(read(dict(&[("w", tensor(0, 2, 3))])).is_ok());
        for wrong in [tensor(1, 4, 1), tensor(0, 5, 1), tensor(0, 2, 4)] {
            assert_eq!(read(dict(&[("w", wrong)])).unwrap_err(), "w reaches outside of its storage");
        }
    }

    #[test]
    fn a_container_that_holds_itself_is_not_walked_for_ever() {
        let endless = |object: Vec<u8>| {
            let error = read(dict(&[("w", tensor(0, 4, 1)), ("endless", object)])).unwrap_err();
            assert!(error.starts_with("its containers are nested too deep at endless."), "{error}");
        };
        endless(b"]q\x00h\x00a".to_vec());
        // Thirty lists, each of which holds the one before twice: a billion paths.
        let mut twice = b"]q\x00".to_vec();
        for level in 0..30 {
            twice.extend([b"0](h".as_slice(), &[level], b"h", &[level], b"eq", &[level + 1]].concat());
        }
        endless(twice);
        // A list of itself, a million times.
        endless([b"]q\x00(".as_slice(), &b"h\x00".repeat(1 << 20), b"e"].concat());
        // A hundred thousand lists below the same long name.
        let (name, lists) = (text(&"endless.".repeat(1 << 17)), b"h\x00h\x01".repeat(100_000));
        endless([b"}(".as_slice(), &name, b"q\x00]q\x01", &lists, b"u"].concat());
        // A parameter of itself, through a list that is filled later.
        let parameter = b"]q\x00ctorch._utils\n_rebuild_parameter\nh\x00Rq\x010h\x00h\x01ah\x01".to_vec();
        assert!(read(dict(&[("p", parameter), ("w", tensor(0, 4, 1))])).is_ok());
    }

    #[test]
    fn a_shape_with_too_many_dimensions_is_refused() {
        let (head, tail) = (tensor(0, 1, 1), b"\x89}tR");
        let size = [b"(".as_slice(), &b"K\x01".repeat(65), b"t"].concat();
        let storage = &head[..head.len() - b"K\x01\x85K\x01\x85\x89}tR".len()];
        let error = read(dict(&[("w", [storage, &size, &size, tail].concat())])).unwrap_err();
        assert_eq!(error, "w: it has no valid storage, offset, shape and strides");
    }

    #[test]
    fn a_member_that_is_much_larger_than_its_file_is_refused() {
        let object =
            [text(&"m".repeat(1 << 20)), b"0".to_vec(), dict(&[("w", tensor(0, 4, 1))]), b".".to_vec()].concat();
        assert!(read_zip(&zipped(&object, CompressionMethod::Stored)).is_ok());
        let error = read_zip(&zipped(&object, CompressionMethod::Deflated)).unwrap_err();
        assert!(error.starts_with("its member a/data.pkl is broken: it is compressed from more than"), "{error}");
    }

    #[test]
    fn a_damaged_file_is_an_error_not_a_panic() {
        let whole = legacy(&[dict(&[("w", tensor(0, 4, 1))]), b".".to_vec()].concat());
        assert!(read_legacy(&whole).is_ok());
        for end in 0..whole.len() {
            assert!(read_legacy(&whole.slice(..end)).is_err(), "cut at {end}");
        }
        let object = [dict(&[("w", tensor(1, 2, 2)), ("v", tensor(0, 4, 1))]), b".".to_vec()].concat();
        let zips = [CompressionMethod::Stored, CompressionMethod::Deflated].map(|method| zipped(&object, method));
        for file in &zips {
            let found = read_zip(file).unwrap().entries["w"].tensor(Kind::Float, &|_| ()).unwrap();
            assert_eq!(Vec::<f32>::try_from(found).unwrap(), [2., 4.]);
        }
        for file in zips.into_iter().chain([whole]) {
            for at in 0..file.len() {
                for flip in [0x01, 0x80, 0xff] {
                    let mut damaged = file.to_vec();
                    damaged[at] ^= flip;
                    let damaged = Bytes::from(damaged);
                    let found = if damaged.starts_with(b"PK") { read_zip(&damaged) } else { read_legacy(&damaged) };
                    for entry in found.into_iter().flat_map(|found| found.entries.into_values()) {
                        // A flipped bit may make a huge view by a stride of 0: only small views are copied.
                        let small = entry.shape.iter().try_fold(1i64, |n, &size| n.checked_mul(size)) < Some(1 << 16);
                        if let (true, Ok(kind)) = (small, entry.kind.clone()) {
                            let _ = entry.tensor(kind, &|_| ()).unwrap();
                        }
                    }
                }
            }
        }
    }
}
