//! `sweep:`, several values of some parameters. Every combination runs, and what combinations share is computed once.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::yaml::{Key, Kind, Node, Place};
use crate::engine::{
    Error, Result, Variant,
    suggest::{or_none, suggestion},
    value_text,
};

/// The maximum number of combinations. It is larger than any practical sweep and refuses mistakes before they fill
/// memory.
const MOST_COMBINATIONS: usize = 4096;

/// A swept parameter.
#[derive(Debug)]
pub(in crate::engine) struct Axis {
    pub(in crate::engine) name: String,
    pub(in crate::engine) place: Place,
    pub(in crate::engine) table: String,
    /// The parameter below the table's `with:`.
    pub(in crate::engine) path: Vec<String>,
}

impl Axis {
    /// Names the axis by its table and its whole path, which no column of a stage is called.
    pub(in crate::engine) fn spell_out(&mut self) {
        self.name = format!("{}.{}", self.table, self.path.join("."));
    }

    /// Returns true if this axis and a dotted path `table.parameter` set a parameter in common.
    pub(in crate::engine) fn overlaps(&self, path: &[&str]) -> bool {
        let own = std::iter::once(&self.table).chain(&self.path);
        own.zip(path).all(|(own, other)| own == other)
    }
}

/// The parameters that a table takes, by table, in the order of the file.
pub(in crate::engine) type Takes = [(String, Vec<String>)];

type Wrong = (Place, String);

/// `sweep:` of a pipeline file.
#[derive(Debug, Default)]
pub(in crate::engine) struct Sweep {
    pub(in crate::engine) axes: Vec<Axis>,
    /// The values of all axes, in their order.
    combinations: Vec<Vec<Node>>,
}

impl Sweep {
    pub(in crate::engine) fn read(node: &Node, takes: &Takes) -> Result<Self, Wrong> {
        let (axes, combinations) = match &node.kind {
            Kind::Map(lists) if !lists.is_empty() => {
                (axes(lists.iter().map(|(key, _)| key), takes)?, every_combination(lists)?)
            }
            Kind::List(items) if !items.is_empty() => {
                let first: Vec<&Key> = items[0].entries().iter().map(|(key, _)| key).collect();
                (
                    axes(first.iter().copied(), takes)?,
                    items.iter().map(|i| listed(i, &first)).collect::<Result<_, _>>()?,
                )
            }
            _ => {
                let message = "sweep is a mapping of parameters to lists, such as `sigma: [1, 2]`, or a list of combinations, such as `- { sigma: 1 }`";
                return Err((node.place, message.into()));
            }
        };
        let sweep = Self { axes, combinations };
        let mut seen = BTreeSet::new();
        match sweep.combinations.iter().find(|values| !seen.insert(format!("{:?}", json(values)))) {
            Some(twice) => {
                let place = twice.iter().map(|value| value.place).max_by_key(|p| (p.line, p.column));
                let whole: Vec<usize> = (0..sweep.axes.len()).collect();
                let values = sweep.variant(&whole, twice).name("");
                Err((place.unwrap_or(node.place), format!("the combination {values} is there twice")))
            }
            None => Ok(sweep),
        }
    }

    /// Returns the axes that set parameters of a table.
    pub(in crate::engine) fn axes_of(&self, table: &str) -> BTreeSet<usize> {
        (0..self.axes.len()).filter(|axis| self.axes[*axis].table == table).collect()
    }

    /// Returns the different combinations of values of some axes. Without axes that is one, which is empty.
    pub(in crate::engine) fn distinct(&self, axes: &BTreeSet<usize>) -> Vec<(Variant, Vec<(&Axis, &Node)>)> {
        let axes: Vec<usize> = axes.iter().copied().collect();
        if axes.is_empty() {
            return vec![Default::default()];
        }
        let mut distinct: Vec<(Variant, Vec<_>)> = Vec::new();
        for values in &self.combinations {
            let variant = self.variant(&axes, values);
            if distinct.iter().all(|(other, _)| *other != variant) {
                distinct.push((variant, axes.iter().map(|axis| (&self.axes[*axis], &values[*axis])).collect()));
            }
        }
        distinct
    }

    /// Returns all combinations.
    pub(in crate::engine) fn variants(&self) -> Vec<Variant> {
        let all: Vec<usize> = (0..self.axes.len()).collect();
        self.combinations.iter().map(|values| self.variant(&all, values)).collect()
    }

