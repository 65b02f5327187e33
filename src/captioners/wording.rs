//! Texts with placeholders.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::engine::{stage::Misfit, suggestion};

/// The placeholders of a text. They stand for columns that say what an image shows; its label, defect and split are not
/// among them, since a caption would carry them into a training.
const PLACEHOLDERS: [&str; 1] = ["class"];

/// A text in which `{class}` stands for the image's class.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(inline)]
pub struct Wording(String);

/// A piece of a text.
#[derive(Debug, PartialEq, Eq)]
enum Piece<'a> {
    Text(&'a str),
    /// The name in braces, and the byte at which the brace opens.
    Placeholder(&'a str, usize),
}

impl Wording {
    /// Makes a wording of a text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Checks that each name in braces is a placeholder; the error is at `parameter`.
    pub fn check(&self, parameter: &str) -> Result<(), Misfit> {
        for piece in pieces(&self.0) {
            let Piece::Placeholder(name, at) = piece else { continue };
            if !PLACEHOLDERS.contains(&name) {
                let character = self.0[..at].chars().count() + 1;
                let known: Vec<String> = PLACEHOLDERS.iter().map(|name| format!("{{{name}}}")).collect();
                let message = format!(
                    "`{{{name}}}` at character {character} is no placeholder; what can stand there is {}{}",
                    known.join(", "),
                    suggestion(name, &PLACEHOLDERS)
                );
                return Err(Misfit::parameter(parameter, message));
            }
        }
        Ok(())
    }

    /// Returns the text for an image of this class.
    pub fn fill(&self, class: &str) -> String {
        let fill = |piece: Piece<'_>| match piece {
            Piece::Text(text) => text.to_owned(),
            Piece::Placeholder("class", _) => class.to_owned(),
            Piece::Placeholder(other, _) => format!("{{{other}}}"),
        };
        pieces(&self.0).into_iter().map(fill).collect()
    }
}

/// Splits a text at its placeholders: names between braces that contain no brace and no line break. Other braces are text.
fn pieces(text: &str) -> Vec<Piece<'_>> {
    let (mut pieces, mut from, mut open) = (Vec::new(), 0, None);
    for (at, character) in text.char_indices() {
        match (character, open) {
            ('{', _) => open = Some(at),
            ('\n', _) => open = None,
            ('}', Some(start)) => {
                pieces.push(Piece::Text(&text[from..start]));
                pieces.push(Piece::Placeholder(&text[start + 1..at], start));
                (from, open) = (at + 1, None);
            }
            _ => {}
        }
    }
    pieces.push(Piece::Text(&text[from..]));
    pieces.retain(|piece| *piece != Piece::Text(""));
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn class_is_filled_in_once_and_other_braces_are_text() {
        let fill = |text: &str, class: &str| Wording::new(text).fill(class);
        assert_eq!(fill("a {class} on a {class}", "nut"), "a nut on a nut");
        assert_eq!(fill("{class}", "{class}"), "{class}");
        assert_eq!(fill("{ {class} } }{", "nut"), "{ nut } }{");
        assert_eq!(fill("{cl\nass}", "nut"), "{cl\nass}");
        assert_eq!(fill("", "nut"), "");
    }

    #[test]
    fn misspelt_placeholder_is_refused_with_its_place_and_the_known_names() {
        assert_eq!(Wording::new("a {class}").check("text"), Ok(()));
        assert_eq!(Wording::new("{ a } b").check("text").unwrap_err().to_string().find("`text`: `{ a }`"), Some(0));
        let told = Wording::new("ein ß {clas}").check("default").unwrap_err().to_string();
        assert!(
            told.starts_with("`default`: `{clas}` at character 7 is no placeholder; what can stand there is {class}"),
            "{told}"
        );
        assert!(Wording::new("{}").check("text").is_err());
    }
}
