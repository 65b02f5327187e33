//! Content digests: 128 bits of BLAKE3, written as 32 hexadecimal digits.

use std::{collections::HashMap, fmt, hash::BuildHasherDefault, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The number of digests that are hashed at a time.
const MANY: usize = 4096;

/// Names a content: equal digests mean equal bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Digest([u8; 16]);

impl Ord for Digest {
    /// The order of the bytes, compared as one number: tables are sorted by their rows' digests.
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        u128::from_be_bytes(self.0).cmp(&u128::from_be_bytes(other.0))
    }
}

impl PartialOrd for Digest {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl std::hash::Hash for Digest {
    /// A digest is already uniformly distributed, so some of its bytes suffice as hash.
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        state.write_u64(u64::from_le_bytes([a, b, c, d, e, f, g, h]));
    }
}

/// A map with digests as keys, which are not hashed again.
pub(in crate::engine) type DigestMap<T> = HashMap<Digest, T, BuildHasherDefault<AsIs>>;

/// The hasher of a digest, which takes bytes of the digest as the hash.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::engine) struct AsIs(u64);

impl std::hash::Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.0 = self.0.rotate_left(8) ^ u64::from(*byte));
    }
}

impl Digest {
    /// Bytes of a digest, the width of a digest column.
    pub const LEN: usize = 16;

    /// Returns the digest of a byte string.
    pub fn of(bytes: &[u8]) -> Self {
        Self::truncate(blake3::hash(bytes))
    }

    /// Returns the digest of a file's content. The file is read and not mapped: if a mapped file is truncated
    /// meanwhile, or its disk fails, the process would be killed.
    pub fn of_file(path: &std::path::Path) -> std::io::Result<Self> {
        Ok(Self::truncate(blake3::Hasher::new().update_reader(std::fs::File::open(path)?)?.finalize()))
    }

    /// Returns a digest that stands for the content of a file that cannot be read. BLAKE3 derives it in a separate
    /// mode, so it is the digest of no content.
    pub fn unreadable(reason: &str) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("vlmdiff: why a file cannot be read");
        Self::truncate(hasher.update(reason.as_bytes()).finalize())
    }

    /// Makes a digest from its 16 bytes; `None` for another length.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// Reads digests that follow one another; `None` if the last one is cut short.
    pub(in crate::engine) fn each_of(bytes: &[u8]) -> Option<Vec<Self>> {
        let (digests, rest) = bytes.as_chunks::<16>();
        rest.is_empty().then(|| digests.iter().map(|digest| Self(*digest)).collect())
    }

    /// Returns the 16 bytes.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// Returns the first 16 bytes of a hash as a digest.
    pub(in crate::engine) fn truncate(hash: blake3::Hash) -> Self {
        let mut short = [0; 16];
        short.copy_from_slice(&hash.as_bytes()[..16]);
        Self(short)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("`{text}` is not a digest of 32 hexadecimal digits");
        if text.len() != 32 || !text.is_ascii() {
            return Err(bad());
        }
        let mut bytes = [0; 16];
        for (byte, i) in bytes.iter_mut().zip((0..32).step_by(2)) {
            *byte = u8::from_str_radix(&text[i..i + 2], 16).map_err(|_| bad())?;
        }
        Ok(Self(bytes))
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Hashes a sequence of fields. Lengths are hashed too, so that different sequences have different digests.
#[derive(Default)]
pub struct Hasher(blake3::Hasher);

impl Hasher {
    /// Starts the digest of something of a kind. Digests of different kinds never collide.
    pub fn new(kind: &str) -> Self {
        let mut hasher = Self::default();
        hasher.field(kind.as_bytes());
        hasher
    }

    /// Adds bytes of any length.
    pub fn field(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.update(&(bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
        self
    }

    /// Adds digests, each as a field. Many are hashed at a time, which is faster.
    pub(in crate::engine) fn digests(&mut self, digests: &[Digest]) -> &mut Self {
        let length = (Digest::LEN as u64).to_le_bytes();
        let mut fields = Vec::new();
        for many in digests.chunks(MANY) {
            fields.clear();
            many.iter().for_each(|digest| {
                fields.extend_from_slice(&length);
                fields.extend_from_slice(&digest.0);
            });
            self.0.update(&fields);
        }
        self
    }

    /// Adds bytes whose length the kind already fixes.
    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Returns the digest of all that was added.
    pub fn finish(&self) -> Digest {
        Digest::truncate(self.0.finalize())
    }
}

/// The fields of a short sequence, hashed at once; the digest is [`Hasher`]'s.
pub(in crate::engine) struct Fields(Vec<u8>);

impl Fields {
    /// Starts a digest of things of one kind.
    pub(in crate::engine) fn new(kind: &str) -> Self {
        let mut fields = Self(Vec::with_capacity(256));
        fields.add(kind.as_bytes());
        fields
    }

    /// Adds bytes of any length.
    pub(in crate::engine) fn add(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        self.0.extend_from_slice(bytes);
        self
    }

    /// Returns the digest of all that was added.
    pub(in crate::engine) fn digest(&self) -> Digest {
        Digest::of(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_hashed_at_once_have_the_same_digest() {
        let digests: Vec<Digest> = (0..2 * MANY + 1).map(|i| Digest::of(&i.to_le_bytes())).collect();
        let (mut one_by_one, mut at_once, mut fields) = (Hasher::new("k"), Hasher::new("k"), Fields::new("k"));
        digests.iter().for_each(|digest| {
            one_by_one.field(digest.as_bytes());
            fields.add(digest.as_bytes());
        });
        assert_eq!(at_once.digests(&digests).finish(), one_by_one.finish());
        assert_eq!(fields.digest(), one_by_one.finish());
    }

    #[test]
    fn fields_do_not_run_together() {
        let digest = |fields: &[&str]| {
            let mut hasher = Hasher::new("test");
            fields.iter().for_each(|f| {
                hasher.field(f.as_bytes());
            });
            hasher.finish()
        };
        assert_ne!(digest(&["ab", "c"]), digest(&["a", "bc"]));
        assert_ne!(digest(&["a", ""]), digest(&["a"]));
        assert_eq!(digest(&["a", "b"]).to_string().parse(), Ok(digest(&["a", "b"])));
        assert!("zz".parse::<Digest>().is_err());
    }
}