    /// Multiplies every combination by a number of seeds, 0 and up, which all of `seeds` share: tables with the paths of their
    /// parameters. Seeds that the sweep sets already are its own.
    pub(in crate::engine) fn over_seeds(
        mut self,
        count: &Node,
        seeds: Vec<(String, Vec<String>)>,
    ) -> Result<Self, Wrong> {
        let wrong = |message: &str| Err((count.place, message.to_owned()));
        let number = count.to_json().as_u64().filter(|number| *number > 1);
        let Some(number) = number else { return wrong("seeds is a number of seeds from 2, such as `seeds: 5`") };
        let swept = self.axes.len();
        for (table, path) in seeds {
            let steps: Vec<&str> = std::iter::once(&table).chain(&path).map(String::as_str).collect();
            if !self.axes.iter().any(|axis| axis.overlaps(&steps)) {
                self.axes.push(Axis { name: String::new(), place: count.place, table, path });
            }
        }
        let added = self.axes.len() - swept;
        if added == 0 {
            return wrong("seeds: no table takes a seed that the sweep does not set");
        }
        name(&mut self.axes);
        let combinations = if self.combinations.is_empty() { vec![Vec::new()] } else { self.combinations };
        if combinations.len() as u64 > MOST_COMBINATIONS as u64 / number {
            return wrong(&format!("seeds: there are more than {MOST_COMBINATIONS} combinations"));
        }
        let of_seed = |values: &Vec<Node>, seed: u64| {
            let seeds = (0..added).map(|_| Node::given(&seed.to_string(), count.place));
            values.iter().cloned().chain(seeds).collect()
        };
        let every = combinations.iter().flat_map(|values| (0..number).map(move |seed| (values, seed)));
        self.combinations = every.map(|(values, seed)| of_seed(values, seed)).collect();
        Ok(self)
    }

    fn variant(&self, axes: &[usize], values: &[Node]) -> Variant {
        Variant(axes.iter().map(|axis| (self.axes[*axis].name.clone(), values[*axis].to_json())).collect())
    }
}

fn json(values: &[Node]) -> Vec<Value> {
    values.iter().map(Node::to_json).collect()
}

/// Finds the parameters that the keys of a sweep name.
fn axes<'k>(keys: impl Iterator<Item = &'k Key>, takes: &Takes) -> Result<Vec<Axis>, Wrong> {
    let mut axes: Vec<Axis> = Vec::new();
    for key in keys {
        let (table, path) = resolve(&key.name, takes).map_err(|message| (key.place, format!("sweep: {message}")))?;
        let steps: Vec<&str> = std::iter::once(&table).chain(&path).map(String::as_str).collect();
        if let Some(other) = axes.iter().find(|axis| axis.overlaps(&steps)) {
            let message = format!("sweep: `{}` and `{}` set the same parameter of `{table}`", other.name, key.name);
            return Err((key.place, message));
        }
        axes.push(Axis { name: key.name.clone(), place: key.place, table, path });
    }
    name(&mut axes);
    Ok(axes)
}

/// Names each axis by the last part of its path if that is unique, else by its table and the path.
fn name(axes: &mut [Axis]) {
    let last = |axis: &Axis| axis.path.last().cloned().unwrap_or_default();
    let words: Vec<String> = axes.iter().map(last).collect();
    for (axis, word) in axes.iter_mut().zip(&words) {
        if words.iter().filter(|other| *other == word).count() > 1 {
            axis.spell_out();
        } else {
            axis.name.clone_from(word);
        }
    }
}

