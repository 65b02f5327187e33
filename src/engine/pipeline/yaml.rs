//! YAML as a tree with the place of each node.

use std::fmt;

use serde::{Deserialize, Deserializer, de};
use serde_json::Value;
use serde_saphyr::Spanned;

/// A place in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::engine) struct Place {
    /// The number of the file among those that are read, from 0.
    pub file: usize,
    /// Line, from 1.
    pub line: u64,
    /// Column, from 1.
    pub column: u64,
}

/// A YAML node and its place.
#[derive(Clone, Debug)]
pub(in crate::engine) struct Node {
    /// The place where the node begins.
    pub place: Place,
    /// The content of the node.
    pub kind: Kind,
    /// Another reading of the same text, for a parameter that does not accept the first: `2024` on a command line is
    /// a number, or text if a folder is expected.
    pub(super) otherwise: Option<Kind>,
}

/// The content of a YAML node.
#[derive(Clone, Debug)]
pub(in crate::engine) enum Kind {
    /// Null, boolean, number or text.
    Scalar(Value),
    /// A sequence.
    List(Vec<Node>),
    /// A mapping, in the order written.
    Map(Vec<(Key, Node)>),
}

impl Kind {
    pub(in crate::engine) fn is_text(&self) -> bool {
        matches!(self, Self::Scalar(Value::String(_)))
    }
}

impl From<String> for Kind {
    fn from(text: String) -> Self {
        Self::Scalar(Value::String(text))
    }
}

/// A key of a mapping and its place.
#[derive(Clone, Debug)]
pub(in crate::engine) struct Key {
    /// The text.
    pub name: String,
    /// The place where it stands.
    pub place: Place,
}

impl Node {
    /// Parses one YAML document. An error has the place that the parser reports, if it reports one.
    pub(in crate::engine) fn parse(text: &str) -> Result<Self, (Place, String)> {
        serde_saphyr::from_str(text).map_err(|error| {
            let (line, column) = error.location().map_or((1, 1), |at| (at.line(), at.column()));
            let place = Place { file: 0, line, column };
            if let Some(message) = in_words(&error) {
                return (place, message);
            }
            // The parser's message continues with an excerpt of the file, which is cut off because the place already
            // points there.
            let message = error.to_string();
            let first = message.lines().next().unwrap_or_default();
            let first = first.strip_prefix("error: ").unwrap_or(first);
            let first =
                first.split_once(": ").filter(|(head, _)| head.starts_with("line ")).map_or(first, |(_, tail)| tail);
            let twice = first.strip_prefix("duplicate mapping key: ").and_then(|rest| rest.rsplit_once(", set "));
            (place, twice.map_or_else(|| first.to_owned(), |(key, _)| format!("`{key}` occurs twice here")))
        })
    }

    /// Says that the whole tree stands at one place, as a value of a command line does.
    fn stands_at(&mut self, place: Place) {
        self.place = place;
        if let Kind::Map(entries) = &mut self.kind {
            entries.iter_mut().for_each(|(key, _)| key.place = place);
        }
        self.children().for_each(|node| node.stands_at(place));
    }

    /// Says in which file the tree stands.
    pub(super) fn lies_in(&mut self, file: usize) {
        self.place.file = file;
        if let Kind::Map(entries) = &mut self.kind {
            entries.iter_mut().for_each(|(key, _)| key.place.file = file);
        }
        self.children().for_each(|node| node.lies_in(file));
    }

    /// Reads a value of a command line, which is the whole text. If it is YAML for something other than text, it is
    /// read as that; a parameter that takes text reads it as text, except for an empty list, which is never meant as
    /// text. Quotes around the whole text are read as YAML quotes, so that nested shell quotes are not needed.
    pub(in crate::engine) fn given(text: &str, place: Place) -> Self {
        let as_text = Kind::Scalar(Value::String(text.to_owned()));
        let quoted = |quote: char| text.trim().starts_with(quote) && text.trim().ends_with(quote);
        // `~` is null in YAML but the home folder in a path.
        let is_yaml = !has_comment(text) && text.trim() != "~";
        let yaml = Self::parse(text).ok().filter(|_| is_yaml).map(|node| node.kind);
        let (kind, otherwise) = match yaml {
            Some(Kind::Scalar(Value::String(text))) if quoted('"') || quoted('\'') => (text.into(), None),
            Some(Kind::Scalar(Value::String(_))) | None => (as_text, None),
            Some(Kind::List(items)) if items.is_empty() => (Kind::List(items), None),
            Some(other) => (other, Some(as_text)),
        };
        let mut given = Self { place, kind, otherwise };
        given.stands_at(place);
        given
    }

