//! Passwords and tokens in URLs. Stored and shown text has `***` in their place.

use std::borrow::Cow;

/// The text in place of a password.
const HIDDEN: &str = "***";

/// Returns a text in which URLs have no credentials: `https://***:***@host/data?sig=***`.
pub fn without_credentials(text: &str) -> Cow<'_, str> {
    replace_credentials(text, |_| HIDDEN.to_owned())
}

/// Replaces the credentials in URLs of a text: what stands before `@`, and each value after `?`. Names of variables in their
/// place (`${NAME}`) stay.
pub(in crate::engine) fn replace_credentials(text: &str, with: impl Fn(&str) -> String) -> Cow<'_, str> {
    if !text.contains("://") {
        return Cow::Borrowed(text);
    }
    let is_shown = |value: &str| value.is_empty() || value.starts_with("${") || value.starts_with(HIDDEN);
    let with = |value: &str| if is_shown(value) { value.to_owned() } else { with(value) };
    let (mut shown, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(at) = rest.find("://") {
        let (scheme, after) = rest.split_at(at + 3);
        let end = after.find(|c: char| c.is_whitespace() || matches!(c, '"' | '`' | '<' | '>')).unwrap_or(after.len());
        // Punctuation that follows a URL belongs to the sentence.
        let url = after[..end].trim_end_matches([',', '.', ':', ';', ')', ']', '}', '\'']);
        shown += scheme;
        shown += &in_url(url, scheme.ends_with("http://") || scheme.ends_with("https://"), &with);
        rest = &after[url.len()..];
    }
    Cow::Owned(shown + rest)
}

/// Replaces the credentials in a URL without its scheme, `is_web` if that is HTTP.
fn in_url(url: &str, is_web: bool, with: &dyn Fn(&str) -> String) -> String {
    let (authority, path) = url.split_at(url.find(['/', '?', '#']).unwrap_or(url.len()));
    let authority = match authority.rsplit_once('@') {
        // The container of an Azure address stands before `@`, and is no secret.
        Some((user, host)) if is_web || user.contains(':') => {
            format!("{}@{host}", user.split(':').map(with).collect::<Vec<_>>().join(":"))
        }
        Some(_) => authority.to_owned(),
        None => match authority.split_once(':') {
            // A password that has a `/` ends the authority, and stands where a port would.
            Some((host, port)) if !host.starts_with('[') && port.contains(|c: char| !c.is_ascii_digit()) => {
                return format!("{host}:{}", with(&url[host.len() + 1..]));
            }
            _ => authority.to_owned(),
        },
    };
    let Some((path, query)) = path.split_once('?') else { return authority + path };
    let values = query.split('&').map(|pair| match pair.split_once('=') {
        Some((name, value)) => format!("{name}={}", with(value)),
        None => with(pair),
    });
    format!("{authority}{path}?{}", values.collect::<Vec<_>>().join("&"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_replaced_wherever_a_url_has_them() {
        for (text, shown) in [
            ("no URL: a@b?c=d", "no URL: a@b?c=d"),
            ("https://user:pw@host/a?sig=x&v=2#f, and", "https://***:***@host/a?sig=***&v=***, and"),
            ("cannot read https://token@host: 404", "cannot read https://***@host: 404"),
            ("`s3://key:p@ss@bucket/a@b`, s3://bucket/a@b", "`s3://***:***@bucket/a@b`, s3://bucket/a@b"),
            ("abfss://container@account/a", "abfss://container@account/a"),
            ("http://user:a/b@host/c d", "http://user:*** d"),
            ("http://host:80/a http://[::1]:80/", "http://host:80/a http://[::1]:80/"),
            ("https://${USER}:pw@host/?a=${KEY}", "https://${USER}:***@host/?a=${KEY}"),
            ("https://host/a?token", "https://host/a?***"),
            ("https://", "https://"),
        ] {
            assert_eq!(without_credentials(text), shown);
            assert_eq!(without_credentials(shown), shown);
        }
    }
}