/// Resolves `parameter` or `table.parameter` to the table and the path of the parameter.
fn resolve(name: &str, takes: &Takes) -> Result<(String, Vec<String>), String> {
    let Some((table, path)) = name.split_once('.') else {
        let owners: Vec<&str> =
            takes.iter().filter(|(_, all)| all.iter().any(|p| p == name)).map(|(table, _)| table.as_str()).collect();
        return match owners.as_slice() {
            [table] => Ok(((*table).to_owned(), vec![name.to_owned()])),
            [] => {
                let all: Vec<&str> = takes.iter().flat_map(|(_, all)| all).map(String::as_str).collect();
                Err(format!(
                    "no table takes a parameter `{name}`{}; write a parameter or table.parameter",
                    suggestion(name, &all)
                ))
            }
            several => {
                let written: Vec<String> = several.iter().map(|table| format!("{table}.{name}")).collect();
                Err(format!("several tables take a parameter `{name}`; write {}", written.join(" or ")))
            }
        };
    };
    let tables: Vec<&str> = takes.iter().map(|(table, _)| table.as_str()).collect();
    let (_, parameters) = takes.iter().find(|(other, _)| other == table).ok_or_else(|| {
        format!("there is no table `{table}`{}; tables are {}", suggestion(table, &tables), or_none(&tables))
    })?;
    let path: Vec<String> = path.split('.').map(str::to_owned).collect();
    let known: Vec<&str> = parameters.iter().map(String::as_str).collect();
    if !known.contains(&path[0].as_str()) || path.iter().any(String::is_empty) {
        return Err(format!(
            "table `{table}` takes no parameter `{}`{}; it takes {}",
            path[0],
            suggestion(&path[0], &known),
            or_none(&known)
        ));
    }
    Ok((table.to_owned(), path))
}

fn every_combination(lists: &[(Key, Node)]) -> Result<Vec<Vec<Node>>, Wrong> {
    let mut combinations = vec![Vec::new()];
    for (key, node) in lists {
        let values = match &node.kind {
            Kind::List(values) if !values.is_empty() => values,
            _ => return Err((node.place, format!("sweep: `{}` has a list of at least one value", key.name))),
        };
        if values.len() * combinations.len() > MOST_COMBINATIONS {
            return Err((key.place, format!("sweep: there are more than {MOST_COMBINATIONS} combinations")));
        }
        let longer = |start: &Vec<Node>, value: &Node| start.iter().chain([value]).cloned().collect();
        combinations = combinations.iter().flat_map(|start| values.iter().map(move |v| longer(start, v))).collect();
    }
    Ok(combinations)
}

/// Reads one combination that is written out. Its values are returned in the order of `keys`.
fn listed(item: &Node, keys: &[&Key]) -> Result<Vec<Node>, Wrong> {
    let names: Vec<&str> = keys.iter().map(|key| key.name.as_str()).collect();
    if keys.is_empty() {
        return Err((item.place, "sweep: a combination is a mapping such as { sigma: 1 }".into()));
    }
    if let Some((key, _)) = item.entries().iter().find(|(key, _)| !names.contains(&key.name.as_str())) {
        let message = format!("sweep: the first combination sets {} and not `{}`", names.join(", "), key.name);
        return Err((key.place, message));
    }
    let value = |name: &&str| {
        let message = || format!("sweep: this combination does not set `{name}`; the first sets {}", names.join(", "));
        item.get(name).cloned().ok_or_else(|| (item.place, message()))
    };
    names.iter().map(value).collect()
}