    /// Switches the value at a path, or all values below it, to the other reading. Returns `None` if there is no
    /// other reading, else `Some(true)` if that reading is text.
    pub(in crate::engine) fn reread(&mut self, path: &str) -> Option<bool> {
        let (step, rest) = path.split_once(['.', '[', ']']).unwrap_or((path, ""));
        if step.is_empty() && !rest.is_empty() {
            return self.reread(rest);
        }
        let next = match &mut self.kind {
            Kind::Map(entries) => entries.iter_mut().find(|(key, _)| key.name == step).map(|(_, node)| node),
            Kind::List(items) => step.parse().ok().and_then(|at: usize| items.get_mut(at)),
            Kind::Scalar(_) => None,
        };
        if let Some(next) = next {
            return next.reread(rest);
        }
        if let Some(kind) = self.otherwise.take() {
            self.kind = kind;
            return Some(self.as_text().is_some());
        }
        self.children().filter_map(|node| node.reread("")).reduce(|one, other| one || other)
    }

    fn children(&mut self) -> Box<dyn Iterator<Item = &mut Self> + '_> {
        match &mut self.kind {
            Kind::Scalar(_) => Box::new(std::iter::empty()),
            Kind::List(items) => Box::new(items.iter_mut()),
            Kind::Map(entries) => Box::new(entries.iter_mut().map(|(_, node)| node)),
        }
    }

    /// Returns the value below a key.
    pub(in crate::engine) fn get(&self, key: &str) -> Option<&Self> {
        self.entries().iter().find(|(k, _)| k.name == key).map(|(_, node)| node)
    }

    /// Returns the value below a key, to change it.
    pub(super) fn get_mut(&mut self, key: &str) -> Option<&mut Self> {
        let Kind::Map(entries) = &mut self.kind else { return None };
        entries.iter_mut().find(|(k, _)| k.name == key).map(|(_, node)| node)
    }

    /// Takes a key with its value out of a mapping.
    pub(super) fn remove(&mut self, key: &str) -> Option<(Key, Self)> {
        let Kind::Map(entries) = &mut self.kind else { return None };
        let at = entries.iter().position(|(k, _)| k.name == key)?;
        Some(entries.remove(at))
    }

    /// Returns the entries of a mapping; none for anything else.
    pub(in crate::engine) fn entries(&self) -> &[(Key, Self)] {
        match &self.kind {
            Kind::Map(entries) => entries,
            _ => &[],
        }
    }

    /// Returns the entries of a mapping; none for anything else.
    pub(super) fn into_entries(self) -> Vec<(Key, Self)> {
        match self.kind {
            Kind::Map(entries) => entries,
            _ => Vec::new(),
        }
    }

    /// Returns the text of a text scalar.
    pub(in crate::engine) fn as_text(&self) -> Option<&str> {
        match &self.kind {
            Kind::Scalar(Value::String(text)) => Some(text),
            _ => None,
        }
    }

    /// Returns the tree as JSON.
    pub(in crate::engine) fn to_json(&self) -> Value {
        match &self.kind {
            Kind::Scalar(value) => value.clone(),
            Kind::List(items) => items.iter().map(Self::to_json).collect(),
            Kind::Map(entries) => Value::Object(entries.iter().map(|(k, v)| (k.name.clone(), v.to_json())).collect()),
        }
    }

    /// Returns the place of a value by its path, such as `config.layers[2].size`, or of the deepest part of the path
    /// that exists.
    pub(in crate::engine) fn place_of(&self, path: &str) -> Place {
        let mut node = self;
        let mut place = self.place;
        for step in path.split(['.', '[', ']']).filter(|s| !s.is_empty()) {
            match &node.kind {
                Kind::Map(entries) => match entries.iter().find(|(key, _)| key.name == step) {
                    Some((key, next)) => {
                        place = key.place;
                        node = next;
                    }
                    None => break,
                },
                Kind::List(items) => match step.parse().ok().and_then(|i: usize| items.get(i)) {
                    Some(next) => {
                        place = next.place;
                        node = next;
                    }
                    None => break,
                },
                Kind::Scalar(_) => break,
            }
        }
        place
    }

    /// Fills in the variables of every text scalar, which cannot change the structure. A scalar that consists of one
    /// variable alone is text, or the YAML reading of its value if the parameter takes no text.
    pub(in crate::engine) fn fill_in(
        &mut self,
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Result<(), (Place, String)> {
        let place = self.place;
        let fill = |text: &str| substitute(text, variable).map_err(|message| (place, message));
        if let Some(Kind::Scalar(Value::String(text))) = &mut self.otherwise {
            *text = fill(text)?;
        }
        if let Kind::Scalar(Value::String(text)) = &mut self.kind {
            let filled = fill(text)?;
            if is_one_variable(text) {
                let mut read = Self::parse(&filled).ok();
                read.iter_mut().for_each(|node| node.stands_at(self.place));
                self.otherwise = read.map(|node| node.kind).filter(|kind| !kind.is_text());
            }
            *text = filled;
        }
        self.children().try_for_each(|node| node.fill_in(variable))
    }

    /// Sets the value at a dotted path and creates missing mappings on the way.
    pub(in crate::engine) fn set(&mut self, path: &[&str], value: Self) {
        let Some((first, rest)) = path.split_first() else {
            *self = value;
            return;
        };
        if !matches!(self.kind, Kind::Map(_)) {
            self.kind = Kind::Map(Vec::new());
        }
        let place = value.place;
        if let Kind::Map(entries) = &mut self.kind {
            let at = entries.iter().position(|(key, _)| key.name == *first).unwrap_or_else(|| {
                let empty = Self { place, kind: Kind::Scalar(Value::Null), otherwise: None };
                entries.push((Key { name: (*first).to_owned(), place }, empty));
                entries.len() - 1
            });
            if rest.is_empty() {
                entries[at].0.place = place;
            }
            entries[at].1.set(rest, value);
        }
    }
}

