//! Archives, whose members are read in place: `photographs.zip/nut/train/good/000.png` is the address of a member.
//!
//! The members of a ZIP file are known from its central directory, those of a TAR file from the headers before them; both are
//! read once for as long as the file does not change. A TAR file that is compressed as a whole has no places at which members can be read.

use std::{
    collections::HashMap,
    fmt,
    fs::{self, File, Metadata},
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use crate::engine::Digest;

/// The endings of archives that are read.
const ENDINGS: [&str; 2] = [".zip", ".tar"];

/// The endings of archives that are compressed as a whole.
const COMPRESSED: [&str; 6] = [".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tar.zst"];

/// The folder in which macOS keeps what only it reads.
const OF_THE_SYSTEM: &str = "__MACOSX";

/// Returns true for the name of an archive that is read.
pub(super) fn is_archive(path: &str) -> bool {
    has_ending(path, &ENDINGS)
}

/// Returns true for the name of an archive that is compressed as a whole.
pub(super) fn is_compressed(path: &str) -> bool {
    has_ending(path, &COMPRESSED)
}

fn has_ending(path: &str, endings: &[&str]) -> bool {
    let end = |length: usize| path.len().checked_sub(length).map(|from| &path.as_bytes()[from..]);
    endings.iter().any(|ending| end(ending.len()).is_some_and(|end| end.eq_ignore_ascii_case(ending.as_bytes())))
}

/// Returns the archive in which a path lies and the name of the member; `None` for a path outside of archives.
pub(super) fn split(path: &Path) -> Option<(&Path, &str)> {
    let text = path.to_str()?;
    let mut ends = text.match_indices('/').map(|(at, _)| at).filter(|at| is_archive(&text[..*at]));
    let end = ends.find(|at| Path::new(&text[..*at]).is_file())?;
    Some((Path::new(&text[..end]), &text[end + 1..]))
}

/// Archives that were opened.
#[derive(Default)]
pub(super) struct Archives(Mutex<HashMap<PathBuf, (State, Arc<Archive>)>>);

/// The size and the time of the last change of an archive that was opened.
type State = (u64, Option<SystemTime>);

impl fmt::Debug for Archives {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Archives")
    }
}

impl Archives {
    /// Opens an archive, again if it has changed.
    pub(super) fn open(&self, path: &Path) -> io::Result<Arc<Archive>> {
        let of = |meta: &Metadata| (meta.len(), meta.modified().ok());
        let state = of(&fs::metadata(path)?);
        let mut opened = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, archive)) = opened.get(path).filter(|(known, _)| *known == state) {
            return Ok(archive.clone());
        }
        let archive = Arc::new(Archive::open(path)?);
        opened.insert(path.to_owned(), (state, archive.clone()));
        Ok(archive)
    }

    /// Reads a member as a stream.
    pub(super) fn read<T>(
        &self,
        archive: &Path,
        member: &str,
        read: impl FnOnce(&mut dyn Read) -> io::Result<T>,
    ) -> io::Result<T> {
        self.open(archive)?.read(member, read)
    }

    /// Returns the content of a member.
    pub(super) fn content(&self, archive: &Path, member: &str) -> io::Result<Vec<u8>> {
        self.read(archive, member, |reader| {
            let mut content = Vec::new();
            reader.read_to_end(&mut content).map(|_| content)
        })
    }

    /// Returns the digest of the content of a member.
    pub(super) fn digest(&self, archive: &Path, member: &str) -> io::Result<Digest> {
        self.content(archive, member).map(|content| Digest::of(&content))
    }
}

/// An opened archive.
pub(super) enum Archive {
    Zip(zip::ZipArchive<Window>),
    /// Each member is a part of the file.
    Tar(HashMap<Box<str>, Window>),
}

