//! Digests that are remembered between runs: a file of stamps with the digests of the files that they stand for.

use std::{
    io::{self, Write},
    path::Path,
};

use super::{temporary::Temporary, tree::Stamp};
use crate::engine::Digest;

/// The first bytes of the file. The digest of the rest follows, then pairs of stamp and digest, ascending.
const MAGIC: &[u8; 16] = b"vlmdiff digests\x01";

const HEADER: usize = MAGIC.len() + Digest::LEN;

const PAIR: usize = 2 * Digest::LEN;

/// The remembered pairs. A file that is missing or damaged counts as empty.
pub(in crate::engine) struct Memory(Vec<u8>);

impl Memory {
    pub(in crate::engine) fn load(file: &Path) -> Self {
        let whole = |bytes: &Vec<u8>| {
            let (header, body) = bytes.split_at_checked(HEADER)?;
            (header.starts_with(MAGIC) && header.ends_with(Digest::of(body).as_bytes())).then_some(())
        };
        Self(std::fs::read(file).ok().filter(|bytes| whole(bytes).is_some()).unwrap_or_default())
    }

    fn pairs(&self) -> &[[u8; PAIR]] {
        self.0.get(HEADER..).unwrap_or_default().as_chunks().0
    }

    pub(in crate::engine) fn get(&self, stamp: &Stamp) -> Option<Digest> {
        let pairs = self.pairs();
        let at = pairs.binary_search_by(|pair| pair[..Digest::LEN].cmp(stamp.id.as_bytes())).ok()?;
        Digest::from_slice(&pairs[at][Digest::LEN..])
    }

    /// Stores fresh digests, and of the others those whose stamps still exist.
    pub(in crate::engine) fn replace<'a, 'b>(
        &self,
        file: &Path,
        stamps: impl Iterator<Item = &'a Stamp>,
        fresh: impl Iterator<Item = (&'b Stamp, Digest)>,
    ) -> io::Result<()> {
        // Sorting is stable and fresh pairs come first, so that of pairs with one stamp the fresh one is kept.
        let mut pairs: Vec<(Digest, Digest)> = fresh.map(|(stamp, digest)| (stamp.id, digest)).collect();
        if pairs.is_empty() {
            return Ok(());
        }
        pairs.extend(stamps.filter_map(|stamp| Some((stamp.id, self.get(stamp)?))));
        pairs.sort_by_key(|(stamp, _)| *stamp);
        pairs.dedup_by_key(|(stamp, _)| *stamp);
        let body: Vec<u8> =
            pairs.iter().flat_map(|(stamp, digest)| [stamp.as_bytes(), digest.as_bytes()]).flatten().copied().collect();
        if self.0.get(HEADER..) == Some(&body) {
            return Ok(());
        }
        let mut temporary = Temporary::beside(file)?;
        temporary.write_all(MAGIC)?;
        temporary.write_all(Digest::of(&body).as_bytes())?;
        temporary.write_all(&body)?;
        temporary.keep_as(file)
    }
}
