//! Archives, whose members are read in place: `photographs.zip/nut/train/good/000.png` is the address of a member.
//!
//! The members of a ZIP file are known from its central directory, those of a TAR file from the headers before them; both are
//! read once for as long as the file does not change. Members of an archive on a server are ranges of bytes of an object. A TAR
//! file that is compressed as a whole has no places at which members can be read.

use std::{
    collections::HashMap,
    fmt,
    fs::{self, File, Metadata},
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use object_store::ObjectMeta;
use url::Url;

use super::window::{Object, Window};

/// The endings of archives that are read.
const ENDINGS: [&str; 2] = [".zip", ".tar"];

/// The endings of archives that are compressed as a whole, with the program that makes a TAR file of one.
const COMPRESSED: [(&str, &str); 8] = [
    (".tar.gz", "gunzip"),
    (".tgz", "gunzip"),
    (".tar.xz", "unxz"),
    (".txz", "unxz"),
    (".tar.bz2", "bunzip2"),
    (".tbz2", "bunzip2"),
    (".tar.zst", "unzstd"),
    (".tzst", "unzstd"),
];

/// The number of bytes that the header of a member mostly has fewer than.
const HEADER: u64 = 1 << 10;

/// The folder in which macOS keeps what only it reads.
const OF_THE_SYSTEM: &str = "__MACOSX";

/// Returns true for the name of an archive that is read.
pub(super) fn is_archive(path: &str) -> bool {
    has_ending(path, &ENDINGS)
}

/// Returns true for the address of a member, if what is called as an archive is one.
pub(super) fn is_below_archive(address: &str) -> bool {
    address.match_indices('/').any(|(at, _)| is_archive(&address[..at]))
}

/// Returns what to do with an archive that is compressed as a whole; `None` for the name of anything else.
pub(super) fn advice(path: &str) -> Option<String> {
    let (_, program) = COMPRESSED.iter().find(|(ending, _)| has_ending(path, &[ending]))?;
    let name = path.trim_end_matches('/').rsplit('/').next().unwrap_or(path);
    Some(format!(
        "it is compressed as a whole, so that its members have no places; `{program} {name}` makes a .tar of it, which is \
         read in place, as a .zip and a folder are"
    ))
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

/// Returns the archives in which a URL may lie, if objects of their names exist, with the names of the member.
pub(super) fn candidates(url: &Url) -> impl Iterator<Item = (Url, String)> {
    let ends = url.path().match_indices('/').map(|(at, _)| at).filter(|at| is_archive(&url.path()[..*at]));
    ends.filter_map(|end| {
        let name = object_store::path::Path::from_url_path(&url.path()[end + 1..]).ok()?;
        let mut archive = url.clone();
        archive.set_path(&url.path()[..end]);
        Some((archive, name.to_string()))
    })
}

/// The place of an archive.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) enum Place {
    File(PathBuf),
    Object(Url),
}

/// A member of an archive.
pub(super) struct Member {
    pub(super) archive: Place,
    pub(super) name: String,
}

impl Member {
    pub(super) fn new(archive: Place, name: &str) -> Self {
        Self { archive, name: name.to_owned() }
    }
}

/// Archives that were opened.
#[derive(Default)]
pub(super) struct Archives(Mutex<HashMap<Place, Arc<Archive>>>);

impl fmt::Debug for Archives {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Archives")
    }
}

impl Archives {
    /// Opens an archive by `open`, unless it is open and `is_same` says that it has not changed since.
    pub(super) fn open(
        &self,
        place: &Place,
        is_same: impl FnOnce(&State) -> io::Result<bool>,
        open: impl FnOnce() -> io::Result<Archive>,
    ) -> io::Result<Arc<Archive>> {
        // Threads that need the same archive wait for the one that opens it.
        let mut opened = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(archive) = opened.get(place)
            && is_same(&archive.state)?
        {
            return Ok(archive.clone());
        }
        let archive = Arc::new(open()?);
        opened.insert(place.clone(), archive.clone());
        Ok(archive)
    }

