//! `extends:`, a pipeline file that says what differs from another one.

use std::path::{Path, PathBuf};

use super::{
    file::File,
    inputs::from_entries,
    yaml::{Key, Kind, Node, Place},
};
use crate::engine::Result;

/// The key that names the file that is extended.
const EXTENDS: &str = "extends";

impl File {
    /// Parses the text of the file, and lays it over the file that it extends.
    pub(super) fn document(&mut self, text: &str) -> Result<Node> {
        let at = self.names.len() - 1;
        let parsed = Node::parse(text);
        let mut top = parsed.map_err(|(place, message)| self.error(Place { file: at, ..place }, message))?;
        top.lies_in(at);
        let Some((key, base)) = top.remove(EXTENDS) else { return Ok(top) };
        let wrong = |file: &Self, message: String| file.error(base.place, format!("{EXTENDS}: {message}"));
        let Some(base_name) = base.as_text() else {
            return Err(self.error(key.place, "`extends` is the path of a pipeline file"));
        };
        let path = Path::new(&self.names[at]).parent().unwrap_or(Path::new("")).join(base_name);
        let resolved = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
        if self.names.iter().any(|name| resolved(Path::new(name)) == resolved(&path)) {
            return Err(wrong(self, format!("{} extends itself", path.display())));
        }
        let text = read(&path).map_err(|e| wrong(self, e))?;
        self.names.push(path.display().to_string());
        let base = self.document(&text)?;
        self.laid_over(base, top)
    }

    /// Lays a file over the one that it extends. The name of that one is not inherited.
    fn laid_over(&self, mut base: Node, top: Node) -> Result<Node> {
        let Kind::Map(changes) = top.kind else { return Ok(top) };
        base.remove("name");
        for (key, change) in changes {
            let of_base = base.get_mut("tables").filter(|_| key.name == "tables");
            match (of_base, change.kind) {
                (Some(Node { kind: Kind::Map(tables), .. }), Kind::Map(changes)) => self.change(tables, changes)?,
                (_, kind) => base.set(&[&key.name], Node { kind, ..change }),
            }
        }
        Ok(base)
    }

    /// Changes tables. One that is null is left out, one of another stage is replaced, and of the others the given keys
    /// are, in `with` the given parameters. A new table stands above the first one that reads it, or else below all.
    fn change(&self, tables: &mut Vec<(Key, Node)>, changes: Vec<(Key, Node)>) -> Result<()> {
        let mut new = Vec::new();
        for (key, change) in changes {
            let at = tables.iter().position(|(table, _)| table.name == key.name);
            match (at, change.is_null()) {
                (Some(at), true) => drop(tables.remove(at)),
                (Some(at), false) => self.change_table(&mut tables[at], key, change)?,
                (None, true) => {
                    let names: Vec<&str> = tables.iter().map(|(table, _)| table.name.as_str()).collect();
                    let message =
                        format!("there is no table `{}` to leave out; there are {}", key.name, names.join(", "));
                    return Err(self.error(key.place, message));
                }
                (None, false) => new.push((key, change)),
            }
        }
        let mut below = tables.len();
        for (key, table) in new.into_iter().rev() {
            let reads = |(_, other): &(Key, Node)| {
                from_entries(other).into_iter().any(|(_, input)| input.as_text() == Some(&key.name))
            };
            let reader = tables.iter().position(reads);
            below += usize::from(reader.is_some_and(|reader| reader < below));
            tables.insert(reader.unwrap_or(below), (key, table));
        }
        Ok(())
    }

    /// Changes a table. Parameters in `with` may be paths, such as `training.epochs`; one that is null is left out.
    fn change_table(&self, entry: &mut (Key, Node), key: Key, change: Node) -> Result<()> {
        let stage = |node: &Node| node.get("stage").and_then(Node::as_text).map(str::to_owned);
        let is_other = stage(&change).is_some_and(|new| Some(new) != stage(&entry.1));
        if is_other || !matches!(change.kind, Kind::Map(_)) {
            *entry = (key, change);
            return Ok(());
        }
        let table = &mut entry.1;
        for (key, value) in change.into_entries() {
            match value.kind {
                Kind::Map(parameters) if key.name == "with" => {
                    for (parameter, value) in parameters {
                        let path: Vec<&str> = ["with"].into_iter().chain(parameter.name.split('.')).collect();
                        if !value.is_null() {
                            // Errors about a parameter are at its name.
                            table.set(&path, Node { place: parameter.place, ..value });
                        } else if !table.unset(&path) {
                            let message = format!("there is no parameter `{}` to leave out", parameter.name);
                            return Err(self.error(parameter.place, message));
                        }
                    }
                }
                kind => table.set(&[&key.name], Node { kind, ..value }),
            }
        }
        Ok(())
    }
}

