//! Downloads one file from a web server.

use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use indicatif::ProgressBar;
use reqwest::{Client, StatusCode, header};

use super::digest::Expected;

/// The time after which a silent server is given up.
const PATIENCE: Duration = Duration::from_secs(60);

/// A file to download.
#[derive(Debug, Clone)]
pub(super) struct Wanted<'a> {
    pub(super) url: &'a str,
    /// The path at which the file is stored.
    pub(super) path: &'a Path,
    /// Its name in the archive to which the URL leads; `None` if it leads to the file itself.
    pub(super) member: Option<&'a str>,
    pub(super) sha256: Option<&'a str>,
}

impl Wanted<'_> {
    /// Downloads the file. A partial download is kept beside it and continued by the next call. The file itself
    /// appears only when it is complete and checked.
    pub(super) async fn fetch(&self, bar: &ProgressBar) -> Result<()> {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        let writes = || format!("cannot write in {}; VLMDIFF_CACHE names another folder", folder.display());
        fs::create_dir_all(folder).with_context(writes)?;
        let part = with_end(self.path, ".part");
        self.receive(&part, bar).await?;
        let archive = self.url.ends_with(".zip");
        let whole = if archive { self.unpacked(&part).with_context(|| self.url.to_owned())? } else { part.clone() };
        if let Some(sha256) = self.sha256
            && let Some(got) = Expected::Sha256(sha256.to_owned()).differs(&whole)?
        {
            [&part, &whole].iter().for_each(|path| fs::remove_file(path).unwrap_or(()));
            bail!("{} is not the expected file: its SHA-256 is {got} and should be {sha256}", self.url);
        }
        fs::rename(&whole, self.path).with_context(writes)?;
        if archive {
            fs::remove_file(&part).unwrap_or(());
        }
        Ok(())
    }

    /// Continues at the end of `part`, if the server supports that.
    async fn receive(&self, part: &Path, bar: &ProgressBar) -> Result<()> {
        let have = part.metadata().map_or(0, |meta| meta.len());
        let client = Client::builder().connect_timeout(PATIENCE).read_timeout(PATIENCE).build()?;
        let request = if have > 0 {
            client.get(self.url).header(header::RANGE, format!("bytes={have}-"))
        } else {
            client.get(self.url)
        };
        let mut response = request.send().await?;
        if response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            // The download is complete, or `part` is the beginning of another file. The digest shows which.
            if self.sha256.is_some() {
                return Ok(());
            }
            fs::remove_file(part)?;
            response = client.get(self.url).send().await?;
        }
        response = response.error_for_status()?;
        let resumed = response.status() == StatusCode::PARTIAL_CONTENT;
        let start = if resumed { have } else { 0 };
        bar.set_length(start + response.content_length().unwrap_or_default());
        bar.set_position(start);
        let mut file = OpenOptions::new().create(true).append(resumed).write(true).truncate(!resumed).open(part)?;
        while let Some(chunk) = response.chunk().await? {
            file.write_all(&chunk).with_context(|| format!("cannot write {}", part.display()))?;
            bar.inc(chunk.len() as u64);
        }
        Ok(())
    }

    /// Extracts the file from the archive.
    fn unpacked(&self, archive: &Path) -> Result<PathBuf> {
        let name = self.member.or_else(|| self.path.file_name()?.to_str()).unwrap_or_default();
        let to = with_end(self.path, ".unpacked");
        unpack(archive, name, &to)?;
        Ok(to)
    }
}

/// Extracts the member of a zip archive with the file name `name`, in whichever folder it is.
pub(super) fn unpack(archive: &Path, name: &str, to: &Path) -> Result<()> {
    let mut zip = zip::ZipArchive::new(File::open(archive)?)?;
    let found = zip.file_names().find(|path| path.rsplit('/').next() == Some(name)).map(str::to_owned);
    let mut member = zip.by_name(&found.with_context(|| format!("the archive has no {name}"))?)?;
    std::io::copy(&mut member, &mut File::create(to)?)?;
    Ok(())
}

/// Returns the path with `end` appended to its name.
pub(super) fn with_end(path: &Path, end: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(end);
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::{BufRead, BufReader, Cursor},
        net::TcpListener,
        sync::{Arc, Mutex},
    };

    const SHA256_OF_ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    /// Serves `content` to as many requests as there are lengths. Each answer breaks off after that number of bytes.
    fn server(content: Vec<u8>, lengths: Vec<usize>) -> (String, Arc<Mutex<Vec<String>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, asked) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(vec![])));
        let log = asked.clone();
        std::thread::spawn(move || {
            for length in lengths {
                let (mut stream, _) = listener.accept().unwrap();
                let lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
                let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
                let range =
                    head.iter().find_map(|line| line.to_lowercase().strip_prefix("range: bytes=").map(str::to_owned));
                let start: usize = range.as_ref().map_or(0, |range| range.trim_end_matches('-').parse().unwrap());
                log.lock().unwrap().push(range.unwrap_or_default());
                let status = if start > 0 { "206 Partial Content" } else { "200 OK" };
                let rest = &content[start..];
                write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", rest.len())
                    .unwrap();
                stream.write_all(&rest[..length.min(rest.len())]).unwrap();
            }
        });
        (format!("http://{address}/files"), asked)
    }

    fn fetch(wanted: &Wanted) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(wanted.fetch(&ProgressBar::hidden()))
    }

    #[test]
    fn received_bytes_are_not_fetched_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/weights.pth");
        let (url, asked) = server(b"abc".to_vec(), vec![2, 3]);
        let url = format!("{url}/weights.pth");
        let wanted = Wanted { url: &url, path: &path, member: None, sha256: Some("ba7816bf") };
        assert!(fetch(&wanted).is_err(), "cut off after two bytes");
        assert!(!path.exists());
        fetch(&wanted).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"abc");
        assert_eq!(*asked.lock().unwrap(), ["", "2-"]);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn content_with_another_digest_is_refused_and_deleted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights.pth");
        let (url, _) = server(b"abd".to_vec(), vec![3]);
        let wanted = Wanted { url: &url, path: &path, member: None, sha256: Some(SHA256_OF_ABC) };
        let error = fetch(&wanted).unwrap_err().to_string();
        assert!(error.contains("is not the expected file: its SHA-256 is a52d159f"), "{error}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn file_is_extracted_from_an_archive() {
        let folder = tempfile::tempdir().unwrap();
        let mut zip = zip::ZipWriter::new(Cursor::new(vec![]));
        zip.start_file("package/weights.pth", zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(b"abc").unwrap();
        let archive = zip.finish().unwrap().into_inner();
        let length = archive.len();
        let (url, _) = server(archive, vec![length; 3]);
        let url = format!("{url}/package.zip");
        let path = folder.path().join("weights.pth");
        fetch(&Wanted { url: &url, path: &path, member: None, sha256: Some(SHA256_OF_ABC) }).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"abc");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        let path = folder.path().join("other.pth");
        fetch(&Wanted { url: &url, path: &path, member: Some("weights.pth"), sha256: None }).unwrap();
        let error = fetch(&Wanted { url: &url, path: &folder.path().join("none.pth"), member: None, sha256: None });
        assert!(format!("{:#}", error.unwrap_err()).ends_with("the archive has no none.pth"));
    }
}
