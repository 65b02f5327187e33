//! Addresses: paths, and URLs that `object_store` supports.

use std::{
    fmt,
    path::{Component, Path, PathBuf},
};

use url::Url;

use crate::engine::{Error, Result, credentials::without_credentials};

/// Parses an address as a URL; `None` for a path.
pub(in crate::engine) fn url_of(address: &str) -> Result<Option<Url>> {
    if !is_url(address) {
        return Ok(None);
    }
    let wrong = |what: &dyn fmt::Display| {
        let shown = without_credentials(address);
        Error::Input(format!("`{shown}`: {what}; a path, s3://, gs://, az:// or https:// would work"))
    };
    match Url::parse(address) {
        Ok(url) if has_credentials(&url) => Err(Error::Input(format!(
            "`{}`: a name or password in an address is not sent; for s3://, gs:// and az:// they are set in the environment \
             (AWS_ACCESS_KEY_ID and the like), and what a web server gives only to those with a password has to be copied \
             to a folder first",
            without_credentials(address)
        ))),
        Ok(url) if url.query().or(url.fragment()).is_some() => {
            Err(wrong(&"`?` and `#` in a name are written %3F and %23"))
        }
        Ok(url) => Ok(Some(url)),
        Err(error) => Err(wrong(&error)),
    }
}

/// Returns true for a URL with a password, or with the name of a user of a web server. The container of an Azure address
/// stands in the place of such a name.
fn has_credentials(url: &Url) -> bool {
    url.password().is_some() || (!url.username().is_empty() && matches!(url.scheme(), "http" | "https"))
}

/// Returns the URL of `relative` below `url`.
pub(in crate::engine) fn below(mut url: Url, relative: &str) -> Url {
    if let Ok(mut segments) = url.path_segments_mut() {
        segments.pop_if_empty().extend(relative.split('/'));
    }
    url
}

/// Returns true if an address is the URL of a server and not a path.
pub fn is_url(address: &str) -> bool {
    address.contains("://") && !address.starts_with("file://")
}

/// Returns the address of a file below a root. Refuses a path that leads out of the root, because such paths may come
/// from data.
pub fn join(root: &str, relative: &str) -> Result<String> {
    let inside = |part| matches!(part, Component::Normal(_) | Component::CurDir);
    if relative.is_empty() || !Path::new(relative).components().all(inside) {
        return Err(Error::Input(format!(
            "`{relative}` leads out of {root}; a path below it, without `..`, would work"
        )));
    }
    match url_of(root)? {
        Some(url) => Ok(below(url, relative).into()),
        None => Ok(local_path(root).join(relative).to_string_lossy().into_owned()),
    }
}

/// Returns the path of an address that is not the URL of a server.
pub fn local_path(address: &str) -> PathBuf {
    let file = address.starts_with("file://").then(|| url::Url::parse(address).ok()?.to_file_path().ok()).flatten();
    file.unwrap_or_else(|| address.into())
}

/// Returns the address with the user's home folder in the place of a `~` before the first slash, as shells have it.
/// An address that names another user's home, or where no home is known, stays as it is.
pub fn expand_home(address: &str) -> String {
    let below = address.strip_prefix('~').filter(|rest| rest.is_empty() || rest.starts_with('/'));
    match below.zip(std::env::home_dir()) {
        Some((rest, home)) => format!("{}{rest}", home.to_string_lossy().trim_end_matches('/')),
        None => address.to_owned(),
    }
}

/// Returns the address as an absolute path or URL, which does not depend on the working directory.
pub(in crate::engine) fn absolute(address: &str) -> String {
    match url_of(address) {
        Ok(Some(url)) => url.into(),
        _ => local_path(address).canonicalize().map_or_else(|_| address.into(), |p| p.to_string_lossy().into_owned()),
    }
}
