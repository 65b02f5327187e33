//! A store on S3 behind a failing network: a real server of that protocol on this machine, with [`crate::proxy`] in
//! front of it.

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use futures::TryStreamExt;
use object_store::{
    ObjectStore, ObjectStoreExt,
    aws::{AmazonS3, AmazonS3Builder},
};
use vlmdiff::engine::store::{Event, Logged, Manifest};

use crate::{
    lab::{LIGHT, Lab, Process, project},
    proxy::{Client, Fault, Proxy, Seen, seeded},
};

pub(crate) const STORE: &str = "s3://bucket/some/prefix";
/// The timeout of vlmdiff here. A hanging connection lasts as long.
const TIMEOUT: Duration = Duration::from_secs(4);
pub(crate) const HANG: Duration = Duration::from_secs(6);

/// Returns Python with the packages that `make test` installs.
pub(crate) fn python() -> Command {
    let packages = project().join(".tools/python");
    assert!(
        packages.join("requirements.txt").is_file(),
        "{} is missing: run make test, or python3 setup/fetch.py tools",
        packages.display()
    );
    let mut command = Command::new(std::env::var_os("PYTHON").unwrap_or_else(|| "python3".into()));
    command.env("PYTHONPATH", packages).stdin(Stdio::null());
    command
}

/// Returns the variables by which a program reaches a server.
pub(crate) fn environment(server: SocketAddr) -> Vec<(String, String)> {
    let variables = [
        ("AWS_ENDPOINT", format!("http://{server}")),
        ("AWS_ALLOW_HTTP", "true".into()),
        ("AWS_ACCESS_KEY_ID", "test".into()),
        ("AWS_SECRET_ACCESS_KEY", "test".into()),
        ("AWS_REGION", "us-east-1".into()),
        ("AWS_TIMEOUT", format!("{} seconds", TIMEOUT.as_secs())),
    ];
    variables.map(|(name, value)| (name.to_owned(), value)).into()
}

/// Returns the files in a folder and below it.
pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// Python's lines that start the server with a clock that is two days late.
const TWO_DAYS_AGO: &str = "
import datetime
import moto.s3.models as models
from moto.server import main
now = models.utcnow
models.utcnow = lambda: now() - datetime.timedelta(days=2)
main()
";

/// An S3 server with one empty bucket.
pub(crate) struct Server {
    _process: Process,
    pub(crate) address: SocketAddr,
}

impl Server {
    pub(crate) fn start() -> Self {
        Self::with(&["-m", "moto.server"])
    }

    /// Starts a server whose objects are two days old when they are written, which is old enough for a clean-up.
    pub(crate) fn of_two_days_ago() -> Self {
        Self::with(&["-c", TWO_DAYS_AGO])
    }

