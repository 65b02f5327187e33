//! Identity: everything that can change the content of a table, and the digests that represent it.
//!
//! | of | what counts | in |
//! |---|---|---|
//! | the stage | kind, revision, parameters but for places, the content of the files that they name, the schema of its output | [`fingerprint`] |
//! | a listing | names, types and metadata of its columns | [`base`] |
//! | an input | its port, whether it is read whole, names, types and metadata of the columns that are read | [`base`] |
//! | a model | the contents of the tables that it consists of, by their names | [`model`] |
//! | an input read whole | the values of these columns, in the order in which they are read | [`base`] |
//! | a row | its id, and of each input read row by row (or the listing) the values of the columns that are read; the ids of its pieces, and of each input read by pieces these values | [`row_key`] |
//! | a table made as a whole | the keys of its rows, in the order of their ids | [`whole_key`] |
//! | rows that state their model | as above, and the model | [`base`] |
//! | a published table | the fingerprint, the digest of each input ([`read`]), the model if its rows state it, `where:`, and notes on the listing | [`Provenance`] |
//!
//! Volatile columns (times, places) are part of no digest, and so no predicate and no query may read them. Also not
//! covered are the device, the number of threads, the versions of libraries, and the environment of programs.
//!
//! [`Provenance`]: crate::engine::store::Provenance

use arrow::datatypes::{Schema, SchemaRef};
use serde_json::Value;

use crate::engine::{
    Digest, Hasher,
    arrow_schema::{encode_schema, without_hints},
    digest::Fields,
};

/// Returns the digest that identifies a stage: its name in `stage:`, its revision, its parameters without places, the
/// content of the files that they name, and the schema of its output.
pub fn fingerprint(
    stage: &str,
    revision: u32,
    params: &Value,
    files: &[(String, Digest)],
    output: &SchemaRef,
) -> Digest {
    let mut hasher = Hasher::new("stage");
    hasher.field(stage.as_bytes()).field(&revision.to_le_bytes());
    hasher.field(params.to_string().as_bytes());
    files.iter().for_each(|(_, digest)| {
        hasher.field(digest.as_bytes());
    });
    hasher.field(encode_schema(&without_hints(output)).as_bytes());
    hasher.finish()
}

/// An input as a stage reads it.
#[derive(Clone, Debug)]
pub(in crate::engine) struct InputRead<'a> {
    pub(in crate::engine) port: &'a str,
    /// The columns that are read.
    pub(in crate::engine) schema: &'a Schema,
    /// The digest of the values of these columns if the input is read whole; `None` if it is read row by row.
    pub(in crate::engine) content: Option<Digest>,
}

