//! Values that a pipeline takes from the environment, which may be secrets. Stored and shown text has `${NAME}` in
//! their place, and `***` in the place of other credentials in URLs.

use serde_json::Value;

use crate::engine::{
    Digest, Error, Hasher,
    address::{expand_home, local_path},
    credentials::{replace_credentials, without_credentials},
};

/// The minimum length of a secret in characters. Shorter values occur in other words by chance.
const SHORTEST: usize = 4;

/// The values of environment variables that a pipeline file names, with the names of the variables.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Secrets(Vec<(String, String)>);

impl Secrets {
    /// Selects the secrets among variables that were filled in. A value that names an existing file or folder is not
    /// a secret, because messages have to show paths.
    pub fn among(variables: impl IntoIterator<Item = (String, String)>) -> Self {
        let is_secret = |(_, value): &(String, String)| {
            value.chars().count() >= SHORTEST && !local_path(&expand_home(value)).exists()
        };
        let mut secrets: Vec<_> = variables.into_iter().filter(is_secret).collect();
        // Longer values are replaced first, because one value may contain another.
        secrets.sort_by(|(_, a), (_, b)| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        secrets.dedup();
        Self(secrets)
    }

    /// Replaces each secret in a text by `${NAME}`, and other credentials in URLs by `***`.
    pub fn hide(&self, text: String) -> String {
        without_credentials(&self.name(text)).into_owned()
    }

    /// Replaces each secret in a text by `${NAME}`.
    fn name(&self, text: String) -> String {
        self.replace(text, |name, _| format!("${{{name}}}"))
    }

    /// Replaces each secret in a text by its name and digest, so that the text differs if the secret does; and so other
    /// credentials in URLs.
    pub(in crate::engine) fn identify(&self, text: String) -> String {
        let identified = |name: &str, value: &str| {
            let digest = Digest::of(value.as_bytes()).to_string();
            format!("{name}({})", &digest[..16])
        };
        let named = self.replace(text, |name, value| identified(&format!("${{{name}}}"), value));
        replace_credentials(&named, |value| identified("***", value)).into_owned()
    }

    fn replace(&self, text: String, with: impl Fn(&str, &str) -> String) -> String {
        // Replaced pieces are not searched again, because the name of a variable may contain the value of another.
        let mut pieces = vec![(text, false)];
        let found: Vec<_> = self.0.iter().filter(|(_, value)| pieces[0].0.contains(value)).collect();
        for (name, value) in found {
            pieces = pieces
                .into_iter()
                .flat_map(|(piece, is_replaced)| {
                    if is_replaced {
                        return vec![(piece, true)];
                    }
                    let between = std::iter::repeat_with(|| (with(name, value), true));
                    let kept = piece.split(value.as_str()).map(|piece| (piece.to_owned(), false)).collect::<Vec<_>>();
                    let count = 2 * kept.len() - 1;
                    kept.into_iter().zip(between).flat_map(|(kept, replaced)| [kept, replaced]).take(count).collect()
                })
                .collect();
        }
        pieces.into_iter().map(|(piece, _)| piece).collect()
    }

    /// Returns the name of each variable with a digest of its value.
    pub fn digests(&self) -> Vec<(String, Digest)> {
        self.0.iter().map(|(name, value)| (name.clone(), digest_of_secret(value))).collect()
    }

    /// Takes values from the environment of this process in place of those with these names and digests.
    ///
    /// # Errors
    /// [`Error::Input`] names the variables that are not set here, or have other values: rows that are computed with another
    /// value would be recorded as those of the first.
    pub fn from_environment(digests: &[(String, Digest)]) -> Result<Self, Error> {
        let (mut found, mut wrong) = (Vec::new(), Vec::new());
        for (name, digest) in digests {
            match std::env::var(name).ok().filter(|value| digest_of_secret(value) == *digest) {
                Some(value) => found.push((name.clone(), value)),
                None => wrong.push(name.as_str()),
            }
        }
        if wrong.is_empty() {
            return Ok(Self(found));
        }
        Err(Error::Input(format!(
            "the environment lacks the value that the driver has for {}; secrets do not travel, so set the variable there too",
            wrong.join(", ")
        )))
    }

    /// Applies [`Secrets::name`] to every text in a value, which then tells no secret to whoever reads it.
    ///
    /// # Errors
    /// [`Error::Input`] if a URL has credentials that have no name, since they cannot be filled in again.
    pub fn name_in(&self, value: Value) -> Result<Value, Error> {
        let named = self.in_value(value, &|text| self.name(text));
        if self.hide_in(named.clone()) != named {
            return Err(Error::Input(
                "a parameter has an address with a password or values after `?`, which do not travel to other machines; in \
                 their place, `${NAME}` would work, with the variable NAME set there too"
                    .to_owned(),
            ));
        }
        Ok(named)
    }

    /// Fills the values in where [`Secrets::name_in`] left the names.
    pub fn fill_in(&self, value: Value) -> Value {
        let fill =
            |text: String| self.0.iter().fold(text, |text, (name, value)| text.replace(&format!("${{{name}}}"), value));
        self.in_value(value, &fill)
    }

    /// Applies [`Secrets::hide`] to every text in a value.
    pub fn hide_in(&self, value: Value) -> Value {
        self.in_value(value, &|text| self.hide(text))
    }

    /// Applies [`Secrets::identify`] to every text in a value.
    pub(in crate::engine) fn identify_in(&self, value: Value) -> Value {
        self.in_value(value, &|text| self.identify(text))
    }

    fn in_value(&self, value: Value, replace: &dyn Fn(String) -> String) -> Value {
        match value {
            Value::String(text) => Value::String(replace(text)),
            Value::Array(items) => items.into_iter().map(|item| self.in_value(item, replace)).collect(),
            Value::Object(fields) => {
                fields.into_iter().map(|(name, value)| (name, self.in_value(value, replace))).collect()
            }
            other => other,
        }
    }
}

/// Returns the digest by which two processes compare a secret without telling it.
fn digest_of_secret(value: &str) -> Digest {
    Hasher::new("secret").field(value.as_bytes()).finish()
}

impl Error {
    /// Replaces secrets in the error by the names of their variables.
    pub(in crate::engine) fn without(self, secrets: &Secrets) -> Self {
        let hide = |text: String| secrets.hide(text);
        match self {
            Error::Input(message) => Error::Input(hide(message)),
            Error::Stage(message) => Error::Stage(hide(message)),
            Error::Worker(message) => Error::Worker(hide(message)),
            Error::Memory(message) => Error::Memory(hide(message)),
            Error::Killed(message) => Error::Killed(hide(message)),
            Error::Rows { table, errors, total } => {
                let errors = errors.into_iter().map(|(id, message)| (id, hide(message))).collect();
                Error::Rows { table, errors, total }
            }
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secrets(pairs: &[(&str, &str)]) -> Secrets {
        Secrets::among(pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))
    }

    #[test]
    fn secret_values_are_replaced_by_their_names() {
        let secrets = secrets(&[("TOKEN", "sk-1234"), ("LONG", "sk-1234-5"), ("SIZE", "32"), ("HERE", ".")]);
        let hidden = secrets.hide("a sk-1234, sk-1234-5sk-1234 and 32 in .".into());
        assert_eq!(hidden, "a ${TOKEN}, ${LONG}${TOKEN} and 32 in .");
        let value = serde_json::json!({ "run": ["curl", "sk-1234"], "n": 1234 });
        assert_eq!(secrets.hide_in(value), serde_json::json!({ "run": ["curl", "${TOKEN}"], "n": 1234 }));
    }

    #[test]
    fn credentials_without_a_name_are_hidden_and_identified() {
        let secrets = secrets(&[("TOKEN", "sk-1234")]);
        let text = "https://user:sk-1234@host/a?sig=x".to_owned();
        assert_eq!(secrets.hide(text.clone()), "https://***:${TOKEN}@host/a?sig=***");
        let identified = secrets.identify(text.clone());
        assert!(identified.contains(":${TOKEN}(") && identified.contains("?sig=***("), "{identified}");
        assert_ne!(secrets.identify(text.replace("sig=x", "sig=y")), identified);
        assert!(secrets.name_in(text.into()).is_err());
        let named = secrets.name_in("https://host/a?sig=sk-1234".into()).unwrap();
        assert_eq!(named, "https://host/a?sig=${TOKEN}");
    }

    #[test]
    fn different_secrets_have_different_digests_and_are_not_shown() {
        let identify = |value: &str| secrets(&[("TOKEN", value)]).identify(format!("key={value}"));
        assert_eq!(identify("sk-1234"), identify("sk-1234"));
        assert_ne!(identify("sk-1234"), identify("sk-1235"));
        assert!(identify("sk-1234").starts_with("key=${TOKEN}(") && !identify("sk-1234").contains("1234"));
    }

    #[test]
    fn hidden_values_are_filled_in_from_an_environment_with_the_same_ones() {
        let path = std::env::var("PATH").unwrap();
        let here = secrets(&[("PATH", &path)]);
        let value = serde_json::json!({ "run": ["curl", format!("-H {path}")], "n": 1 });
        let hidden = here.name_in(value.clone()).unwrap();
        assert!(!hidden.to_string().contains(&path));
        let there = Secrets::from_environment(&here.digests()).unwrap();
        assert_eq!((there.fill_in(hidden), &there), (value, &here));
        let told = Secrets::from_environment(&secrets(&[("PATH", "another")]).digests()).unwrap_err().to_string();
        assert!(told.contains("for PATH;") && !told.contains("another"), "{told}");
    }

    #[test]
    fn variable_name_that_contains_another_value_is_kept() {
        let secrets = secrets(&[("A_TOKEN_B", "longest-value"), ("C", "TOKEN")]);
        assert_eq!(secrets.hide("longest-value TOKEN".into()), "${A_TOKEN_B} ${C}");
    }
}
