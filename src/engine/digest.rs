//! Content digests: 128 bits of BLAKE3, written as 32 hexadecimal digits.

use std::{collections::HashMap, fmt, hash::BuildHasherDefault, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Names a content: equal digests mean equal bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Digest([u8; 16]);

impl std::hash::Hash for Digest {
    /// A digest is a hash already: some of its bytes tell it from others as well as all.
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        state.write_u64(u64::from_le_bytes([a, b, c, d, e, f, g, h]));
    }
}

/// A map by digests, which are not hashed again.
pub(in crate::engine) type DigestMap<T> = HashMap<Digest, T, BuildHasherDefault<AsIs>>;

/// The hash of a digest.
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

    /// The digest of a byte string.
    pub fn of(bytes: &[u8]) -> Self {
        Self::truncate(blake3::hash(bytes))
    }

    /// The digest of a file's content. It is read, not mapped: a mapped file that is cut short meanwhile, or lies on a disk that
    /// fails, would end the process.
    pub fn of_file(path: &std::path::Path) -> std::io::Result<Self> {
        Ok(Self::truncate(blake3::Hasher::new().update_reader(std::fs::File::open(path)?)?.finalize()))
    }

    /// Stands for the content of a file that cannot be read. BLAKE3 derives it in a mode of its own: it is the digest of no content.
    pub fn unreadable(reason: &str) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("vlmdiff: why a file cannot be read");
        Self::truncate(hasher.update(reason.as_bytes()).finalize())
    }

    /// A digest from its 16 bytes, or `None` for another length.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The 16 bytes.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// The digest that a hash is.
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

/// Hashes a sequence of fields so that no two different sequences run together.
#[derive(Default)]
pub struct Hasher(blake3::Hasher);

impl Hasher {
    /// Starts a digest of things of one kind: digests of different kinds never collide.
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

    /// Adds bytes whose length the kind already fixes.
    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of all that was added.
    pub fn finish(&self) -> Digest {
        Digest::truncate(self.0.finalize())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