/// Returns the combinations selected by `--only AXIS=VALUE`: any of the given values of one axis, and all of the
/// given axes.
pub(in crate::engine) fn choose(combinations: &[Variant], only: &[String]) -> Result<Vec<Variant>> {
    let axes: Vec<&str> = combinations.first().map_or(&[][..], |v| &v.0).iter().map(|(a, _)| a.as_str()).collect();
    let mut wanted: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
    for choice in only {
        let wrong = |why: String| Error::Input(format!("--only {choice}: {why}"));
        let (axis, value) =
            choice.split_once('=').ok_or_else(|| wrong("there is no `=`; write axis=value".to_owned()))?;
        if !axes.contains(&axis) {
            return Err(wrong(match axes.as_slice() {
                [] => "the pipeline has no `sweep:`".into(),
                axes => format!("there is no axis `{axis}`{}; axes are {}", suggestion(axis, axes), axes.join(", ")),
            }));
        }
        let mut values: Vec<&Value> = Vec::new();
        for known in combinations.iter().filter_map(|combination| combination.get(axis)) {
            values.extend((!values.contains(&known)).then_some(known));
        }
        let parsed = Node::parse(value).ok().map(|node| node.to_json());
        let found = values.iter().find(|known| value_text(known) == value || Some(**known) == parsed.as_ref());
        let found = found.ok_or_else(|| {
            let values: Vec<String> = values.iter().map(|value| value_text(value)).collect();
            wrong(format!("axis `{axis}` has no value `{value}`; it has {}", values.join(", ")))
        })?;
        wanted.entry(axis).or_default().push((*found).clone());
    }
    let fits = |combination: &&Variant| {
        wanted.iter().all(|(axis, values)| combination.get(axis).is_some_and(|value| values.contains(value)))
    };
    let chosen: Vec<Variant> = combinations.iter().filter(fits).cloned().collect();
    if chosen.is_empty() {
        return Err(Error::Input(format!("no combination of the sweep has --only {}", only.join(" --only "))));
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::MOST_COMBINATIONS;
    use crate::engine::run::toys::{CHAIN, World, edited, read};

    fn swept(sweep: &str) -> String {
        format!("{CHAIN}sweep: {sweep}\n")
    }

    #[test]
    fn members_share_the_tables_above_the_swept_one() {
        let text = edited(CHAIN, ", with: { plus: 10 }", "") + "sweep: { plus: [1, 2] }\n";
        let world = World::new();
        let first = ["numbers 3", "more[plus=1] 3", "more[plus=2] 3", "total[plus=1] 1", "total[plus=2] 1"];
        assert_eq!(world.run(&text).unwrap(), first);
        let another = edited(&text, "[1, 2]", "[2, 3]");
        assert_eq!(world.run(&another).unwrap(), ["more[plus=3] 3", "total[plus=3] 1"]);
    }

    #[test]
    fn member_equals_the_table_without_a_sweep() {
        let world = World::after(CHAIN);
        assert_eq!(world.run(&swept("{ plus: [10] }")).unwrap(), ["more[plus=10] 0", "total[plus=10] 0"]);
    }

    #[test]
    fn table_that_reads_two_swept_tables_reads_members_of_one_combination() {
        let both = "  both: { stage: add, from: [more, other] }\n";
        let other = "  other: { stage: add, from: [more] }\n";
        let pipeline = read(&format!("{CHAIN}{other}{both}sweep: {{ more.plus: [1, 2] }}\n"), &[]).unwrap();
        let both: Vec<Vec<&str>> = pipeline
            .tables
            .iter()
            .filter(|table| table.declared == "both")
            .map(|table| table.inputs.iter().map(|input| input.table.as_str()).collect())
            .collect();
        assert_eq!(both, [["more[plus=1]", "other[plus=1]"], ["more[plus=2]", "other[plus=2]"]]);
    }

    #[test]
    fn combinations_that_are_written_out_are_not_multiplied() {
        let text = format!("{CHAIN}  most: {{ stage: add, from: [more] }}\n");
        let text = text
            + "sweep:\n  - { more.plus: 1, most.plus: 1 }\n  - { more.plus: 1, most.plus: 2 }\n  - { more.plus: 2, most.plus: 1 }\n";
        let mut pipeline = read(&text, &[]).unwrap();
        let instances = |name: &str| pipeline.tables.iter().filter(|table| table.declared == name).count();
        assert_eq!(["numbers", "more", "total", "most"].map(instances), [1, 2, 2, 3]);
        let none = pipeline.only(&["more.plus=2".into(), "most.plus=2".into()]).unwrap_err().to_string();
        assert_eq!(none, "no combination of the sweep has --only more.plus=2 --only most.plus=2");
    }

    #[test]
    fn only_one_value_keeps_what_its_members_share() {
        let mut pipeline = read(&swept("{ plus: [1, 2] }"), &[]).unwrap();
        pipeline.only(&["plus=2".into()]).unwrap();
        let names: Vec<&str> = pipeline.tables.iter().map(|table| table.name.as_str()).collect();
        assert_eq!(names, ["numbers", "more[plus=2]", "total[plus=2]"]);
    }

    #[test]
    fn too_many_combinations_are_refused_before_they_are_made() {
        let values = |count: usize| (0..count).map(|value| value.to_string()).collect::<Vec<_>>().join(", ");
        let of = |plus: usize, fails: usize| {
            read(&swept(&format!("{{ plus: [{}], fails: [{}] }}", values(plus), values(fails))), &[])
        };
        let error = of(MOST_COMBINATIONS, 2).unwrap_err();
        assert!(error.ends_with("sweep: there are more than 4096 combinations"), "{error}");
        assert!(of(8, 2).is_ok());
    }
}
