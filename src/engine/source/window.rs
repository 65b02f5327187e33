//! Parts of a file, or of an object on a server, that are read as files of their own.

use std::{
    error::Error,
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    ops::Range,
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use object_store::{Error as Fault, GetOptions, ObjectMeta, ObjectStore};
use tokio::runtime::Handle;

/// The number of bytes that a request asks for while nothing is known of the object.
const BLOCK: u64 = 32 << 10;

/// The maximum number of bytes that a request asks for.
const LONGEST: u64 = 8 << 20;

const SHORTER: &str = "the archive ends before it did when it was opened; run again";

/// An object on a server, as it was when it was opened.
pub(super) struct Object {
    pub(super) meta: ObjectMeta,
    objects: Arc<dyn ObjectStore>,
    runtime: Handle,
    /// The number of bytes that the first request after a jump asks for.
    request: OnceLock<u64>,
}

/// The object is another one than when it was opened.
#[derive(Debug, thiserror::Error)]
#[error("the archive changed while it was being read; run again")]
pub(super) struct Changed;

impl Object {
    pub(super) fn new(meta: ObjectMeta, objects: Arc<dyn ObjectStore>, runtime: Handle) -> Self {
        Self { meta, objects, runtime, request: OnceLock::new() }
    }

    /// Reads a part.
    fn fetch(&self, range: Range<u64>) -> io::Result<Bytes> {
        let tag = self.meta.e_tag.clone().filter(|tag| !tag.starts_with("W/"));
        let options = GetOptions { range: Some(range.into()), if_match: tag, ..Default::default() };
        let get = async {
            let found = self.objects.get_opts(&self.meta.location, options).await?;
            // Servers that give no strong tag cannot be asked for the object of a tag.
            if found.meta == self.meta { found.bytes().await.map(Some) } else { Ok(None) }
        };
        match self.runtime.block_on(get) {
            Ok(Some(bytes)) => Ok(bytes),
            Ok(None) | Err(Fault::Precondition { .. }) => Err(io::Error::other(Changed)),
            Err(error) => Err(io::Error::other(error)),
        }
    }
}

/// A part of a file or object with a position of its own, so that threads read the same file at once.
#[derive(Clone)]
pub(super) struct Window {
    origin: Origin,
    start: u64,
    length: u64,
    position: u64,
}

#[derive(Clone)]
enum Origin {
    File(Arc<File>),
    Object(Fetched),
}

/// An object, and the bytes that were fetched last.
#[derive(Clone)]
struct Fetched {
    object: Arc<Object>,
    bytes: Bytes,
    /// The place of the first of the bytes.
    from: u64,
}

impl Window {
    /// Returns a whole file.
    pub(super) fn of_file(file: File) -> io::Result<Self> {
        let length = file.metadata()?.len();
        Ok(Self { origin: Origin::File(Arc::new(file)), start: 0, length, position: 0 })
    }

    /// Returns a whole object.
    pub(super) fn of_object(object: Object) -> Self {
        let length = object.meta.size;
        let fetched = Fetched { object: Arc::new(object), bytes: Bytes::new(), from: 0 };
        Self { origin: Origin::Object(fetched), start: 0, length, position: 0 }
    }

    /// Returns a part of this one.
    pub(super) fn part(&self, start: u64, length: u64) -> Self {
        Self { start: self.start + start, length, position: 0, ..self.clone() }
    }

    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// States how many bytes are mostly read from one place, of which requests to a server then ask at once. Clones
    /// share the number, and the first one that is stated holds.
    pub(super) fn expect(&self, bytes: u64) {
        if let Origin::Object(fetched) = &self.origin {
            fetched.object.request.get_or_init(|| bytes);
        }
    }
}

impl Fetched {
    /// Reads bytes at a place within a range, which are fetched if they are not those that were fetched last.
    fn read(&mut self, buffer: &mut [u8], at: u64, range: Range<u64>) -> io::Result<usize> {
        if at >= range.end || buffer.is_empty() {
            return Ok(0);
        }
        let known = self.from..self.from + self.bytes.len() as u64;
        if !known.contains(&at) {
            // Requests double in length while reading goes on where the one before ended.
            let goes_on = at == known.end && !known.is_empty();
            let first = self.object.request.get().copied().unwrap_or(BLOCK);
            let length = if goes_on { 2 * (known.end - known.start) } else { first }.clamp(1, LONGEST);
            // A request that would reach beyond the range begins before the place, since the directory of a ZIP file
            // is searched from its end.
            let from = if goes_on { at } else { at.min(range.end.saturating_sub(length)).max(range.start) };
            self.bytes = self.object.fetch(from..(from + length).min(range.end))?;
            self.from = from;
        }
        let fetched = self.bytes.get((at - self.from) as usize..).unwrap_or_default();
        let count = buffer.len().min(fetched.len()).min((range.end - at) as usize);
        buffer[..count].copy_from_slice(&fetched[..count]);
        Ok(count)
    }
}

impl Read for Window {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.length.saturating_sub(self.position).min(buffer.len() as u64);
        let (buffer, at) = (&mut buffer[..left as usize], self.start + self.position);
        let count = match &mut self.origin {
            Origin::File(file) => std::os::unix::fs::FileExt::read_at(&**file, buffer, at)?,
            Origin::Object(fetched) => fetched.read(buffer, at, self.start..self.start + self.length)?,
        };
        if count == 0 && left > 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, SHORTER));
        }
        self.position += count as u64;
        Ok(count)
    }
}

