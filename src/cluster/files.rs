//! Files that a job names, such as weights: the driver puts them into the store, and an executor whose machine lacks them takes
//! them from there, by their digests.
//!
//! A parameter that only says where files lie is not part of a stage's identity, so an executor may put another place there.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::engine::{
    Digest, Error, Hasher, Result, is_url, local_path,
    source::{Sources, scratch_folder},
    stage::{Job, StageKind},
    store::Store,
};

/// A file of a job: its address on the driver's machine, and the digest of its content.
type File = (String, Digest);

/// Puts the local files of a job into the store.
pub(super) fn send(job: &Job, store: &Store) -> Result<()> {
    let local = job.files.iter().filter(|(address, _)| !is_url(address));
    local.into_iter().try_for_each(|(address, digest)| store.put_file(*digest, &local_path(address)))
}

/// Returns the parameters of a job that say where something lies, as pointers into its parameters.
fn pointers(job: &Job, kinds: &[StageKind]) -> Vec<String> {
    let kind = kinds.iter().find(|kind| kind.name == job.stage);
    let stage = kind.and_then(|kind| (kind.parse)(&job.params).ok());
    let paths = stage.map(|stage| stage.locations()).unwrap_or_default();
    paths.iter().map(|path| format!("/{}", path.replace('.', "/"))).collect()
}

/// Returns the files that each place names: those below it, itself, and those beside it.
///
/// A parameter may give weights a name of the catalogue in place of a path. If there is one such parameter, the other files are
/// its files.
fn by_place(places: &[(String, String)], files: &[File]) -> Vec<(String, String, Vec<File>)> {
    let is_of = |file: &str, place: &str| {
        let below = file.strip_prefix(place.trim_end_matches('/')).is_some_and(|rest| rest.starts_with('/'));
        let is_beside =
            files.iter().any(|(other, _)| other == place) && Path::new(file).parent() == Path::new(place).parent();
        file == place || below || is_beside
    };
    let mut found: Vec<(String, String, Vec<File>)> = Vec::new();
    for (pointer, place) in places {
        let of_place = files.iter().filter(|(file, _)| is_of(file, place)).cloned().collect();
        found.push((pointer.clone(), place.clone(), of_place));
    }
    let rest: Vec<File> =
        files.iter().filter(|(file, _)| !places.iter().any(|(_, place)| is_of(file, place))).cloned().collect();
    let mut names = found.iter_mut().filter(|(_, place, files)| files.is_empty() && !place.contains("://"));
    if let (Some((_, _, files)), None) = (names.next(), names.next()) {
        *files = rest;
    }
    found.retain(|(_, _, files)| !files.is_empty());
    found
}

/// Makes sure that this machine has the local files of a job, and changes the places in its parameters if they lie elsewhere
/// here.
pub(super) fn place(job: &mut Job, store: &Store, kinds: &[StageKind], verify: bool) -> Result<()> {
    let local: Vec<File> = job.files.iter().filter(|(address, _)| !is_url(address)).cloned().collect();
    let sources = Sources::new(verify);
    let is_here = |(address, digest): &File| {
        local_path(address).is_file() && sources.digest(address).is_ok_and(|found| found == *digest)
    };
    if local.iter().all(is_here) {
        return Ok(());
    }
    let places: Vec<(String, String)> = pointers(job, kinds)
        .into_iter()
        .filter_map(|pointer| {
            let place = job.params.pointer(&pointer)?.as_str()?.to_owned();
            Some((pointer, place))
        })
        .collect();
    let mut moved = BTreeMap::new();
    for (pointer, place, files) in by_place(&places, &local) {
        let folder = folder_of(&files)?;
        let base = base_of(&files);
        for (address, digest) in &files {
            let path = folder.join(Path::new(address).strip_prefix(&base).unwrap_or(Path::new(address)));
            fetch(&path, *digest, store, &sources)?;
            moved.insert(address.clone(), path.to_string_lossy().into_owned());
        }
        let is_file = files.iter().any(|(address, _)| *address == place) || files.len() == 1;
        let to = match files.iter().find(|(address, _)| *address == place).or(files.first()) {
            Some((address, _)) if is_file => moved[address].clone(),
            _ => folder.to_string_lossy().into_owned(),
        };
        if let Some(value) = job.params.pointer_mut(&pointer) {
            *value = Value::String(to);
        }
    }
    for (address, _) in &mut job.files {
        if let Some(to) = moved.get(address) {
            address.clone_from(to);
        }
    }
    let lacks = job.files.iter().filter(|file| !is_url(&file.0)).find(|file| !is_here(file));
    match lacks {
        None => Ok(()),
        Some((address, _)) => Err(Error::Input(format!(
            "{address} is not here as the driver has it, and no parameter of the stage `{}` says where it lies; copy it to the \
             same path",
            job.stage
        ))),
    }
}

