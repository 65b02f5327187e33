//! The digests that files should have, and their comparison.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use sha1::Sha1;
use sha2::{Digest, Sha256};

/// The digest that a file should have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Expected {
    /// SHA-256, or its beginning.
    Sha256(String),
    /// The name of the file's content in git: SHA-1 of `blob LENGTH\0` and the content.
    GitBlob(String),
}

impl Expected {
    /// Returns the digest of a file in the Hugging Face cache, which names contents by the hub's etag: one of the two
    /// kinds of digests.
    pub(super) fn of_cached(path: &Path) -> Option<Self> {
        let blob = path.canonicalize().ok()?;
        let inside = blob.parent()?.file_name()? == "blobs";
        Self::of_etag(blob.file_name()?.to_str()?).filter(|_| inside)
    }

    /// Returns the expected digest.
    pub(super) fn wanted(&self) -> &str {
        let (Self::Sha256(want) | Self::GitBlob(want)) = self;
        want
    }

    fn of_etag(etag: &str) -> Option<Self> {
        let hex = etag.bytes().all(|b| b.is_ascii_hexdigit());
        match etag.len() {
            64 if hex => Some(Self::Sha256(etag.to_owned())),
            40 if hex => Some(Self::GitBlob(etag.to_owned())),
            _ => None,
        }
    }

    /// Returns the digest of a file if it is not the expected one.
    pub(super) fn differs(&self, path: &Path) -> io::Result<Option<String>> {
        let mut file = File::open(path)?;
        let got = match self {
            Self::Sha256(_) => hash(Sha256::new(), &mut file)?,
            Self::GitBlob(_) => {
                let header = format!("blob {}\0", file.metadata()?.len());
                hash(Sha1::new_with_prefix(header), &mut file)?
            }
        };
        Ok((!got.starts_with(self.wanted())).then_some(got))
    }
}

fn hash(mut hasher: impl Digest, from: &mut impl Read) -> io::Result<String> {
    let mut buffer = vec![0; 1 << 20];
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
            read => hasher.update(&buffer[..read]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_is_compared_with_its_name_in_the_cache() {
        let folder = tempfile::tempdir().unwrap();
        let sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let git = "f2ba8f84ab5c1bce84a7b441cb1959cfc7093b7f"; // printf abc | git hash-object --stdin
        let blobs = folder.path().join("blobs");
        std::fs::create_dir(&blobs).unwrap();
        for (name, expected) in [(sha256, Expected::Sha256(sha256.into())), (git, Expected::GitBlob(git.into()))] {
            let (blob, link) = (blobs.join(name), folder.path().join(format!("{name}.link")));
            std::fs::write(&blob, "abc").unwrap();
            std::os::unix::fs::symlink(&blob, &link).unwrap();
            assert_eq!(Expected::of_cached(&link), Some(expected.clone()));
            assert_eq!(expected.differs(&link).unwrap(), None);
            std::fs::write(&blob, "abd").unwrap();
            assert!(expected.differs(&link).unwrap().is_some());
        }
        let plain = folder.path().join(sha256);
        std::fs::write(&plain, "abc").unwrap();
        assert_eq!(Expected::of_cached(&plain), None, "no blob");
        assert_eq!(Expected::Sha256("ba7816bf".into()).differs(&plain).unwrap(), None, "a beginning");
    }
}
