//! Splits a text into statements. A `;` within quotes or comments does not end a statement.

use datafusion::sql::sqlparser::{
    dialect::GenericDialect,
    tokenizer::{Location, Token, TokenWithSpan, Tokenizer, TokenizerError},
};

use crate::engine::{Error, Result, pipeline::syntax};

/// Returns the statements of a text without empty ones. Each is padded to its line and column, so that errors have
/// the right place.
pub fn statements(text: &str) -> Result<Vec<String>> {
    let tokens = tokens(text).map_err(|e| Error::Input(syntax(&e.to_string())))?;
    let statements = tokens.split(|token| token.token == Token::SemiColon).filter_map(|tokens| {
        let says = |token: &&TokenWithSpan| !matches!(token.token, Token::Whitespace(_) | Token::EOF);
        let (first, last) = (tokens.iter().find(says)?, tokens.iter().rfind(says)?);
        let (start, end) = (first.span.start, last.span.end);
        let place = "\n".repeat(start.line as usize - 1) + &" ".repeat(start.column as usize - 1);
        Some(place + text.get(offset(text, start)..offset(text, end)).unwrap_or_default())
    });
    Ok(statements.collect())
}

/// Returns true if the last statement of a text has been ended by a `;`.
pub fn is_ended(text: &str) -> bool {
    let Ok(tokens) = tokens(text) else { return false };
    let last = tokens.iter().rfind(|token| !matches!(token.token, Token::Whitespace(_) | Token::EOF));
    last.is_some_and(|token| token.token == Token::SemiColon)
}

pub(super) fn tokens(text: &str) -> std::result::Result<Vec<TokenWithSpan>, TokenizerError> {
    Tokenizer::new(&GenericDialect {}, text).tokenize_with_location()
}

/// Returns the byte offset of a line and a column in a text.
pub(super) fn offset(text: &str, at: Location) -> usize {
    let line_start: usize = text.split_inclusive('\n').take(at.line as usize - 1).map(str::len).sum();
    let line = text.get(line_start..).unwrap_or_default();
    line_start + line.char_indices().nth(at.column as usize - 1).map_or(line.len(), |(at, _)| at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn semicolon_within_quotes_or_comments_ends_no_statement() {
        let split = |text| statements(text).unwrap();
        assert_eq!(
            split("select 'a;b' as v; select ';' as w"),
            ["select 'a;b' as v", &format!("{}select ';' as w", " ".repeat(19))]
        );
        assert_eq!(split("select \"a;b\" -- one; two\n from t;;\n/* ; */"), ["select \"a;b\" -- one; two\n from t"]);
        assert_eq!(split("select 'ä;' ;\nselect 'it''s;' as ß"), ["select 'ä;'", "\nselect 'it''s;' as ß"]);
        assert_eq!(split("-- nothing\n ; "), [""; 0]);
        let error = statements("select 1; select 'open").unwrap_err().to_string();
        assert_eq!(error, "line 1, column 18: unterminated string literal");
    }

    #[test]
    fn statement_continues_until_a_semicolon() {
        assert!(is_ended("select 1; -- done\n"));
        for open in ["select 1", "select 'a;", "select 'a;\n", "select 1 -- ;", "/* ;", "select \"a;"] {
            assert!(!is_ended(open), "{open}");
        }
    }
}
