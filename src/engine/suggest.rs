//! Words of error messages that list names.

/// Joins names for a message.
pub fn or_none(names: &[&str]) -> String {
    if names.is_empty() { "none".into() } else { names.join(", ") }
}

/// Returns `; did you mean X?` if a known name is similar.
pub fn suggestion(name: &str, known: &[&str]) -> String {
    let best = known.iter().map(|k| (strsim::jaro_winkler(name, k), k)).max_by(|a, b| a.0.total_cmp(&b.0));
    best.filter(|(score, _)| *score > 0.8).map(|(_, k)| format!("; did you mean `{k}`?")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn close_names_are_suggested() {
        assert_eq!(suggestion("sise", &["root", "size"]), "; did you mean `size`?");
        assert_eq!(suggestion("zzz", &["root", "size"]), "");
    }
}