    /// Starts the server by these arguments of Python.
    fn with(program: &[&str]) -> Self {
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let process = python()
            .args(program)
            .args(["-H", "127.0.0.1", "-p", &free.port().to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let server = Self { _process: Process(process), address: free };
        let started = Instant::now();
        let bucket = "PUT /bucket HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        loop {
            let mut answer = String::new();
            let asked = TcpStream::connect(free).and_then(|mut stream| {
                stream.write_all(bucket.as_bytes())?;
                stream.read_to_string(&mut answer)
            });
            if asked.is_ok() && answer.contains(" 200 ") {
                return server;
            }
            assert!(started.elapsed() < Duration::from_secs(60), "no S3 server at {free}: {asked:?} {answer}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Works on the bucket without the proxy.
    fn with_bucket<T>(&self, work: impl AsyncFnOnce(AmazonS3) -> T) -> T {
        let bucket = AmazonS3Builder::new()
            .with_endpoint(format!("http://{}", self.address))
            .with_allow_http(true)
            .with_bucket_name("bucket")
            .with_access_key_id("test")
            .with_secret_access_key("test")
            .build()
            .unwrap();
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work(bucket))
    }

    /// Uploads the files below a folder under the same names.
    pub(crate) fn upload(&self, folder: &Path) {
        let parent = folder.parent().unwrap();
        self.with_bucket(async |bucket| {
            for file in files(folder) {
                let name = file.strip_prefix(parent).unwrap().to_str().unwrap();
                bucket.put(&name.into(), fs::read(&file).unwrap().into()).await.unwrap();
            }
        });
    }

    /// Returns the objects below a folder of the store, by their names in the bucket.
    pub(crate) fn objects(&self, folder: &str) -> Vec<(String, Vec<u8>)> {
        self.with_bucket(async |objects| {
            let below = format!("some/prefix/{folder}").into();
            let mut found = Vec::new();
            for meta in objects.list(Some(&below)).try_collect::<Vec<_>>().await.unwrap() {
                let bytes = objects.get(&meta.location).await.unwrap().bytes().await.unwrap();
                found.push((meta.location.to_string(), bytes.to_vec()));
            }
            found.sort();
            found
        })
    }

    /// Returns the versions of each published table.
    pub(crate) fn versions(&self) -> BTreeMap<String, Vec<Manifest>> {
        let mut versions = BTreeMap::<_, Vec<Manifest>>::new();
        let manifests = self.objects("published").into_iter().filter(|(name, _)| name.ends_with(".json"));
        for (name, bytes) in manifests {
            let manifest: Manifest = serde_json::from_slice(&bytes).unwrap();
            let found = versions.entry(manifest.table.clone()).or_default();
            found.push(manifest);
            assert!(name.ends_with(&format!("/{:010}.json", found.len())), "{name} follows a gap");
        }
        versions
    }
}

/// A lab whose programs reach the server only through a proxy.
pub(crate) struct Remote {
    lab: Lab,
    server: Server,
    proxy: Proxy,
}

impl Remote {
    pub(crate) fn new(schedule: impl Fn(u64, &Seen) -> Option<Fault> + Send + Sync + 'static) -> Self {
        let server = Server::start();
        let proxy = Proxy::start(server.address, HANG, Box::new(schedule));
        Self { lab: Lab::new(LIGHT), server, proxy }
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.lab.command(arguments);
        command
            .env("VLMDIFF_STORE", STORE)
            .env("VLMDIFF_CACHE", self.lab.path("cache"))
            .envs(environment(self.proxy.address))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs a program, which must succeed, and returns its output.
    fn vlmdiff(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {stderr}{:?}", self.proxy.faults());
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) fn run(&self) {
        self.vlmdiff(&["run", "pipeline.yaml", "--quiet", "--task-rows", "4"]);
    }

    /// Returns every value of every table.
    fn tables(&self) -> Vec<String> {
        QUERIES.iter().map(|query| self.vlmdiff(&["sql", query, "--format", "csv"])).collect()
    }

    /// Returns the same values of a run on a local store.
    fn expected(&self) -> Vec<String> {
        self.lab.run(&["--store", "local"]);
        let sql = |query: &&str| self.lab.vlmdiff(&["sql", query, "--format", "csv", "--store", "local"]).stdout;
        QUERIES.iter().map(sql).collect()
    }

    fn copies(&self) -> Vec<PathBuf> {
        let parts = fs::read_dir(self.lab.path("cache/objects/parts")).unwrap();
        parts.map(|entry| entry.unwrap().path()).collect()
    }
}

const QUERIES: [&str; 3] =
    ["select * from images order by image_id", "select * from captions order by image_id", "select * from counts"];

#[test]
fn failing_network_changes_no_table() {
    for seed in [1, 2] {
        let remote = Remote::new(seeded(seed, 4));
        remote.run();
        assert_eq!(remote.tables(), remote.expected(), "seed {seed}");
        let published = |remote: &Remote| {
            remote.server.versions().into_iter().map(|(table, versions)| (table, versions.len())).collect::<Vec<_>>()
        };
        let once: Vec<_> = ["captions", "counts", "images"].map(|table| (table.to_owned(), 1)).into();
        assert_eq!(published(&remote), once, "seed {seed}");
        let written = remote.server.objects("computed").len();
        remote.run();
        assert_eq!(published(&remote), once, "the second run has nothing to do");
        assert_eq!(remote.server.objects("computed").len(), written);
        let faults = remote.proxy.faults();
        for client in [Client::Half, Client::Silence, Client::Closed] {
            assert!(faults.iter().any(|f| f.client == client), "seed {seed} had no {client:?}: {faults:?}");
        }
    }
}

#[test]
fn publication_whose_answer_is_lost_is_not_repeated() {
    // Each version is written at the first attempt, but the client receives a closed connection, a server error, or
    // nothing.
    let losses = [Client::Closed, Client::Status(503), Client::Silence].map(|client| Fault { reaches: true, client });
    let lost = std::sync::Mutex::new(losses.to_vec());
    let written = std::sync::Mutex::new(HashSet::new());
    let remote = Remote::new(move |_, seen| {
        let publishes = seen.method == "PUT" && seen.path.contains("/published/");
        let first = publishes && written.lock().unwrap().insert(seen.path.clone());
        if first { lost.lock().unwrap().pop() } else { None }
    });
    remote.run();
    assert_eq!(remote.proxy.faults().len(), losses.len());
    for (table, versions) in remote.server.versions() {
        assert_eq!(versions.len(), 1, "{table}");
    }
    assert_eq!(remote.tables(), remote.expected());
}

#[test]
fn parts_are_fetched_once() {
    let remote = Remote::new(|_, _| None);
    remote.run();
    let fetched = || remote.proxy.count("GET", "/parts/");
    let tables = remote.tables();
    assert_eq!(fetched(), 0, "what was written is at hand");

    fs::remove_dir_all(remote.lab.path("cache")).unwrap();
    assert_eq!(remote.tables(), tables);
    let parts = remote.server.objects("parts").len();
    assert_eq!(fetched(), parts, "each part once, whatever ranges of it are read");
    assert_eq!(remote.tables(), tables);
    assert_eq!(fetched(), parts);

    let copies = remote.copies();
    for copy in &copies {
        let bytes = fs::read(copy).unwrap();
        fs::write(copy, &bytes[..bytes.len() / 2]).unwrap();
    }
    assert_eq!(remote.tables(), tables);
    assert_eq!(fetched(), 2 * parts, "a broken copy is fetched again");
}

#[test]
fn light_columns_of_large_parts_are_read_without_pictures() {
    const LARGE: u64 = 1 << 20;
    let remote = Remote::new(|_, _| None);
    let run = |caption: &str| {
        let captions = format!("captions.default={caption}");
        let sets = ["--set", "images.size=768", "--set", &captions];
        remote.vlmdiff(&[&["run", "pipeline.yaml", "--quiet"][..], &sets].concat());
    };
    run("nothing");
    let pictures: Vec<_> =
        remote.server.objects("parts").into_iter().filter(|(_, part)| part.len() as u64 > LARGE).collect();
    assert!(!pictures.is_empty(), "no part is large");
    let large: u64 = pictures.iter().map(|(_, part)| part.len() as u64).sum();
    let fetched = || -> u64 { remote.copies().iter().map(|copy| copy.metadata().unwrap().len()).sum() };
    let forget = || fs::remove_dir_all(remote.lab.path("cache")).unwrap();
    let labels = || remote.vlmdiff(&["sql", "select image_id, label from images order by 1", "--format", "csv"]);
    let expected = labels();

    forget();
    run("something");
    assert!(fetched() < large / 4, "a run that reads captions fetched {} of {large} bytes", fetched());
    forget();
    assert_eq!(labels(), expected);
    assert!(fetched() < large / 4, "a query of labels fetched {} of {large} bytes", fetched());

    // A changed byte is noticed by whoever reads it, here in the footer.
    let (name, part) = pictures.into_iter().next().unwrap();
    let mut changed = part.clone();
    let near_end = changed.len() - 9;
    changed[near_end] ^= 1;
    let path = object_store::path::Path::from(name.as_str());
    remote.server.with_bucket(async |bucket| _ = bucket.put(&path, changed.into()).await.unwrap());
    forget();
    run("nothing more");
    let mended = remote.server.objects("parts").into_iter().find(|(other, _)| *other == name);
    assert!(mended.is_some_and(|(_, mended)| mended == part), "the part is computed again");
    assert_eq!(labels(), expected);
}

#[test]
fn two_concurrent_runs_lose_no_publication() {
    let remote = Remote::new(seeded(3, 8));
    let runs = [1, 2].map(|_| remote.command(&["run", "pipeline.yaml", "--quiet"]).spawn().unwrap());
    for run in runs {
        let ended = run.wait_with_output().unwrap();
        assert_eq!(ended.status.code(), Some(0), "{}", String::from_utf8_lossy(&ended.stderr));
    }
    let versions = remote.server.versions();
    let logs = remote.server.objects("runs");
    assert_eq!(logs.len(), 2);
    for (name, log) in logs {
        let lines = String::from_utf8(log).unwrap();
        let events = lines.lines().skip(1).map(|line| serde_json::from_str::<Logged>(line).unwrap().event);
        let run = PathBuf::from(&name).file_stem().unwrap().to_string_lossy().into_owned();
        for event in events {
            if let Event::TablePublished { table, .. } = event {
                assert!(versions[&table].iter().any(|m| m.run == run), "{run} published {table}: {versions:?}");
            }
        }
    }
    assert_eq!(remote.tables(), remote.expected());
}

#[test]
fn images_behind_a_failing_network_make_the_same_tables() {
    let remote = Remote::new(seeded(4, 6));
    remote.server.upload(&remote.lab.path("data"));
    // The next run reads a file again if it has just changed.
    std::thread::sleep(Duration::from_secs(4));
    let run = || remote.vlmdiff(&["run", "pipeline.yaml", "--quiet", "--set", "images.root=s3://bucket/data"]);
    run();
    let tables: Vec<String> = remote.tables().iter().map(|table| table.replace("s3://bucket/data", "data")).collect();
    assert_eq!(tables, remote.expected());
    let fetched = || remote.proxy.count("GET", ".png");
    let first = fetched();
    let images = files(&remote.lab.path("data")).iter().filter(|file| file.extension() == Some("png".as_ref())).count();
    assert!(first >= 2 * images, "{first} requests to hash {images} images and to read them");
    let faults = remote.proxy.faults();
    assert!(faults.iter().any(|fault| fault.client == Client::Half), "{faults:?}");
    run();
    assert_eq!(fetched(), first, "the second run fetches no image again");
}

#[test]
fn error_of_an_unreachable_store_says_what_to_set() {
    let remote = Remote::new(|_, _| None);
    let failed = |command: &mut Command| {
        let ended = command.output().unwrap();
        assert_ne!(ended.status.code(), Some(0));
        String::from_utf8(ended.stderr).unwrap()
    };
    let stderr = failed(remote.command(&["run", "pipeline.yaml"]).env("VLMDIFF_STORE", "s3://elsewhere/prefix"));
    assert!(stderr.contains("s3://elsewhere/prefix") && stderr.contains("the bucket must exist"), "{stderr}");
    let stderr = failed(remote.command(&["run", "pipeline.yaml"]).env_remove("AWS_ALLOW_HTTP"));
    assert!(stderr.contains(STORE) && stderr.contains("AWS_ALLOW_HTTP"), "{stderr}");
    let stderr = failed(remote.command(&["sql", "select 1"]).env("VLMDIFF_STORE", "https://example.invalid/x"));
    assert!(stderr.contains("https://example.invalid/x") && stderr.contains("s3://BUCKET/PREFIX"), "{stderr}");
    for place in ["nowhere", &format!("file://{}", remote.lab.path("nowhere").display())] {
        let stderr = failed(remote.command(&["sql", "select 1"]).env("VLMDIFF_STORE", place));
        assert!(stderr.contains(&format!("there is no store at {place}; run a pipeline here first")), "{stderr}");
    }
    assert!(!remote.lab.path("nowhere").exists());
}
