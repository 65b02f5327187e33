//! The hashes of an object's groups of bytes, by which a range of it is checked without reading the rest.
//!
//! BLAKE3 hashes a tree: the chaining values of equal groups of bytes combine to the hash of the whole. Groups that
//! combine to an object's digest are therefore as trustworthy as the digest, wherever they were stored, and a group
//! of bytes with the right chaining value equals what was written. A file `DIGEST.groups` beside a large object holds
//! them.

use blake3::hazmat::{ChainingValue, HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root};

use crate::engine::Digest;

/// Bytes per group. Small groups make small reads cheap, large groups need fewer hashes. It must be a power of two
/// and a multiple of BLAKE3's chunks.
pub(in crate::engine) const GROUP: u64 = 32 * 1024;

/// The chaining values of an object's groups, of which there are at least two.
#[derive(Debug, PartialEq)]
pub(in crate::engine) struct Groups {
    size: u64,
    values: Vec<ChainingValue>,
}

impl Groups {
    /// Computes the groups and the digest of a whole object. An object of a single group has no groups.
    pub(in crate::engine) fn of(bytes: &[u8]) -> (Digest, Option<Self>) {
        let size = bytes.len() as u64;
        if size <= GROUP {
            return (Digest::of(bytes), None);
        }
        // Groups are hashed sequentially, because threads of a pool may wait for the very task that hashes here.
        let values = bytes.chunks(GROUP as usize).zip(0..).map(|(group, at)| value(at, group));
        let groups = Self { size, values: values.collect() };
        (groups.digest(), Some(groups))
    }

    /// Returns the number of bytes of the object.
    pub(in crate::engine) fn size(&self) -> u64 {
        self.size
    }

    /// Returns the digest of the whole object.
    pub(in crate::engine) fn digest(&self) -> Digest {
        let (left, right) = self.halves(0..self.values.len(), self.size);
        Digest::truncate(merge_subtrees_root(&left, &right, Mode::Hash))
    }

    /// Returns the chaining values of the two halves of a run of groups that hold `size` bytes.
    fn halves(&self, run: std::ops::Range<usize>, size: u64) -> (ChainingValue, ChainingValue) {
        let left = left_subtree_len(size);
        let middle = run.start + (left / GROUP) as usize;
        (self.merged(run.start..middle, left), self.merged(middle..run.end, size - left))
    }

    fn merged(&self, run: std::ops::Range<usize>, size: u64) -> ChainingValue {
        if run.len() == 1 {
            return self.values[run.start];
        }
        let (left, right) = self.halves(run, size);
        merge_subtrees_non_root(&left, &right, Mode::Hash)
    }

    /// Returns true if these bytes match the groups from `first` on.
    pub(in crate::engine) fn fit(&self, first: u64, bytes: &[u8]) -> bool {
        let groups = bytes.chunks(GROUP as usize).zip(first..);
        let fits = |(group, at): (&[u8], u64)| self.values.get(at as usize) == Some(&value(at, group));
        groups.into_iter().all(fits)
    }

    /// Returns the content of the file beside the object: the object's size, then the chaining values.
    pub(in crate::engine) fn to_bytes(&self) -> Vec<u8> {
        self.size.to_le_bytes().into_iter().chain(self.values.iter().flatten().copied()).collect()
    }

    /// Reads the groups from the content of such a file; `None` if they are not those of an object of this digest. The
    /// digest does not cover the number of bytes in the last group: if the size is wrong, that group fits no bytes.
    pub(in crate::engine) fn read(bytes: &[u8], digest: Digest) -> Option<Self> {
        let (size, values) = bytes.split_first_chunk::<8>()?;
        let size = u64::from_le_bytes(*size);
        let (values, rest) = values.as_chunks::<32>();
        let groups = Self { size, values: values.to_vec() };
        let is_whole = size > GROUP && rest.is_empty() && groups.values.len() as u64 == size.div_ceil(GROUP);
        (is_whole && groups.digest() == digest).then_some(groups)
    }

    /// Does as [`Groups::read`]; `None` also for an object of another size.
    pub(in crate::engine) fn from_bytes(bytes: &[u8], size: u64, digest: Digest) -> Option<Self> {
        Self::read(bytes, digest).filter(|groups| groups.size == size)
    }
}

fn value(at: u64, group: &[u8]) -> ChainingValue {
    let mut hasher = blake3::Hasher::new();
    hasher.set_input_offset(at * GROUP).update(group).finalize_non_root()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(size: u64) -> Vec<u8> {
        (0..size).map(|i| (i % 251) as u8).collect()
    }

    #[test]
    fn groups_combine_to_the_digest_of_the_whole() {
        for size in [0, 1, GROUP, GROUP + 1, 2 * GROUP, 3 * GROUP - 1, 5 * GROUP + 7, 8 * GROUP, 17 * GROUP + 1025] {
            let bytes = object(size);
            let (digest, groups) = Groups::of(&bytes);
            assert_eq!(digest, Digest::of(&bytes), "{size}");
            assert_eq!(groups.is_some(), size > GROUP);
            if let Some(groups) = groups {
                assert_eq!(Groups::from_bytes(&groups.to_bytes(), size, digest), Some(groups));
            }
        }
    }

    #[test]
    fn changed_byte_matches_no_group() {
        let mut bytes = object(3 * GROUP + 5);
        let (digest, groups) = Groups::of(&bytes);
        let groups = groups.unwrap();
        let of = |bytes: &[u8], from: u64, to: u64| bytes[(from * GROUP) as usize..(to * GROUP) as usize].to_vec();
        assert!(groups.fit(1, &of(&bytes, 1, 3)) && groups.fit(3, &bytes[3 * GROUP as usize..]));
        assert!(!groups.fit(0, &of(&bytes, 1, 2)), "bytes of another place");
        bytes[2 * GROUP as usize] ^= 1;
        assert!(groups.fit(1, &of(&bytes, 1, 2)) && !groups.fit(1, &of(&bytes, 1, 3)));
        let kept = groups.to_bytes();
        for at in [0, 9, kept.len() - 1] {
            let mut damaged = kept.clone();
            damaged[at] ^= 1;
            assert_eq!(Groups::from_bytes(&damaged, 3 * GROUP + 5, digest), None, "{at}");
        }
        assert_eq!(Groups::from_bytes(&kept[..40], 3 * GROUP + 5, digest), None);
    }
}