impl Node {
    /// Takes the value at a path out of its mapping; false if there is none.
    pub(super) fn unset(&mut self, path: &[&str]) -> bool {
        match path {
            [] => false,
            [last] => self.remove(last).is_some(),
            [first, rest @ ..] => self.get_mut(first).is_some_and(|below| below.unset(rest)),
        }
    }

    /// Returns true for `null`.
    pub(super) fn is_null(&self) -> bool {
        matches!(self.kind, Kind::Scalar(Value::Null))
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Spanned { value: Raw(kind), referenced, .. } = Spanned::<Raw>::deserialize(deserializer)?;
        let place = Place { file: 0, line: referenced.line(), column: referenced.column() };
        Ok(Self { place, kind, otherwise: None })
    }
}

/// Replaces `${NAME}` and `${NAME:-default}` in a scalar by their values, and `$$` by a dollar sign.
pub(in crate::engine) fn substitute(text: &str, variable: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out += &rest[..at];
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some(body) = rest.strip_prefix('{') {
            let (inside, after) = body.split_once('}').ok_or_else(|| format!("`{text}`: `${{` without `}}`"))?;
            let (name, default) =
                inside.split_once(":-").map_or((inside, None), |(name, default)| (name, Some(default)));
            let value = variable(name).or_else(|| default.map(str::to_owned));
            out += &value.ok_or_else(|| {
                format!("the environment has no variable `{name}`; set it, or write ${{{name}:-default}}")
            })?;
            rest = after;
        } else {
            out.push('$');
        }
    }
    Ok(out + rest)
}

/// Returns true if a scalar consists of `${NAME}` or `${NAME:-default}` alone.
fn is_one_variable(text: &str) -> bool {
    text.starts_with("${") && text.find('}') == Some(text.len() - 1)
}