/// Returns the folder that all files lie in or below.
fn base_of(files: &[File]) -> PathBuf {
    let mut folders = files.iter().map(|(address, _)| Path::new(address).parent().unwrap_or(Path::new("")).to_owned());
    let first = folders.next().unwrap_or_default();
    folders.fold(first, |base, folder| {
        let common = base.ancestors().find(|above| folder.starts_with(above));
        common.unwrap_or(Path::new("")).to_owned()
    })
}

/// Returns the folder of this machine for a set of files.
fn folder_of(files: &[File]) -> Result<PathBuf> {
    let mut hasher = Hasher::new("placed");
    for (address, digest) in files {
        let name = Path::new(address).file_name().unwrap_or_default();
        hasher.field(name.as_encoded_bytes()).field(digest.as_bytes());
    }
    Ok(scratch_folder()?.with_file_name("placed").join(hasher.finish().to_string()))
}

/// Writes a blob to a path, unless a file with its content is there.
fn fetch(path: &Path, digest: Digest, store: &Store, sources: &Sources) -> Result<()> {
    if path.is_file() && sources.digest(&path.to_string_lossy())? == digest {
        return Ok(());
    }
    let folder = path.parent().unwrap_or(Path::new("."));
    let cannot = |e: std::io::Error| {
        Error::Input(format!("cannot write {}: {e}; `VLMDIFF_CACHE` names another folder", path.display()))
    };
    std::fs::create_dir_all(folder).map_err(cannot)?;
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(cannot)?;
    std::io::Write::write_all(&mut file, &store.blob(digest)?).map_err(cannot)?;
    file.persist(path).map_err(|e| cannot(e.error))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stages::KINDS;

    fn files(names: &[&str]) -> Vec<File> {
        names.iter().map(|name| ((*name).to_owned(), Digest::of(name.as_bytes()))).collect()
    }

    fn places(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(pointer, place)| ((*pointer).to_owned(), (*place).to_owned())).collect()
    }

    fn names(files: &[File]) -> Vec<&str> {
        files.iter().map(|(name, _)| name.as_str()).collect()
    }

    #[test]
    fn files_belong_to_the_parameter_that_names_them() {
        let all =
            files(&["/w/a/config.json", "/w/a/model.safetensors", "/w/lpips.pth", "/v/b/x.bin", "/v/b/config.json"]);
        let found =
            by_place(&places(&[("/init", "/w/a"), ("/perceptual", "/w/lpips.pth"), ("/x", "/v/b/x.bin")]), &all);
        assert_eq!(found.len(), 3);
        assert_eq!(names(&found[0].2), ["/w/a/config.json", "/w/a/model.safetensors"]);
        assert_eq!(names(&found[1].2), ["/w/lpips.pth"]);
        assert_eq!(names(&found[2].2), ["/v/b/x.bin", "/v/b/config.json"], "a configuration beside weights is theirs");
    }

    #[test]
    fn other_files_belong_to_the_one_parameter_with_a_name() {
        let all = files(&["/hub/a/config.json", "/hub/a/model.safetensors"]);
        let found = by_place(&places(&[("/weights", "dinov2-small"), ("/tokenizer", "s3://b/t")]), &all);
        assert_eq!((found.len(), found[0].0.as_str(), found[0].2.len()), (1, "/weights", 2));
        assert!(by_place(&places(&[("/weights", "one"), ("/tokenizer", "other")]), &all).is_empty());
    }

    #[test]
    fn file_that_is_not_here_is_taken_from_the_store_to_another_place() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("store").to_string_lossy()).unwrap();
        let weights = folder.path().join("weights.safetensors");
        std::fs::write(&weights, "weights").unwrap();
        let address = weights.to_string_lossy().into_owned();
        let digest = Digest::of(b"weights");
        let job = |file: &str| Job {
            stage: "extract".into(),
            params: serde_json::json!({ "extractor": "efficientnet-lite0", "weights": file }),
            makes: crate::engine::stage::Output::RowPerRow,
            output: String::new(),
            input_schemas: Vec::new(),
            row_schemas: Vec::new(),
            tables: Vec::new(),
            model: None,
            files: vec![(file.to_owned(), digest)],
            save_every: std::time::Duration::ZERO,
            secrets: crate::engine::Secrets::default(),
        };
        let mut sent = job(&address);
        send(&sent, &store).unwrap();
        place(&mut sent, &store, KINDS, true).unwrap();
        assert!(sent == job(&address), "a file that is here stays where it is");
        std::fs::remove_file(&weights).unwrap();
        place(&mut sent, &store, KINDS, true).unwrap();
        let there = sent.params["weights"].as_str().unwrap();
        assert_ne!(there, address);
        assert_eq!((std::fs::read_to_string(there).unwrap().as_str(), sent.files[0].0.as_str()), ("weights", there));
        std::fs::remove_dir_all(Path::new(there).parent().unwrap()).unwrap();
    }

    #[test]
    fn files_keep_their_places_below_the_folder_they_share() {
        assert_eq!(base_of(&files(&["/w/a/x/1", "/w/a/2"])), Path::new("/w/a"));
        assert_eq!(base_of(&files(&["/w/a/1"])), Path::new("/w/a"));
    }
}