impl Seek for Window {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(offset) => self.length.checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        let before = || io::Error::new(io::ErrorKind::InvalidInput, "a place before the beginning of the file");
        self.position = position.ok_or_else(before)?;
        Ok(self.position)
    }
}

/// Finds an error of a type among the causes of an error.
pub(super) fn cause<T: Error + 'static>(error: &io::Error) -> Option<&T> {
    let mut next = Some(error as &(dyn Error + 'static));
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        // The source of an `io::Error` is that of the error it wraps, so the wrapped error itself has to be asked for.
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = wrapped.map(|error| error as &(dyn Error + 'static)).or_else(|| error.source());
    }
    None
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use object_store::{ObjectStoreExt, memory::InMemory, path::Path};

    use super::*;

    /// Opens an object of so many bytes, each of which is its place modulo 251.
    fn opened(runtime: &tokio::runtime::Runtime, length: usize) -> (Arc<InMemory>, Window) {
        let (objects, path) = (Arc::new(InMemory::new()), Path::from("a.tar"));
        let bytes: Vec<u8> = (0..length).map(|i| (i % 251) as u8).collect();
        let meta = runtime.block_on(async {
            objects.put(&path, bytes.into()).await.unwrap();
            objects.head(&path).await.unwrap()
        });
        let object = Object::new(meta, objects.clone(), runtime.handle().clone());
        (objects, Window::of_object(object))
    }

    #[test]
    fn window_of_an_object_reads_what_lies_at_its_place() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let (objects, window) = opened(&runtime, 200_000);
        let mut whole = Vec::new();
        window.clone().read_to_end(&mut whole).unwrap();
        assert!(whole.len() == 200_000 && whole.iter().enumerate().all(|(i, byte)| *byte == (i % 251) as u8));
        for (start, length, at) in [(0, 200_000, 199_990), (70_000, 5_000, 0), (70_000, 5_000, 4_999), (7, 0, 0)] {
            let mut part = window.part(start, length);
            part.seek(SeekFrom::Start(at)).unwrap();
            let mut read = Vec::new();
            part.read_to_end(&mut read).unwrap();
            assert!(read == whole[(start + at) as usize..(start + length) as usize], "{start} {length} {at}");
        }
        runtime.block_on(async { objects.put(&Path::from("a.tar"), vec![0; 200_000].into()).await }).unwrap();
        let changed = window.part(3, 9).read(&mut [0; 9]).unwrap_err();
        assert!(cause::<Changed>(&changed).is_some(), "{changed}");
    }

    #[test]
    fn file_that_becomes_shorter_is_an_error() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[1; 100]).unwrap();
        let mut window = Window::of_file(file.try_clone().unwrap()).unwrap();
        file.set_len(60).unwrap();
        let mut read = Vec::new();
        let error = window.read_to_end(&mut read).unwrap_err();
        assert_eq!((read.len(), error.to_string().as_str()), (60, SHORTER));
    }

    #[test]
    fn requests_become_longer_while_reading_goes_on() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let (_, mut window) = opened(&runtime, 1 << 20);
        let mut fetched = vec![];
        let mut buffer = [0; 1000];
        while window.read(&mut buffer).unwrap() > 0 {
            let Origin::Object(last) = &window.origin else { panic!("it is an object") };
            if fetched.last() != Some(&(last.from, last.bytes.len() as u64)) {
                fetched.push((last.from, last.bytes.len() as u64));
            }
        }
        let lengths: Vec<u64> = fetched.iter().map(|(_, length)| length / BLOCK).collect();
        assert_eq!(lengths, [1, 2, 4, 8, 16, 1]);
    }
}
