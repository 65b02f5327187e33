//! COCO's annotations, hundreds of megabytes, of which what is needed is remembered between runs.

use std::{collections::BTreeMap, fs::File, io::BufReader};

use serde::{Serialize, de::DeserializeOwned};

use super::failure::input_error;
use crate::{
    datasets::{
        Files, Listing,
        coco_ad::{self, Annotated, Captions, CocoAd, Described, Half},
    },
    engine::{
        Digest, Error, Hasher, Result,
        source::{Sources, Tree},
    },
};

/// The number of bytes that are read at a time.
const BUFFER: usize = 1 << 20;

/// Lists a split of COCO-AD.
pub(super) fn list<'a>(files: &Files<'a>, choice: CocoAd, tree: &Tree, sources: &Sources) -> Result<Listing<'a>> {
    coco_ad::check(files).map_err(input_error)?;
    let annotations = Annotations { tree, sources };
    let mut images = annotations.read("coco-instances", Half::instances, |half, file| match half {
        Half::Train => coco_ad::read_train(file),
        Half::Val => coco_ad::read_test(file),
    })?;
    let mut captions = annotations.read("coco-captions", Half::captions, |_, file| coco_ad::read_captions(file))?;
    let mut of = |half: Half| -> (Vec<Annotated>, Captions) {
        (images.remove(half.folder()).unwrap_or_default(), captions.remove(half.folder()).unwrap_or_default())
    };
    let [train, test] = [of(Half::Train), of(Half::Val)];
    let [train, test] = [&train, &test].map(|(images, captions)| Described { images, captions });
    Ok(coco_ad::list(files, choice, train, test))
}

struct Annotations<'a> {
    tree: &'a Tree,
    sources: &'a Sources,
}

impl Annotations<'_> {
    /// Returns what is read of a file of each half, by the half's folder, as far as the files exist. Facts about the
    /// same content are recalled; `kind` names them.
    fn read<T: Serialize + DeserializeOwned>(
        &self,
        kind: &str,
        file: impl Fn(Half) -> String,
        parse: impl Fn(Half, BufReader<File>) -> Result<T, String>,
    ) -> Result<BTreeMap<&'static str, T>> {
        let halves = [Half::Train, Half::Val].map(|half| (half, file(half)));
        let there: Vec<&(Half, String)> =
            halves.iter().filter(|(_, path)| self.tree.paths().any(|other| other == path)).collect();
        let paths: Vec<&str> = there.iter().map(|(_, path)| path.as_str()).collect();
        let digests = self.sources.digests(self.tree, &paths)?;
        let mut known: BTreeMap<Digest, T> = self.sources.recall(kind, &self.tree.root);
        let mut keys = Vec::new();
        let mut is_new = false;
        for ((half, path), digest) in there.into_iter().zip(digests) {
            // Both halves may have the same content, and are read differently.
            let key = Hasher::new(kind).field(path.as_bytes()).field(digest.as_bytes()).finish();
            keys.push((half.folder(), key));
            if known.contains_key(&key) {
                continue;
            }
            let address = self.tree.address(path)?;
            let wrong = |error: String| Error::Input(format!("{address}: {error}"));
            let opened = File::open(self.sources.local(&address)?).map_err(|e| wrong(e.to_string()))?;
            known.insert(key, parse(*half, BufReader::with_capacity(BUFFER, opened)).map_err(wrong)?);
            is_new = true;
        }
        known.retain(|key, _| keys.iter().any(|(_, other)| other == key));
        if is_new {
            self.sources.remember(kind, &self.tree.root, &known);
        }
        Ok(keys.into_iter().filter_map(|(half, key)| Some((half, known.remove(&key)?))).collect())
    }
}