    /// Opens an archive on this machine, again if it has changed.
    pub(super) fn open_file(&self, path: &Path) -> io::Result<Arc<Archive>> {
        let state = State::of_file(&fs::metadata(path)?);
        let place = Place::File(path.to_owned());
        self.open(&place, |known| Ok(*known == state), || Archive::of_file(path))
    }

    /// Closes an archive.
    pub(super) fn forget(&self, place: &Place) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(place);
    }
}

/// The state of an archive when it was opened.
#[derive(PartialEq)]
pub(super) enum State {
    /// The size and the time of the last change.
    File(u64, Option<SystemTime>),
    Object(ObjectMeta),
}

impl State {
    fn of_file(meta: &Metadata) -> Self {
        Self::File(meta.len(), meta.modified().ok())
    }
}

/// The members of a TAR file: for each its place and its length.
pub(super) type Places = HashMap<Box<str>, (u64, u64)>;

/// An opened archive.
pub(super) struct Archive {
    pub(super) state: State,
    content: Content,
}

enum Content {
    Zip(zip::ZipArchive<Window>),
    Tar(Window, Places),
}

impl Archive {
    fn of_file(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let state = State::of_file(&file.metadata()?);
        let window = Window::of_file(file)?;
        let content = match is_zip(&path.to_string_lossy()) {
            true => Content::zip(window)?,
            false => Content::tar(places(&window)?, window),
        };
        Ok(Self { state, content })
    }

    /// Opens a ZIP file on a server.
    pub(super) fn of_zip_object(object: Object) -> io::Result<Self> {
        let state = State::Object(object.meta.clone());
        Ok(Self { state, content: Content::zip(Window::of_object(object))? })
    }

    /// Opens a TAR file on a server. `known` are its members, if they are known; otherwise their headers are read one by one.
    pub(super) fn of_tar_object(object: Object, known: Option<Places>) -> io::Result<Self> {
        let state = State::Object(object.meta.clone());
        let window = Window::of_object(object);
        let places = known.map_or_else(|| places(&window), Ok)?;
        Ok(Self { state, content: Content::tar(places, window) })
    }

    /// Returns the members of a TAR file.
    pub(super) fn places(&self) -> Option<&Places> {
        match &self.content {
            Content::Zip(_) => None,
            Content::Tar(_, places) => Some(places),
        }
    }

    /// Returns the names of the files in it that are not hidden.
    pub(super) fn names(&self) -> Vec<Box<str>> {
        let names: Box<dyn Iterator<Item = &str> + '_> = match &self.content {
            Content::Zip(archive) => Box::new(archive.file_names().filter(|name| !name.ends_with('/'))),
            Content::Tar(_, places) => Box::new(places.keys().map(|name| &**name)),
        };
        let is_shown = |name: &&str| name.split('/').all(|part| !part.starts_with('.') && part != OF_THE_SYSTEM);
        names.filter(is_shown).map(Into::into).collect()
    }

    /// Reads a member as a stream.
    pub(super) fn read<T>(&self, member: &str, read: impl FnOnce(&mut dyn Read) -> io::Result<T>) -> io::Result<T> {
        match &self.content {
            Content::Zip(archive) => read(&mut archive.clone().by_name(member)?),
            Content::Tar(whole, places) => match places.get(member) {
                Some((start, length)) => read(&mut whole.part(*start, *length)),
                None => Err(io::Error::new(io::ErrorKind::NotFound, "the archive has no such member")),
            },
        }
    }
}

impl Content {
    fn zip(window: Window) -> io::Result<Self> {
        let archive = zip::ZipArchive::new(window.clone())?;
        // A request asks for a member of mean size: where a member ends is not known before it is read, and the pictures of a
        // data set have similar sizes.
        window.expect(window.length() / archive.len().max(1) as u64 + HEADER);
        Ok(Self::Zip(archive))
    }

