//! The token that requests have to carry.

use std::path::Path;

use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};

use crate::engine::{Digest, Error, Result};

/// The encoding of a name with a password. ADBC's driver of Flight SQL leaves the padding out, and browsers do not.
const BASIC: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The minimum length of a token in characters.
const SHORTEST: usize = 16;

/// A token. Only its digest is kept, so that nothing can print it, and the time of a comparison tells nothing about it.
#[derive(Clone, Copy, Debug)]
pub struct Token(Digest);

impl Token {
    /// Takes a token. Spaces and line breaks around it do not belong to it.
    ///
    /// # Errors
    /// [`Error::Input`] if it is too short; `place` says where it stands.
    pub fn new(text: &str, place: &str) -> Result<Self> {
        let text = text.trim();
        if text.chars().count() < SHORTEST {
            return Err(Error::Input(format!(
                "the token in {place} has fewer than {SHORTEST} characters; `openssl rand -hex 32` makes a good one"
            )));
        }
        Ok(Self(Digest::of(text.as_bytes())))
    }

    /// Reads a token from a file.
    pub fn read(file: &Path) -> Result<Self> {
        let place = file.display();
        let text = std::fs::read_to_string(file).map_err(|e| Error::Input(format!("cannot read {place}: {e}")))?;
        Self::new(&text, &place.to_string())
    }

    /// Returns true for a header `Authorization` that carries the token: as `Bearer TOKEN`, or as the password of `Basic`,
    /// which browsers ask for.
    pub fn is_in(self, header: &str) -> bool {
        let carried = match header.trim().split_once(' ') {
            Some((scheme, value)) if scheme.eq_ignore_ascii_case("bearer") => Some(value.trim().as_bytes().to_vec()),
            _ => password(header),
        };
        carried.is_some_and(|text| Digest::of(&text) == self.0)
    }
}

/// Returns the password in a header `Authorization` of the scheme `Basic`.
pub fn password(header: &str) -> Option<Vec<u8>> {
    let (scheme, value) = header.trim().split_once(' ')?;
    let decoded = BASIC.decode(value.trim()).ok().filter(|_| scheme.eq_ignore_ascii_case("basic"))?;
    let colon = decoded.iter().position(|byte| *byte == b':')?;
    Some(decoded[colon + 1..].to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_is_taken_as_bearer_and_as_password() {
        let token = Token::new(" 0123456789abcdef\n", "a file").unwrap();
        let basic = |pair: &str| format!("Basic {}", BASIC.encode(pair));
        for header in ["Bearer 0123456789abcdef", "bearer  0123456789abcdef"] {
            assert!(token.is_in(header), "{header}");
        }
        for name in ["a", "an", "any"] {
            let padded = basic(&format!("{name}:0123456789abcdef"));
            assert!(token.is_in(&padded) && token.is_in(padded.trim_end_matches('=')), "{padded}");
        }
        for header in
            ["", "Bearer", "Bearer 0123456789abcdeF", "0123456789abcdef", "Basic !", &basic("0123456789abcdef")]
        {
            assert!(!token.is_in(header), "{header}");
        }
    }

    #[test]
    fn short_token_is_refused_and_not_shown() {
        let told = Token::new("secret", "VLMDIFF_TOKEN").unwrap_err().to_string();
        assert!(told.starts_with("the token in VLMDIFF_TOKEN has fewer than 16") && !told.contains("secret"), "{told}");
        assert!(!format!("{:?}", Token::new("0123456789abcdef", "").unwrap()).contains("0123456789abcdef"));
    }
}