/// Returns true if YAML would read a part of the text as a comment.
fn has_comment(text: &str) -> bool {
    let (mut quote, mut before) = (None, ' ');
    for c in text.chars() {
        match quote {
            None if c == '#' && before.is_whitespace() => return true,
            None if c == '"' || c == '\'' => quote = Some(c),
            Some(open) if c == open => quote = None,
            _ => {}
        }
        before = c;
    }
    false
}

/// Returns the message about text that is YAML but no pipeline; `None` if the parser's own message says it.
fn in_words(error: &serde_saphyr::Error) -> Option<String> {
    match error.without_snippet() {
        serde_saphyr::Error::MultipleDocuments { .. } => {
            Some("a second document begins here; a pipeline is one, without `---` in it".into())
        }
        serde_saphyr::Error::NonFiniteFloat { value, .. } => {
            Some(format!("`{value}` is no number that a pipeline takes; as text it stands in quotes"))
        }
        serde_saphyr::Error::Budget { .. } => {
            Some("here the text is nested more deeply, or refers to itself more often, than a pipeline may".into())
        }
        serde_saphyr::Error::AliasError { error, .. } => in_words(error),
        _ => None,
    }
}

struct Raw(Kind);

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor).map(Raw)
    }
}

struct RawVisitor;

impl<'de> de::Visitor<'de> for RawVisitor {
    type Value = Kind;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }
    fn visit_bool<E>(self, v: bool) -> Result<Kind, E> {
        Ok(Kind::Scalar(v.into()))
    }
    fn visit_i64<E>(self, v: i64) -> Result<Kind, E> {
        Ok(Kind::Scalar(v.into()))
    }
    fn visit_u64<E>(self, v: u64) -> Result<Kind, E> {
        Ok(Kind::Scalar(v.into()))
    }
    fn visit_f64<E>(self, v: f64) -> Result<Kind, E> {
        Ok(Kind::Scalar(v.into()))
    }
    fn visit_str<E>(self, v: &str) -> Result<Kind, E> {
        Ok(Kind::Scalar(v.into()))
    }
    fn visit_unit<E>(self) -> Result<Kind, E> {
        Ok(Kind::Scalar(Value::Null))
    }
    fn visit_none<E>(self) -> Result<Kind, E> {
        Ok(Kind::Scalar(Value::Null))
    }
    fn visit_some<D: Deserializer<'de>>(self, d: D) -> Result<Kind, D::Error> {
        d.deserialize_any(self)
    }
    fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Kind, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Kind::List(items))
    }
    fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Kind, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = map.next_key::<Spanned<String>>()? {
            let place = Place { file: 0, line: key.referenced.line(), column: key.referenced.column() };
            entries.push((Key { name: key.value, place }, map.next_value()?));
        }
        Ok(Kind::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_have_their_places() {
        let node = Node::parse("a: 1\nb:\n  c: [x, {d: 2.5}]\n  e:\n").unwrap();
        assert_eq!(node.to_json(), serde_json::json!({"a": 1, "b": {"c": ["x", {"d": 2.5}], "e": null}}));
        assert_eq!(node.place_of("b.c"), Place { file: 0, line: 3, column: 3 });
        assert_eq!(node.place_of("b.c[1].d"), Place { file: 0, line: 3, column: 11 });
        assert_eq!(node.place_of("b.missing.deeper"), Place { file: 0, line: 2, column: 1 });
    }

    #[test]
    fn error_of_broken_yaml_has_a_place() {
        let (place, message) = Node::parse("a: 1\nb: [1, 2\n").unwrap_err();
        assert!(place.line >= 2, "{place:?} {message}");
        let (place, message) = Node::parse("a: 1\na: 2\n").unwrap_err();
        assert_eq!((place.line, message.as_str()), (2, "`a` occurs twice here"));
        let told = |text: &str| Node::parse(text).unwrap_err().1;
        assert!(told("a: 1\n---\nb: 1\n").starts_with("a second document begins here"));
        assert!(told("a: .nan\n").starts_with("`.nan` is no number that a pipeline takes"));
        let deep = format!("{}1{}", "{a: ".repeat(100), "}".repeat(100));
        assert!(told(&deep).starts_with("here the text is nested more deeply"));
        let nine = |of: &str| format!("[{}]", [of; 9].join(", "));
        let level = |(name, below): (&str, &str)| format!("{name}: &{name} {}\n", nine(below));
        let levels = [("a", "x"), ("b", "*a"), ("c", "*b"), ("d", "*c"), ("e", "*d"), ("f", "*e"), ("g", "*f")];
        let grows = told(&levels.map(level).concat());
        assert!(grows.contains("refers to itself more often"), "{grows}");
    }

    #[test]
    fn whole_value_of_a_command_line_stands_there() {
        let given = Place::default();
        let value = Node::given("{a: [1, {b: 2}]}", given);
        assert_eq!((value.place_of("a[1].b"), value.place_of("a[0]")), (given, given));
    }

    #[test]
    fn variables_are_filled_into_scalars_only() {
        let lookup = |name: &str| (name == "ROOT").then(|| "/data: [x]".to_owned());
        assert_eq!(substitute("${ROOT}/a$$b", &lookup).unwrap(), "/data: [x]/a$b");
        assert_eq!(substitute("${NONE:-d}", &lookup).unwrap(), "d");
        assert!(substitute("${NONE}", &lookup).unwrap_err().contains("no variable `NONE`"));
        assert!(substitute("${ROOT", &lookup).is_err());
    }

    /// Returns the readings of a value, in the order in which they are offered to a parameter.
    fn readings(mut node: Node) -> Vec<Value> {
        let first = node.to_json();
        let then = node.reread("").map(|_| node.to_json());
        std::iter::once(first).chain(then).collect()
    }

    #[test]
    fn command_line_value_is_the_whole_text_after_the_equals_sign() {
        use serde_json::json;
        let given = |text| readings(Node::given(text, Place::default()));
        for text in [
            "photos #2",
            "#1",
            "a: b: c",
            "*.png",
            "[z",
            "{a",
            "@x",
            "%",
            " x",
            "x ",
            "it's",
            "a\"b",
            "- a: [",
            "'a' b",
        ] {
            assert_eq!(given(text), [json!(text)], "{text}");
        }
        assert_eq!(given("2024"), [json!(2024), json!("2024")]);
        assert_eq!(given("no"), [json!(false), json!("no")]);
        assert_eq!(given("~"), [json!("~")]);
        assert_eq!(given("null"), [Value::Null, json!("null")]);
        assert_eq!(given("[1, 2]"), [json!([1, 2]), json!("[1, 2]")]);
        assert_eq!(given("{ n: utf8? }"), [json!({"n": "utf8?"}), json!("{ n: utf8? }")]);
        assert_eq!(given("{ n: 'a #b' }"), [json!({"n": "a #b"}), json!("{ n: 'a #b' }")]);
        assert_eq!(given("[1] #2"), [json!("[1] #2")]);
        assert_eq!(given("\"2024\""), [json!("2024")]);
        assert_eq!(given("'it''s'"), [json!("it's")]);
    }

    #[test]
    fn variable_alone_is_text_or_the_yaml_reading_of_its_value() {
        use serde_json::json;
        let filled = |text: &str| {
            let mut node = Node::parse(&format!("a: {text}")).unwrap().get("a").unwrap().clone();
            let lookup = |name: &str| (name == "N").then(|| "48".to_owned());
            node.fill_in(&lookup).unwrap();
            readings(node)
        };
        assert_eq!(filled("${N}"), [json!("48"), json!(48)]);
        assert_eq!(filled("\"${M:-[1, 2]}\""), [json!("[1, 2]"), json!([1, 2])]);
        assert_eq!(filled("${M:-true}"), [json!("true"), json!(true)]);
        assert_eq!(filled("${M:-plain}"), [json!("plain")]);
        assert_eq!(filled("${N}${N}"), [json!("4848")]);
        assert_eq!(filled("x${N}"), [json!("x48")]);
    }
}
