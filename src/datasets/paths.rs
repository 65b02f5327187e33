//! Paths below the root of a data set, which are sorted.

/// Returns the paths that begin with `prefix`, which are adjacent because paths are sorted.
pub(super) fn below<'p, 'a>(paths: &'p [&'a str], prefix: &str) -> &'p [&'a str] {
    let from = &paths[paths.partition_point(|path| *path < prefix)..];
    &from[..from.partition_point(|path| path.starts_with(prefix))]
}

/// Returns the names of the folders directly below a prefix.
pub(super) fn folders<'a>(paths: &[&'a str], prefix: &str) -> Vec<&'a str> {
    let name = |path: &&'a str| path[prefix.len()..].split_once('/').map(|(name, _)| name);
    let mut names: Vec<&str> = below(paths, prefix).iter().filter_map(name).collect();
    names.dedup();
    names
}

/// Returns a path as it is listed; `None` if there is no such file.
pub(super) fn find<'a>(paths: &[&'a str], path: &str) -> Option<&'a str> {
    paths.binary_search(&path).ok().map(|at| paths[at])
}