    fn tar(places: Places, window: Window) -> Self {
        window.expect(u64::MAX);
        Self::Tar(window, places)
    }
}

/// Returns true for the name of a ZIP file.
pub(super) fn is_zip(path: &str) -> bool {
    has_ending(path, &ENDINGS[..1])
}

/// Reads the headers of a TAR file.
fn places(window: &Window) -> io::Result<Places> {
    let mut places = Places::new();
    for entry in tar::Archive::new(window.clone()).entries_with_seek()? {
        let entry = entry?;
        let (start, length, name) = (entry.raw_file_position(), entry.size(), entry.path_bytes());
        let (true, Ok(name)) = (entry.header().entry_type().is_file(), std::str::from_utf8(&name)) else { continue };
        if start.saturating_add(length) > window.length() {
            let told = format!("it ends within {name}, as a file does that was not copied to its end");
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, told));
        }
        places.insert(name.trim_start_matches("./").into(), (start, length));
    }
    Ok(places)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn content(archives: &Archives, archive: &Path, member: &str) -> io::Result<Vec<u8>> {
        archives.open_file(archive)?.read(member, |reader| {
            let mut content = Vec::new();
            reader.read_to_end(&mut content).map(|_| content)
        })
    }

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
            let mut names = archives.open_file(&place(name)).unwrap().names();
            names.sort_unstable();
            assert_eq!(names.join(" "), format!("{prefix}a/x.png {prefix}b.txt"), "{name}");
            let address = place(name).join(prefix).join("b.txt");
            let (archive, member) = split(&address).unwrap();
            assert_eq!((archive, member), (&*place(name), &*format!("{prefix}b.txt")));
            assert_eq!(content(&archives, archive, member).unwrap(), b"second");
            assert!(content(&archives, archive, "a/y.png").is_err());
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
        let names = || archives.open_file(&place).unwrap().names().len();
        assert_eq!(names(), 2);
        let mut writer = tar::Builder::new(File::create(&place).unwrap());
        writer.finish().unwrap();
        assert_eq!(names(), 0);
    }

    #[test]
    fn archive_that_was_cut_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let archives = Archives::default();
        let told = |name: &str, length: u64| {
            let place = folder.path().join(name);
            if name.ends_with(".zip") {
                zip(&place, zip::CompressionMethod::Stored)
            } else {
                tar(&place, "")
            }
            File::options().write(true).open(&place).unwrap().set_len(length).unwrap();
            archives.open_file(&place).err().unwrap().to_string()
        };
        assert!(told("a.tar", 514).contains("it ends within a/x.png"));
        assert!(told("b.tar", 1200).contains("failed to read entire block"));
        assert!(told("c.zip", 100).contains("invalid Zip archive"));
    }

    #[test]
    fn url_may_lie_in_what_is_called_as_an_archive() {
        let url = Url::parse("s3://bucket/a.tar/b%20c.zip/d%23.png").unwrap();
        let found: Vec<_> = candidates(&url).map(|(url, name)| (url.to_string(), name)).collect();
        let expected = [("s3://bucket/a.tar", "b c.zip/d#.png"), ("s3://bucket/a.tar/b%20c.zip", "d#.png")];
        assert_eq!(found, expected.map(|(url, name)| (url.to_owned(), name.to_owned())));
        assert_eq!(candidates(&Url::parse("s3://bucket/a/b.zip").unwrap()).count(), 0);
    }

    #[test]
    fn advice_on_a_compressed_archive_names_the_program() {
        assert!(advice("s3://b/mvtec.tar.xz").unwrap().contains("`unxz mvtec.tar.xz` makes a .tar"));
        assert!(advice("a.TGZ").unwrap().contains("`gunzip a.TGZ`"));
        assert_eq!((advice("a.tar"), advice("a.gz")), (None, None));
    }
}