fn read(path: &PathBuf) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|e| format!("cannot read {}: {e}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use crate::engine::{
        pipeline::Pipeline,
        run::toys::{CHAIN, load},
    };

    const BASE: &str = "name: base\nstore: kept\nsweep: { plus: [1, 2] }";

    /// Reads a file beside `base.yaml`.
    fn extended(base: &str, text: &str) -> Result<Pipeline, String> {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("base.yaml"), base).unwrap();
        let file = folder.path().join("own.yaml");
        fs::write(&file, text).unwrap();
        load(&file).map_err(|e| e.replace(&format!("{}/", folder.path().display()), ""))
    }

    #[test]
    fn file_that_extends_another_says_what_differs() {
        let base = format!("{BASE}{CHAIN}");
        let own = "extends: base.yaml
tables:
  numbers: { with: { rows.b: 7, rows.d: 4, rows.c: null } }
  total: null
sweep: { plus: [3, null] }";
        let pipeline = extended(&base, own).unwrap();
        assert_eq!((pipeline.name.as_str(), pipeline.store.as_deref()), ("own", Some("kept")));
        let parameters: Vec<_> = pipeline.tables.iter().map(|table| table.stage.params()).collect();
        assert_eq!(parameters.len(), 3);
        assert_eq!(parameters[0]["rows"], serde_json::json!({ "a": 1, "b": 7, "d": 4 }));
        // A swept value `null` stands for the default of its parameter.
        assert_eq!([&parameters[1]["plus"], &parameters[2]["plus"]], [3, 0]);
    }

    #[test]
    fn table_of_another_stage_is_replaced_and_a_new_one_stands_above_its_reader() {
        let own = "extends: base.yaml
tables:
  first: { stage: add, from: [numbers], with: { plus: 5 } }
  second: { stage: add, from: [first] }
  more: { stage: sorted, from: [second] }
  last: { stage: sum, from: [first] }";
        let pipeline = extended(CHAIN, own).unwrap();
        let names: Vec<(&str, &str)> =
            pipeline.tables.iter().map(|table| (table.name.as_str(), table.kind.name)).collect();
        let expected = [
            ("numbers", "list"),
            ("first", "add"),
            ("second", "add"),
            ("more", "sorted"),
            ("total", "sum"),
            ("last", "sum"),
        ];
        assert_eq!(names, expected);
    }

    #[test]
    fn errors_name_the_file_and_the_place() {
        let told = |base: &str, own: &str| extended(base, own).err().unwrap();
        assert!(told(CHAIN, "extends: bass.yaml").starts_with("own.yaml:1:10: extends: cannot read bass.yaml"));
        assert!(
            told("extends: own.yaml", "extends: base.yaml")
                .ends_with("base.yaml:1:10: extends: own.yaml extends itself")
        );
        assert!(
            told(CHAIN, "extends: [base.yaml]").starts_with("own.yaml:1:1: `extends` is the path of a pipeline file")
        );
        let absent = told(CHAIN, "extends: base.yaml\ntables: { mor: null }");
        assert_eq!(absent, "own.yaml:2:11: there is no table `mor` to leave out; there are numbers, more, total");
        let wrong = told(&CHAIN.replace("plus: 10", "pluss: 10"), "extends: base.yaml");
        assert!(wrong.starts_with("base.yaml:4:48: "), "{wrong}");
        let absent = told(CHAIN, "extends: base.yaml\ntables: { more: { with: { fails: null } } }");
        assert_eq!(absent, "own.yaml:2:27: there is no parameter `fails` to leave out");
        let wrong = told(CHAIN, "extends: base.yaml\ntables: { more: { with: { pluss: 1 } } }");
        assert!(wrong.starts_with("own.yaml:2:27: "), "{wrong}");
    }
}