/// Returns the digest of what all rows of a table have in common.
pub(in crate::engine) fn base(
    fingerprint: Digest,
    listed: Option<&Schema>,
    inputs: &[InputRead<'_>],
    model: Option<Digest>,
) -> Digest {
    let mut base = Hasher::new("key");
    base.field(fingerprint.as_bytes());
    if let Some(listed) = listed {
        base.field(encode_schema(listed).as_bytes());
    }
    for input in inputs {
        let mut shape = Hasher::new("input");
        shape.field(input.port.as_bytes()).field(encode_schema(input.schema).as_bytes());
        base.field(shape.finish().as_bytes());
        if let Some(content) = input.content {
            base.field(content.as_bytes());
        }
    }
    if let Some(model) = model {
        base.field(model.as_bytes());
    }
    base.finish()
}

/// Returns the digest of a model: of the contents of the tables that it consists of, whose order does not count. A name is
/// the declared one, so that a model is the same in a sweep and alone.
pub fn model(mut parts: Vec<(&str, Digest)>) -> Digest {
    parts.sort_unstable();
    let mut model = Hasher::new("model");
    for (table, content) in parts {
        model.field(table.as_bytes()).field(content.as_bytes());
    }
    model.finish()
}

/// Returns the identity of a row: `read` has, by input, the digest of the values that are read from it. The id is
/// part of the identity, because it is written with the row and seeds its randomness.
pub(in crate::engine) fn row_key(base: Digest, id: &str, read: impl IntoIterator<Item = Digest>) -> Digest {
    let mut fields = Fields::new("row key");
    fields.add(base.as_bytes()).add(id.as_bytes());
    read.into_iter().for_each(|digest| {
        fields.add(digest.as_bytes());
    });
    fields.digest()
}

/// Returns the identity of a table that is made as a whole from rows with these keys.
pub(in crate::engine) fn whole_key(base: Digest, rows: &[Digest]) -> Digest {
    let mut hasher = Hasher::new("whole");
    hasher.field(base.as_bytes()).field(content(rows).as_bytes());
    hasher.finish()
}

/// Returns the digest of a sequence of row digests.
pub(in crate::engine) fn content(rows: &[Digest]) -> Digest {
    let mut hasher = Hasher::new("table");
    hasher.digests(rows);
    hasher.finish()
}

/// Returns the digest of an input of a published table: everything that could be read from a table at a port, and how
/// it is read.
pub(in crate::engine) fn read(port: &str, is_whole: bool, content: Digest) -> Digest {
    let reads: &[u8] = if is_whole { b"table" } else { b"rows" };
    let mut hasher = Hasher::new("read");
    hasher.field(port.as_bytes()).field(reads).field(content.as_bytes());
    hasher.finish()
}

/// Returns the digest of a listing as an input of a published table: its rows, and the notes that are kept with the
/// table.
pub(in crate::engine) fn listing(rows: &[Digest], notes: &[impl ToString]) -> Digest {
    let mut hasher = Hasher::new("listing");
    hasher.field(content(rows).as_bytes());
    notes.iter().for_each(|note| {
        hasher.field(note.to_string().as_bytes());
    });
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, sync::Arc};

    use arrow::datatypes::{DataType, Field};
    use serde_json::json;

    use super::*;
    use crate::engine::arrow_schema::with_hint;

    /// Checks that all digests are different.
    fn all_differ(what: &str, digests: &[Digest]) {
        let different: BTreeSet<&Digest> = digests.iter().collect();
        assert_eq!(different.len(), digests.len(), "{what}");
    }

    fn schema(name: &str, data_type: DataType, nullable: bool, metadata: &str) -> SchemaRef {
        let field = Field::new(name, data_type, nullable).with_metadata([("m".to_owned(), metadata.to_owned())].into());
        Arc::new(Schema::new(vec![field]))
    }

    /// Returns a schema and, for each property in which schemas may differ, one that differs in it.
    fn schemas() -> Vec<SchemaRef> {
        vec![
            schema("a", DataType::Utf8, true, ""),
            schema("b", DataType::Utf8, true, ""),
            schema("a", DataType::Int64, true, ""),
            schema("a", DataType::Utf8, false, ""),
            schema("a", DataType::Utf8, true, "other"),
            Arc::new(Schema::empty()),
        ]
    }

    fn digest(text: &str) -> Digest {
        Digest::of(text.as_bytes())
    }

    #[test]
    fn each_part_of_a_stage_changes_its_fingerprint() {
        let files = |contents: &[&str]| contents.iter().map(|c| ("path".to_owned(), digest(c))).collect::<Vec<_>>();
        let params = json!({ "size": 1 });
        let output = schema("a", DataType::Utf8, true, "");
        let mut digests = vec![
            fingerprint("a", 1, &params, &files(&["x", "y"]), &output),
            fingerprint("b", 1, &params, &files(&["x", "y"]), &output),
            fingerprint("a", 2, &params, &files(&["x", "y"]), &output),
            fingerprint("a", 1, &json!({ "size": 2 }), &files(&["x", "y"]), &output),
            fingerprint("a", 1, &json!({ "size": "1" }), &files(&["x", "y"]), &output),
            fingerprint("a", 1, &json!({}), &files(&["x", "y"]), &output),
            fingerprint("a", 1, &params, &files(&["y", "x"]), &output),
            fingerprint("a", 1, &params, &files(&["x"]), &output),
        ];
        digests.extend(schemas()[1..].iter().map(|output| fingerprint("a", 1, &params, &files(&["x", "y"]), output)));
        all_differ("stage", &digests);
        let hinted = Schema::new(vec![with_hint(output.field(0).clone(), "many".into())]);
        assert_eq!(fingerprint("a", 1, &params, &files(&["x", "y"]), &Arc::new(hinted)), digests[0], "a hint");
        let moved = [("elsewhere".to_owned(), digest("x")), ("path".to_owned(), digest("y"))];
        assert_eq!(fingerprint("a", 1, &params, &moved, &output), digests[0], "the place of a file");
    }

    #[test]
    fn each_part_of_an_input_changes_the_base() {
        let schemas = schemas();
        let input = |port, schema, content: Option<&str>| InputRead { port, schema, content: content.map(digest) };
        let of = |inputs: &[InputRead<'_>]| base(digest("stage"), None, inputs, None);
        let one = input("p", &*schemas[0], None);
        let two = input("q", &*schemas[0], Some("values"));
        let mut digests = vec![
            of(&[]),
            of(std::slice::from_ref(&one)),
            of(&[one.clone(), two.clone()]),
            of(&[two.clone(), one.clone()]),
            of(&[one.clone(), InputRead { content: None, ..two.clone() }]),
            of(&[one.clone(), input("q", &schemas[0], Some("other values"))]),
            of(&[input("q", &schemas[0], None)]),
            base(digest("another stage"), None, &[], None),
            base(digest("stage"), None, &[], Some(digest("model"))),
            base(digest("stage"), None, &[], Some(digest("another model"))),
        ];
        digests.extend(schemas[1..].iter().map(|schema| of(&[input("p", schema, None)])));
        digests.extend(schemas.iter().map(|schema| base(digest("stage"), Some(schema), &[], None)));
        all_differ("base", &digests);
        let reads = [
            read("p", false, digest("rows")),
            read("p", true, digest("rows")),
            read("q", false, digest("rows")),
            read("p", false, digest("other rows")),
        ];
        all_differ("input of a published table", &reads);
        let note = "left out: a.txt";
        let listings = [
            listing(&[digest("a")], &[""; 0]),
            listing(&[digest("b")], &[""; 0]),
            listing(&[digest("a")], &[note]),
            listing(&[digest("a")], &["left out: a.txt, b.txt"]),
            listing(&[digest("a")], &[note, note]),
        ];
        all_differ("listing", &listings);
    }

    #[test]
    fn each_table_changes_a_model_and_their_order_does_not() {
        let (bank, thresholds) = (("bank", digest("a")), ("thresholds", digest("b")));
        let models = [
            model(vec![bank, thresholds]),
            model(vec![bank]),
            model(vec![bank, ("thresholds", digest("c"))]),
            model(vec![("album", digest("a")), thresholds]),
            model(Vec::new()),
        ];
        all_differ("model", &models);
        assert_eq!(model(vec![thresholds, bank]), models[0]);
    }

    #[test]
    fn each_part_of_a_row_changes_its_key() {
        let (base, a, b) = (digest("base"), digest("a"), digest("b"));
        let rows = [
            row_key(base, "id", [a, b]),
            row_key(digest("other base"), "id", [a, b]),
            row_key(base, "other id", [a, b]),
            row_key(base, "id", [b, a]),
            row_key(base, "id", [a]),
            row_key(base, "id", [a, a]),
        ];
        all_differ("row", &rows);
        let wholes = [
            whole_key(base, &rows),
            whole_key(a, &rows),
            whole_key(base, &rows[1..]),
            whole_key(base, &[rows[1], rows[0]]),
            whole_key(base, &[rows[0], rows[1]]),
            whole_key(base, &[]),
        ];
        all_differ("whole table", &wholes);
    }
}
