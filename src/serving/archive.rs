//! The last photographs that were judged, in a folder: each with its answer, its bytes and its anomaly map. A server that
//! is started again finds them there.

use std::{
    collections::{HashMap, VecDeque},
    fs::{self, File, TryLockError},
    io::Write,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;

use super::answer::Answer;
use crate::{
    engine::{Error, Result},
    tables::images::Taken,
};

/// A photograph that was judged.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Kept {
    pub(super) answer: Answer,
    /// The digest of all that its verdict follows from beside the photograph.
    pub(super) inspector: String,
    /// The media type of its bytes.
    pub(super) media_type: String,
    /// Width and height of its map, if it has one.
    pub(super) map_size: Option<(u32, u32)>,
    /// The way in which it became the pixels that were judged.
    pub(super) taken: Taken,
}

impl Kept {
    pub(super) fn id(&self) -> &str {
        &self.answer.judged.image_id
    }
}

/// The photographs, of which the oldest are forgotten.
pub(super) struct Archive {
    folder: PathBuf,
    keep: usize,
    entries: RwLock<Entries>,
    _lock: File,
}

#[derive(Default)]
struct Entries {
    by_id: HashMap<String, Arc<Kept>>,
    /// Ids, the oldest first.
    order: VecDeque<String>,
}

/// The endings of the files of a photograph. The answer is written last and removed first.
const ANSWER: &str = "json";
const PHOTOGRAPH: &str = "photograph";
const MAP: &str = "map";
/// The file that the server holds a lock on.
const LOCK: &str = "lock";

impl Archive {
    /// Opens a folder, which is made if absent, and forgets photographs that were judged by another model or with other
    /// parameters than `inspector` stands for.
    ///
    /// # Errors
    /// [`Error::Input`] if the folder cannot be used, has files though no server has used it, or another server uses it.
    pub(super) fn open(folder: &Path, keep: usize, inspector: &str) -> Result<Self> {
        let cannot = |e: std::io::Error| {
            Error::Input(format!("cannot keep photographs in {}: {e}; --folder names another folder", folder.display()))
        };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(cannot)?;
        if is_of_others(folder).map_err(cannot)? {
            return Err(Error::Input(format!(
                "{} has files that no server wrote, and a server deletes what it does not keep; --folder names a new or an \
                 empty folder",
                folder.display()
            )));
        }
        let lock = File::create(folder.join(LOCK)).map_err(cannot)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::Input(format!(
                    "another server keeps its photographs in {}; --folder names another folder",
                    folder.display()
                )));
            }
            Err(TryLockError::Error(e)) => return Err(cannot(e)),
        }
        let archive = Self { folder: folder.to_owned(), keep, entries: RwLock::default(), _lock: lock };
        archive.load(inspector).map_err(cannot)?;
        Ok(archive)
    }

    fn load(&self, inspector: &str) -> std::io::Result<()> {
        let mut found = Vec::new();
        let mut others = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|ending| ending == ANSWER) {
                let kept = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<Kept>(&bytes).ok());
                match kept.filter(|kept| kept.inspector == inspector && self.has_files(kept)) {
                    Some(kept) => found.push(kept),
                    None => others.push(path),
                }
            } else if path.file_name().is_some_and(|name| name != LOCK) {
                others.push(path);
            }
        }
        found.sort_by(|a, b| a.answer.judged_ms.cmp(&b.answer.judged_ms).then_with(|| a.id().cmp(b.id())));
        let mut entries = Entries::default();
        for kept in found {
            entries.order.push_back(kept.id().to_owned());
            entries.by_id.insert(kept.id().to_owned(), Arc::new(kept));
        }
        // Files without an answer are those of photographs that were being written or removed.
        for path in others {
            let is_of_entry = path.file_stem().is_some_and(|id| entries.by_id.contains_key(&*id.to_string_lossy()));
            if !is_of_entry {
                fs::remove_file(path)?;
            }
        }
        *self.entries.write().unwrap_or_else(PoisonError::into_inner) = entries;
        self.forget_old();
        Ok(())
    }

    fn has_files(&self, kept: &Kept) -> bool {
        let path = |ending| self.path(kept.id(), ending);
        path(PHOTOGRAPH).is_file() && (kept.map_size.is_none() || path(MAP).is_file())
    }

    fn path(&self, id: &str, ending: &str) -> PathBuf {
        self.folder.join(format!("{id}.{ending}"))
    }

    /// Makes a file for the bytes of a photograph that is being received. It vanishes unless the photograph is kept.
    pub(super) fn receive(&self) -> std::io::Result<NamedTempFile> {
        NamedTempFile::new_in(&self.folder)
    }

    /// Keeps a photograph with its map, row after row, and forgets the oldest ones.
    pub(super) fn keep(
        &self,
        kept: Kept,
        photograph: NamedTempFile,
        map: Option<&[f32]>,
    ) -> std::io::Result<Arc<Kept>> {
        let id = kept.id().to_owned();
        photograph.persist(self.path(&id, PHOTOGRAPH))?;
        if let Some(map) = map {
            let bytes: Vec<u8> = map.iter().flat_map(|value| value.to_le_bytes()).collect();
            fs::write(self.path(&id, MAP), bytes)?;
        }
        let mut file = NamedTempFile::new_in(&self.folder)?;
        file.write_all(&serde_json::to_vec(&kept)?)?;
        file.persist(self.path(&id, ANSWER))?;
        let kept = Arc::new(kept);
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        if entries.by_id.insert(id.clone(), kept.clone()).is_none() {
            entries.order.push_back(id);
        }
        drop(entries);
        self.forget_old();
        Ok(kept)
    }

    /// Forgets the oldest photographs if there are too many. A file that cannot be removed now is removed when the folder
    /// is opened again.
    fn forget_old(&self) {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        while entries.order.len() > self.keep {
            let Some(id) = entries.order.pop_front() else { return };
            entries.by_id.remove(&id);
            for ending in [ANSWER, PHOTOGRAPH, MAP] {
                let _ = fs::remove_file(self.path(&id, ending));
            }
        }
    }

    /// Returns a photograph.
    pub(super) fn get(&self, id: &str) -> Option<Arc<Kept>> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner).by_id.get(id).cloned()
    }

    /// Returns all photographs, the newest first.
    pub(super) fn all(&self) -> Vec<Arc<Kept>> {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        entries.order.iter().rev().filter_map(|id| entries.by_id.get(id).cloned()).collect()
    }

    /// Reads the bytes of a photograph.
    pub(super) fn photograph(&self, id: &str) -> std::io::Result<Vec<u8>> {
        fs::read(self.path(id, PHOTOGRAPH))
    }

    /// Reads the map of a photograph.
    pub(super) fn map(&self, id: &str) -> std::io::Result<Vec<f32>> {
        let bytes = fs::read(self.path(id, MAP))?;
        let (values, _) = bytes.as_chunks::<4>();
        Ok(values.iter().map(|value| f32::from_le_bytes(*value)).collect())
    }
}