impl Archive {
    fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        let whole = Window { file: Arc::new(file), start: 0, length, position: 0 };
        if has_ending(&path.to_string_lossy(), &ENDINGS[..1]) {
            return Ok(Self::Zip(zip::ZipArchive::new(whole)?));
        }
        let mut members = HashMap::new();
        for entry in tar::Archive::new(whole.clone()).entries_with_seek()? {
            let entry = entry?;
            let name = entry.path_bytes();
            if let (true, Ok(name)) = (entry.header().entry_type().is_file(), std::str::from_utf8(&name)) {
                let window = Window { start: entry.raw_file_position(), length: entry.size(), ..whole.clone() };
                members.insert(name.trim_start_matches("./").into(), window);
            }
        }
        Ok(Self::Tar(members))
    }

    /// Returns the names of the files in it that are not hidden.
    pub(super) fn names(&self) -> Vec<Box<str>> {
        let names: Box<dyn Iterator<Item = &str> + '_> = match self {
            Self::Zip(archive) => Box::new(archive.file_names().filter(|name| !name.ends_with('/'))),
            Self::Tar(members) => Box::new(members.keys().map(|name| &**name)),
        };
        let is_shown = |name: &&str| name.split('/').all(|part| !part.starts_with('.') && part != OF_THE_SYSTEM);
        names.filter(is_shown).map(Into::into).collect()
    }

    fn read<T>(&self, member: &str, read: impl FnOnce(&mut dyn Read) -> io::Result<T>) -> io::Result<T> {
        match self {
            Self::Zip(archive) => read(&mut archive.clone().by_name(member)?),
            Self::Tar(members) => match members.get(member) {
                Some(window) => read(&mut window.clone()),
                None => Err(io::Error::new(io::ErrorKind::NotFound, "the archive has no such member")),
            },
        }
    }
}

/// A part of a file with a position of its own, so that threads read the same file at once.
#[derive(Clone)]
pub(super) struct Window {
    file: Arc<File>,
    start: u64,
    length: u64,
    position: u64,
}

impl Read for Window {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        use std::os::unix::fs::FileExt;
        let left = self.length.saturating_sub(self.position).min(buffer.len() as u64);
        let read = self.file.read_at(&mut buffer[..left as usize], self.start + self.position)?;
        self.position += read as u64;
        Ok(read)
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

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const MEMBERS: [(&str, &[u8]); 3] = [("a/x.png", b"first"), ("a/.hidden", b"h"), ("b.txt", b"second")];

    fn zip(path: &Path, compression: zip::CompressionMethod) {
        let mut writer = zip::ZipWriter::new(File::create(path).unwrap());
        let options = zip::write::SimpleFileOptions::default().compression_method(compression);
        writer.add_directory("a", options).unwrap();
        for (name, content) in MEMBERS {
            writer.start_file(name, options).unwrap();
            writer.write_all(content).unwrap();
        }
        writer.finish().unwrap();
    }

    fn tar(path: &Path, prefix: &str) {
        let mut writer = tar::Builder::new(File::create(path).unwrap());
        for (name, content) in MEMBERS {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            writer.append_data(&mut header, format!("{prefix}{name}"), content).unwrap();
        }
        writer.finish().unwrap();
    }

    #[test]
    fn members_of_archives_are_read_in_place() {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| folder.path().join(name);
        zip(&place("stored.zip"), zip::CompressionMethod::Stored);
        zip(&place("deflated.ZIP"), zip::CompressionMethod::Deflated);
        tar(&place("plain.tar"), "");
        tar(&place("dots.tar"), "./");
        let long = "folder/".repeat(30);
        tar(&place("long.tar"), &long);
        for (name, prefix) in
            [("stored.zip", ""), ("deflated.ZIP", ""), ("plain.tar", ""), ("dots.tar", ""), ("long.tar", &long[..])]
        {
            let archives = Archives::default();
            let mut names = archives.open(&place(name)).unwrap().names();
            names.sort_unstable();
            assert_eq!(names.join(" "), format!("{prefix}a/x.png {prefix}b.txt"), "{name}");
            let address = place(name).join(prefix).join("b.txt");
            let (archive, member) = split(&address).unwrap();
            assert_eq!((archive, member), (&*place(name), &*format!("{prefix}b.txt")));
            assert_eq!(archives.content(archive, member).unwrap(), b"second");
            assert_eq!(archives.digest(archive, member).unwrap(), Digest::of(b"second"));
            assert!(archives.content(archive, "a/y.png").is_err());
        }
        assert_eq!(split(&place("plain.tar")), None);
        fs::create_dir(place("folder.zip")).unwrap();
        assert_eq!(split(&place("folder.zip/b.txt")), None, "a folder may be called so");
    }

    #[test]
    fn archive_that_changes_is_opened_again() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("a.tar");
        tar(&place, "");
        let archives = Archives::default();
        let names = || archives.open(&place).unwrap().names().len();
        assert_eq!(names(), 2);
        let mut writer = tar::Builder::new(File::create(&place).unwrap());
        writer.finish().unwrap();
        assert_eq!(names(), 0);
    }
}
