use std::{
    fs,
    io::{self, BufRead, BufReader},
    net::TcpListener,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use object_store::{ObjectStoreExt, PutPayload};

use super::{super::files::EIO, *};
use crate::engine::address::join;

/// A folder of files, each holding its own name, beside a cache folder.
struct Place {
    folder: tempfile::TempDir,
    root: String,
}

impl Place {
    fn new(files: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("data").to_str().unwrap().to_owned();
        fs::create_dir_all(&root).unwrap();
        let place = Self { folder, root };
        files.iter().for_each(|file| place.write(file, file));
        place
    }

    fn path(&self, file: &str) -> PathBuf {
        Path::new(&self.root).join(file)
    }

    fn write(&self, file: &str, text: &str) {
        fs::create_dir_all(self.path(file).parent().unwrap()).unwrap();
        fs::write(self.path(file), text).unwrap();
    }

    /// Returns sources with a clock far enough after the last change that stamps are trusted.
    fn later(&self) -> Sources {
        Sources { cache: self.folder.path().join("cache"), now: || now() + 2 * SETTLED, ..Sources::new(false) }
    }

    fn paths(&self) -> Vec<String> {
        self.later().tree(&self.root).unwrap().paths().map(str::to_owned).collect()
    }

    fn remembered(&self) -> usize {
        let file = self.later().memory(&self.root);
        fs::metadata(file).map_or(0, |meta| (meta.len() as usize - 32) / 32)
    }
}

#[test]
fn archives_count_as_unpacked_where_they_lie() {
    let place = Place::new(&["a/x.png", "a/plain.txt"]);
    let mut archive = tar::Builder::new(fs::File::create(place.path("a/more.tar")).unwrap());
    for (name, content) in [("x.png", "other"), ("deep/y.png", "y in the archive")] {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        archive.append_data(&mut header, name, content.as_bytes()).unwrap();
    }
    archive.finish().unwrap();
    let sources = place.later();
    let tree = sources.unpacked_tree(&place.root).unwrap();
    let paths: Vec<&str> = tree.paths().collect();
    assert_eq!(paths, ["a/deep/y.png", "a/more.tar", "a/plain.txt", "a/x.png"]);
    // A file that is there is taken before one in an archive.
    assert_eq!(tree.stored("a/deep/y.png"), "a/more.tar/deep/y.png");
    assert_eq!(tree.stored("a/x.png"), "a/x.png");
    let address = tree.address("a/deep/y.png").unwrap();
    let text = "y in the archive";
    assert_eq!(sources.read(&address).unwrap(), text);
    assert_eq!(sources.digest(&address).unwrap(), Digest::of(text.as_bytes()));
    assert_eq!(sources.digests(&tree, &["a/deep/y.png", "a/x.png"]).unwrap(), of(&[text, "a/x.png"]));
    let local = sources.local(&address).unwrap();
    assert!(local.ends_with("y.png") && fs::read_to_string(local).unwrap() == text);
    assert!(
        sources.read(&format!("{}/a/more.tar/z.png", place.root)).unwrap_err().to_string().contains("no such member")
    );
    // An archive may be the root itself.
    let root = place.path("a/more.tar").to_str().unwrap().to_owned();
    let tree = sources.tree(&root).unwrap();
    assert_eq!(tree.paths().collect::<Vec<_>>(), ["deep/y.png", "x.png"]);
    assert_eq!(sources.digests(&tree, &["x.png"]).unwrap(), of(&["other"]));
}

/// Returns the digests of all files of a tree, and the number of files that were read for it.
fn digests(sources: &Sources, root: &str) -> (Vec<Digest>, usize) {
    let tree = sources.tree(root).unwrap();
    let wanted: Vec<&Found> = tree.paths().map(|path| tree.find(path).unwrap()).collect();
    let mut read = 0;
    let digests = sources.known_or(root, tree.stamps(), &wanted, |missing| {
        read = missing.len();
        let hash = |found: &&Found| hash_file(&place_of(&tree, &found.path)).map_err(|error| error.to_string());
        Ok(missing.iter().map(hash).collect())
    });
    let digests: Result<Vec<Digest>> = digests.map(|digests| digests.into_iter().map(Result::unwrap).collect());
    let paths: Vec<&str> = tree.paths().collect();
    assert_eq!(sources.digests(&tree, &paths).unwrap(), *digests.as_ref().unwrap());
    (digests.unwrap(), read)
}

fn place_of(tree: &Tree, path: &str) -> PathBuf {
    local_path(&tree.address(path).unwrap())
}

fn of(texts: &[&str]) -> Vec<Digest> {
    texts.iter().map(|text| Digest::of(text.as_bytes())).collect()
}

#[test]
fn tree_lists_files_sorted_and_without_hidden_ones() {
    let place = Place::new(&["b/2", "b/1", "b-c/3", "a", ".hidden", ".git/objects/1", "lost+found/5", "b/.x/4"]);
    assert_eq!(place.paths(), ["a", "b-c/3", "b/1", "b/2"]);
    let tree = place.later().tree(&place.root).unwrap();
    assert_eq!(tree.hidden().collect::<Vec<_>>(), [".git/", ".hidden", "b/.x/"]);
    let name = |root: &str| place.later().tree(&format!("{}{root}", place.root)).unwrap().name();
    assert_eq!(["", "/", "/.", "/b/.."].map(name), ["data"; 4]);
    assert_eq!(fs::read_to_string(tree.address("b/1").unwrap()).unwrap(), "b/1");
}

#[test]
fn error_of_a_missing_root_names_it() {
    let place = Place::new(&["file"]);
    let failure = |name: &str| {
        let error = place.later().tree(place.path(name).to_str().unwrap()).unwrap_err();
        error.to_string().replace(&place.root, "ROOT")
    };
    assert!(failure("x").starts_with("cannot read ROOT/x: "), "{}", failure("x"));
    assert_eq!(failure("file"), "cannot read ROOT/file: it is no folder");
}

#[test]
#[cfg(unix)]
fn links_are_followed_and_broken_ones_fail_when_they_are_read() {
    use std::os::unix::fs::symlink;
    let place = Place::new(&["a/1"]);
    symlink(place.path("a"), place.path("b")).unwrap();
    symlink(place.path("a/1"), place.path("c")).unwrap();
    symlink(&place.root, place.path("a/around")).unwrap();
    symlink("nowhere", place.path("d")).unwrap();
    symlink("e", place.path("e")).unwrap();
    assert_eq!(place.paths(), ["a/1", "b/1", "c", "d", "e"]);
    // The tree has the name of the link, as the user gave it.
    assert_eq!(place.later().tree(place.path("b").to_str().unwrap()).unwrap().name(), "b");
    let (sources, tree) = (place.later(), place.later().tree(&place.root).unwrap());
    assert_eq!(tree.dead_links().collect::<std::collections::BTreeSet<_>>(), ["d", "e"].into());
    assert_eq!(sources.digests(&tree, &["b/1", "c"]).unwrap(), of(&["a/1", "a/1"]));
    let error = sources.read(&tree.address("d").unwrap()).unwrap_err().to_string();
    assert!(error.starts_with(&format!("cannot read {}/d: ", place.root)), "{error}");
}

/// A single unreadable file must not prevent the digests of the others.
#[test]
#[cfg(unix)]
fn unreadable_file_has_a_digest_of_its_own_until_it_can_be_read() {
    let place = Place::new(&["a", "c"]);
    std::os::unix::fs::symlink("z", place.path("b")).unwrap();
    let all = || {
        let tree = place.later().tree(&place.root).unwrap();
        place.later().digests(&tree, &["a", "b", "c"]).unwrap()
    };
    let [a, b, c] = all()[..] else { panic!() };
    assert_eq!([a, c], of(&["a", "c"])[..]);
    assert_eq!(b, all()[1], "the same reason is the same digest");
    assert_eq!(place.remembered(), 2);
    // The digest is that of no content, not even of the text of the reason.
    let reason = fs::read(place.path("b")).unwrap_err().to_string();
    assert_eq!(b, Digest::unreadable(&reason));
    assert_ne!(b, Digest::of(reason.as_bytes()));
    place.write("z", "now");
    assert_eq!(all()[1], of(&["now"])[0]);
}

#[test]
#[cfg(unix)]
fn error_of_a_listing_names_the_place_that_failed() {
    let place = Place::new(&["a/1"]);
    // A link to a name that is too long fails for the superuser too, who may read every folder.
    std::os::unix::fs::symlink("x".repeat(300), place.path("a/2")).unwrap();
    let told = place.later().tree(&place.root).unwrap_err().to_string();
    assert!(told.starts_with(&format!("cannot read {0}: {0}/a/2: ", place.root)), "{told}");
}

#[test]
#[cfg(unix)]
fn pipe_is_refused_without_waiting() {
    let place = Place::new(&["a"]);
    let made = std::process::Command::new("mkfifo").arg(place.path("pipe")).status().unwrap();
    assert!(made.success());
    assert_eq!(place.paths(), ["a", "pipe"]);
    let tree = place.later().tree(&place.root).unwrap();
    let reason = "it is no file, but a folder, pipe, socket or device";
    let digests = place.later().digests(&tree, &["a", "pipe"]).unwrap();
    assert_eq!(digests, [of(&["a"])[0], Digest::unreadable(reason)]);
    let address = place.path("pipe").to_str().unwrap().to_owned();
    let told = format!("cannot read {address}: {reason}");
    assert_eq!(place.later().read(&address).unwrap_err().to_string(), told);
    assert_eq!(place.later().digest(&address).unwrap_err().to_string(), told);
    assert_eq!(place.later().local(&address).unwrap_err().to_string(), told);
}

#[test]
fn unchanged_files_are_read_once() {
    let place = Place::new(&["a", "b"]);
    assert_eq!(digests(&place.later(), &place.root), (of(&["a", "b"]), 2));
    assert_eq!(digests(&place.later(), &place.root), (of(&["a", "b"]), 0));
    place.write("c", "c");
    assert_eq!(digests(&place.later(), &place.root), (of(&["a", "b", "c"]), 1));
    fs::remove_file(place.path("a")).unwrap();
    place.write("d", "d");
    assert_eq!(digests(&place.later(), &place.root), (of(&["b", "c", "d"]), 1));
    assert_eq!(place.remembered(), 3);
}

/// Changes a file in every way that keeps its size, partly with its modification time set back.
#[test]
fn changed_file_is_read_again() {
    let place = Place::new(&["a", "b"]);
    let modified = fs::metadata(place.path("a")).unwrap().modified().unwrap();
    let set_back = || fs::File::options().write(true).open(place.path("a")).unwrap().set_modified(modified).unwrap();
    let changes: [(&str, &dyn Fn()); 4] = [
        ("1", &|| place.write("a", "1")),
        ("2", &|| {
            place.write("a", "2");
            set_back();
        }),
        ("3", &|| {
            place.write("z", "3");
            fs::rename(place.path("z"), place.path("a")).unwrap();
            set_back();
        }),
        ("b", &|| {
            fs::copy(place.path("b"), place.path("a")).unwrap();
        }),
    ];
    digests(&place.later(), &place.root);
    for (content, change) in changes {
        change();
        assert_eq!(digests(&place.later(), &place.root), (of(&[content, "b"]), 1), "{content}");
        assert_eq!(digests(&place.later(), &place.root).1, 0);
    }
    set_back();
    assert_eq!(digests(&place.later(), &place.root), (of(&["b", "b"]), 1), "touched");
}

#[test]
fn digest_of_a_file_just_written_is_not_remembered() {
    let place = Place::new(&["a"]);
    let at_once = Sources { now, ..place.later() };
    assert_eq!(digests(&at_once, &place.root), (of(&["a"]), 1));
    assert_eq!(place.remembered(), 0);
    assert_eq!(digests(&at_once, &place.root).1, 1);
}

#[test]
fn verification_reads_all_files_and_corrects_remembered_digests() {
    let place = Place::new(&["a", "b"]);
    digests(&place.later(), &place.root);
    let tree = place.later().tree(&place.root).unwrap();
    let file = place.later().memory(&place.root);
    let wrong = tree.stamps().map(|stamp| (stamp, Digest::of(b"wrong")));
    Memory::load(&file).replace(&file, tree.stamps(), wrong).unwrap();
    assert_eq!(place.later().digests(&tree, &["a"]).unwrap(), of(&["wrong"]));
    let verifying = Sources { verify: true, ..place.later() };
    assert_eq!(verifying.digests(&tree, &["a", "b"]).unwrap(), of(&["a", "b"]));
    assert_eq!(digests(&place.later(), &place.root), (of(&["a", "b"]), 0));
}

#[test]
fn broken_memory_file_counts_as_empty() {
    let place = Place::new(&["a"]);
    digests(&place.later(), &place.root);
    let file = place.later().memory(&place.root);
    let whole = fs::read(&file).unwrap();
    for broken in [&whole[..40], &whole[..3], &[&whole[..whole.len() - 1], &[!whole[whole.len() - 1]]].concat()] {
        fs::write(&file, broken).unwrap();
        assert_eq!(digests(&place.later(), &place.root), (of(&["a"]), 1));
    }
    assert_eq!(fs::read_dir(file.parent().unwrap()).unwrap().count(), 1, "temporary files are left behind");
}

#[test]
fn digests_are_computed_without_a_writable_cache() {
    let place = Place::new(&["a"]);
    fs::write(place.folder.path().join("cache"), "a file where the folder would be").unwrap();
    assert_eq!(digests(&place.later(), &place.root).1, 1);
}

#[test]
fn path_that_leaves_its_root_is_refused() {
    assert_eq!(join("data/", "a/b c.png").unwrap(), "data/a/b c.png");
    assert_eq!(join("s3://bucket/data/", "a/50% #1?.png").unwrap(), "s3://bucket/data/a/50%25%20%231%3F.png");
    for root in ["data", "s3://bucket/data"] {
        for climbing in ["../x", "a/../../x", "/etc/passwd", "..", ""] {
            let error = join(root, climbing).unwrap_err().to_string();
            assert!(error.contains(&format!("`{climbing}`")) && error.contains(root), "{error}");
        }
    }
}

#[test]
fn only_transient_errors_are_retried() {
    let tries = |error: fn() -> io::Error| {
        let mut tries = 0;
        let read = retry(|| {
            tries += 1;
            if tries < 3 { Err(error()) } else { Ok(()) }
        });
        (tries, read.is_ok())
    };
    assert_eq!(tries(|| io::ErrorKind::TimedOut.into()), (3, true));
    assert_eq!(tries(|| io::Error::from_raw_os_error(EIO)), (3, true));
    let below: fn() -> io::Error =
        || tree::named(Path::new("a"), Some("a/b".into()), io::Error::from_raw_os_error(EIO)).unwrap_err();
    assert_eq!(tries(below), (3, true));
    assert_eq!(tries(|| io::ErrorKind::NotFound.into()), (1, false));
    assert_eq!(tries(|| io::ErrorKind::PermissionDenied.into()), (1, false));
}

/// Puts objects in memory, which the clones of these sources share.
fn objects(sources: &Sources, objects: &[(&str, &str)]) {
    for (name, text) in objects {
        let url = url_of(&join("memory:///", name).unwrap()).unwrap().unwrap();
        let (store, path) = sources.remote.open(&url).unwrap();
        let put = async { store.put(&path, PutPayload::from(text.as_bytes().to_vec())).await };
        sources.remote.runtime().unwrap().block_on(put).unwrap();
    }
}

#[test]
fn url_is_listed_and_read_like_a_folder() {
    let place = Place::new(&[]);
    let sources = place.later();
    let all = [("data/n/50% #1.png", "x"), ("data/a.png", "a"), ("data/.git/b", "b"), ("other/c", "c")];
    objects(&sources, &all);
    let tree = sources.tree("memory:///data/").unwrap();
    assert_eq!(tree.paths().collect::<Vec<_>>(), ["a.png", "n/50% #1.png"]);
    assert_eq!(tree.hidden().collect::<Vec<_>>(), [".git/"]);
    assert_eq!(tree.name(), "data");
    assert_eq!(sources.digests(&tree, &["n/50% #1.png", "a.png"]).unwrap(), of(&["x", "a"]));
    let addresses: Vec<String> = tree.paths().map(|path| tree.address(path).unwrap()).collect();
    let read: Vec<Bytes> = sources.read_all(&addresses).into_iter().map(Result::unwrap).collect();
    assert_eq!(read, ["a", "x"]);
    objects(&sources, &[("data/a.png", "z")]);
    assert_eq!(digests_of(&sources, "memory:///data"), of(&["z", "x"]));
    assert!(sources.tree("memory:///data?x=1").is_err_and(|e| e.to_string().contains("`memory:///data?x=***`")));
    assert!(sources.read("memory:///data/none").unwrap_err().to_string().contains("memory:///data/none"));
}

#[test]
fn archive_on_a_server_counts_as_unpacked_where_it_lies() {
    let place = Place::new(&[]);
    let sources = place.later();
    let tar = |content: &str| {
        let mut archive = tar::Builder::new(Vec::new());
        for name in ["b/x #1.png", "b/y.png"] {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            archive.append_data(&mut header, name, content.as_bytes()).unwrap();
        }
        String::from_utf8(archive.into_inner().unwrap()).unwrap()
    };
    let first = tar("first");
    objects(&sources, &[("data/a/s.tar", &first), ("data/a/b/y.png", "beside"), ("data/f.zip/z.png", "in a folder")]);
    let tree = sources.unpacked_tree("memory:///data").unwrap();
    let paths: Vec<&str> = tree.paths().collect();
    assert_eq!(paths, ["a/b/x #1.png", "a/b/y.png", "a/s.tar", "f.zip/z.png"]);
    let paths = [paths[0], paths[1], paths[3]];
    let contents = ["first", "beside", "in a folder"];
    assert_eq!(sources.digests(&tree, &paths).unwrap(), of(&contents));
    let addresses = paths.map(|path| tree.address(path).unwrap());
    assert_eq!(addresses[0], "memory:///data/a/s.tar/b/x%20%231.png");
    let read: Vec<Bytes> = sources.read_all(&addresses).into_iter().map(Result::unwrap).collect();
    assert_eq!(read, contents);
    let local = sources.local(&addresses[0]).unwrap();
    assert!(local.ends_with("x #1.png") && fs::read_to_string(local).unwrap() == "first");
    assert_eq!(sources.digest(&addresses[0]).unwrap(), Digest::of(b"first"));
    let missing = sources.read("memory:///data/a/s.tar/none").unwrap_err().to_string();
    assert!(missing.contains("/s.tar/none: the archive has no such member"), "{missing}");

    // A reader notices that the archive is another one, and the next one reads that.
    objects(&sources, &[("data/a/s.tar", &tar("second"))]);
    let changed = sources.read(&addresses[0]).unwrap_err().to_string();
    assert!(changed.ends_with("the archive changed while it was being read; run again"), "{changed}");
    assert_eq!(sources.read(&addresses[0]).unwrap(), "second");
    objects(&sources, &[("data/a/s.tar", &tar("third"))]);
    let tree = sources.tree("memory:///data/a/s.tar").unwrap();
    assert_eq!(sources.digests(&tree, &["b/y.png"]).unwrap(), of(&["third"]));
    objects(&sources, &[("data/a/s.tar", &first[..514])]);
    let cut = sources.tree("memory:///data/a/s.tar").unwrap_err().to_string();
    assert!(cut.contains("it ends within b/x #1.png"), "{cut}");
}

fn digests_of(sources: &Sources, root: &str) -> Vec<Digest> {
    let tree = sources.tree(root).unwrap();
    sources.digests(&tree, &tree.paths().collect::<Vec<_>>()).unwrap()
}

/// Starts a web server of one text. Returns its address and the number of times that the text was sent.
fn serve(text: &'static str) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let sent = Arc::new(AtomicUsize::new(0));
    let count = sent.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let head: Vec<String> =
                BufReader::new(&stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
            let body = if head.first().is_some_and(|line| line.starts_with("GET")) { text } else { "" };
            count.fetch_add(usize::from(!body.is_empty()), Ordering::SeqCst);
            let header = format!("content-length: {}\r\netag: \"1\"\r\nconnection: close", text.len());
            let _ = io::Write::write_all(&mut stream, format!("HTTP/1.1 200 OK\r\n{header}\r\n\r\n{body}").as_bytes());
        }
    });
    (format!("http://{address}"), sent)
}

#[test]
fn url_is_fetched_once() {
    let (place, (server, sent)) = (Place::new(&[]), serve("weights"));
    let address = format!("{server}/models/w.pth");
    let path = place.later().local(&address).unwrap();
    assert_eq!(path.file_name().unwrap(), "w.pth");
    assert_eq!(fs::read_to_string(&path).unwrap(), "weights");
    assert_eq!(place.later().local(&address).unwrap(), path);
    assert_eq!(place.later().digest(&address).unwrap(), Digest::of(b"weights"));
    assert_eq!(sent.load(Ordering::SeqCst), 1);

    fs::write(&path, "cut").unwrap();
    assert_eq!(fs::read_to_string(place.later().local(&address).unwrap()).unwrap(), "weights");
    assert_eq!(sent.load(Ordering::SeqCst), 2);

    let files = ["config.json", "w.pth"].map(|name| format!("{server}/models/{name}"));
    let folder = place.later().local_folder(&files).unwrap();
    assert_eq!(place.later().local_folder(&files).unwrap(), folder);
    assert!(["config.json", "w.pth"].iter().all(|name| fs::read_to_string(folder.join(name)).unwrap() == "weights"));
    assert_eq!(sent.load(Ordering::SeqCst), 3);
}