/// Returns true if a folder has files and no server has used it: a server makes its lock before any other file.
fn is_of_others(folder: &Path) -> std::io::Result<bool> {
    let has_files = fs::read_dir(folder)?.next().is_some();
    Ok(has_files && !folder.join(LOCK).try_exists()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        inspect::Verdict,
        serving::answer::{Links, Word},
    };

    fn kept(id: &str, judged_ms: u64) -> Kept {
        let judged = Verdict {
            image_id: id.into(),
            class: "nut".into(),
            anomalous: Some(true),
            score: Some(0.1),
            p_value: Some(0.05),
            rate: Some(0.1),
            threshold: Some(0.05),
            model: "m".into(),
            regions: None,
            nearest: None,
        };
        let answer = Answer {
            verdict: Word::Anomalous,
            judged,
            pixel_threshold: None,
            map_scale: None,
            digest: "0".into(),
            name: None,
            width: 4,
            height: 2,
            judged_ms,
            links: Links::of(id, true, false, false),
        };
        let media_type = "image/png".into();
        Kept { answer, inspector: "i".into(), media_type, map_size: Some((2, 1)), taken: Taken::default() }
    }

    fn ids(archive: &Archive) -> Vec<String> {
        archive.all().iter().map(|kept| kept.id().to_owned()).collect()
    }

    #[test]
    fn files_that_no_server_wrote_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let holiday = folder.path().join("holiday.jpg");
        fs::write(&holiday, "dear").unwrap();
        let told = Archive::open(folder.path(), 2, "i").err().unwrap().to_string();
        assert!(told.contains("files that no server wrote") && told.contains("--folder names a new"), "{told}");
        assert_eq!(fs::read_to_string(holiday).unwrap(), "dear");
        assert!(!folder.path().join(LOCK).exists());
    }

    #[test]
    fn last_photographs_are_kept_and_found_again() {
        let folder = tempfile::tempdir().unwrap();
        let archive = Archive::open(folder.path(), 2, "i").unwrap();
        let told = Archive::open(folder.path(), 2, "i").err().unwrap().to_string();
        assert!(told.contains("another server") && told.contains("--folder"), "{told}");
        for (id, at) in [("a", 1), ("b", 2), ("c", 3)] {
            let mut file = archive.receive().unwrap();
            file.write_all(id.as_bytes()).unwrap();
            archive.keep(kept(id, at), file, Some(&[0.5, f32::MIN])).unwrap();
        }
        assert_eq!(ids(&archive), ["c", "b"]);
        assert!(archive.get("a").is_none() && archive.photograph("a").is_err());
        drop(archive);
        fs::write(folder.path().join("left.photograph"), "half").unwrap();
        let again = Archive::open(folder.path(), 2, "i").unwrap();
        assert_eq!(ids(&again), ["c", "b"]);
        assert_eq!((again.photograph("b").unwrap(), again.map("b").unwrap()), (b"b".to_vec(), vec![0.5, f32::MIN]));
        assert_eq!(again.get("b").unwrap().answer.judged, kept("b", 2).answer.judged);
        assert!(!folder.path().join("left.photograph").exists());
        drop(again);
        // Verdicts of another inspector are forgotten with all their files.
        assert!(ids(&Archive::open(folder.path(), 2, "other").unwrap()).is_empty());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
