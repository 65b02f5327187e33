//! The checker's model of a store: the right content of each table, the rows that were ever computed, and the
//! existing runs and tags.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    path::PathBuf,
    rc::Rc,
};

use rand_chacha::ChaCha8Rng;

use super::{
    edits,
    observe::{self, Computed, Content, Place, Wanted},
    oracle::{self, Made, Wrong},
    pipeline::{Instance, Pipeline},
    sources::Sources,
};
use crate::lab::Lab;

/// A published table.
#[derive(Clone, Debug)]
pub(super) struct Published {
    pub(super) content: Content,
    /// The digests of the data that its rows were computed from; empty if an accident leaves that open.
    pub(super) keys: Rc<Vec<u64>>,
}

/// A run that is recorded in the store.
#[derive(Clone, Debug)]
pub(super) struct Ran {
    pub(super) pipeline: String,
    pub(super) tag: Option<String>,
    pub(super) tables: BTreeMap<Place, Published>,
}

/// The rows in the store, by the digests of the data that they are computed from.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    /// Rows that need not be computed again.
    pub(super) surely: HashSet<u64>,
    /// Rows that may have been computed; any other must be.
    pub(super) maybe: HashSet<u64>,
}

pub(super) struct World {
    pub(super) lab: Lab,
    pub(super) sources: Sources,
    pub(super) pipelines: Vec<Pipeline>,
    pub(super) published: BTreeMap<Place, Published>,
    pub(super) known: Known,
    pub(super) runs: Vec<Ran>,
    /// True if a record may be damaged. It is then unknown which rows are stored without being published.
    pub(super) records_may_be_lost: bool,
    /// True if versions of tagged runs may be damaged, which are then refused.
    pub(super) tags_may_be_lost: bool,
}

/// A run with its expected results.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) pipeline: Pipeline,
    pub(super) arguments: Vec<String>,
    /// The arguments that a plan takes too.
    pub(super) selection: Vec<String>,
    /// True if the plan is requested before the run and compared with it.
    pub(super) is_planned: bool,
    /// The tables that it makes, from top to bottom.
    pub(super) tables: Vec<(Instance, Made)>,
    /// The table at which it stops, and the rows of it that succeed.
    pub(super) stops: Option<(Instance, Option<Made>)>,
    /// Tables that are computed in any case.
    pub(super) forced: BTreeSet<String>,
    pub(super) tag: Option<String>,
}

/// The contents that a table may have; `None` stands for no table.
pub(super) type Allowed = BTreeMap<Place, Vec<Option<Published>>>;

pub(super) fn place(pipeline: &Pipeline, instance: &Instance) -> Place {
    (pipeline.name.clone(), instance.table.name.clone(), instance.variant.clone())
}

fn published(made: &Made) -> Published {
    Published { content: observe::content(&made.rows), keys: Rc::new(made.keys.clone()) }
}

impl World {
    pub(super) fn new(random: &mut ChaCha8Rng) -> Self {
        let lab = Lab::empty();
        let sources = edits::sources(random);
        sources.write(&lab.path(""));
        let world = Self {
            lab,
            sources,
            pipelines: ["one", "two"].map(|name| edits::pipeline(name, random)).into(),
            published: BTreeMap::new(),
            known: Known::default(),
            runs: Vec::new(),
            records_may_be_lost: false,
            tags_may_be_lost: false,
        };
        world.write_pipelines();
        world
    }

    pub(super) fn folder(&self) -> PathBuf {
        self.lab.path("")
    }

    pub(super) fn write_pipelines(&self) {
        self.pipelines.iter().for_each(|pipeline| self.lab.write(&pipeline.file(), &pipeline.yaml()));
    }

    /// Makes the chosen instances of a pipeline, until one cannot be made.
    pub(super) fn attempt(&self, pipeline: Pipeline, chosen: &dyn Fn(usize, &[Instance]) -> bool) -> Attempt {
        let instances = pipeline.instances();
        let mut made: BTreeMap<usize, Made> = BTreeMap::new();
        let mut stops = None;
        for (at, instance) in instances.iter().enumerate().filter(|(at, _)| chosen(*at, &instances)) {
            let inputs: Vec<&Made> = instance.inputs.iter().map(|input| &made[input]).collect();
            match oracle::make(instance, &inputs, &self.sources) {
                Ok(table) => drop(made.insert(at, table)),
                Err(wrong) => {
                    let good = match wrong {
                        Wrong::Input => None,
                        Wrong::Rows(good) => Some(good),
                    };
                    stops = Some((instance.clone(), good));
                    break;
                }
            }
        }
        let tables = made.into_iter().map(|(at, made)| (instances[at].clone(), made)).collect();
        let (arguments, forced) = (vec!["run".to_owned(), pipeline.file(), "--quiet".to_owned()], BTreeSet::new());
        Attempt { pipeline, arguments, selection: Vec::new(), is_planned: false, tables, stops, forced, tag: None }
    }

    /// Returns the contents that tables may have after attempts that each ended at any point, or, with `is_whole`,
    /// after one that ran to its end.
    pub(super) fn allowed(&self, attempts: &[&Attempt], is_whole: bool) -> Allowed {
        let mut allowed: Allowed =
            self.published.iter().map(|(place, table)| (place.clone(), vec![Some(table.clone())])).collect();
        for attempt in attempts {
            let pipeline = &attempt.pipeline;
            let declared: BTreeSet<Place> = pipeline.instances().iter().map(|i| place(pipeline, i)).collect();
            for (place, options) in allowed.iter_mut().filter(|(p, _)| p.0 == pipeline.name && !declared.contains(*p)) {
                // A run begins by hiding tables that its pipeline no longer declares.
                debug_assert_eq!(place.0, pipeline.name);
                if is_whole {
                    options.clear();
                }
                options.push(None);
            }
            for (instance, made) in &attempt.tables {
                let options = allowed.entry(place(pipeline, instance)).or_insert_with(|| vec![None]);
                if is_whole {
                    options.clear();
                }
                options.push(Some(published(made)));
            }
        }
        allowed
    }

    /// Adds the rows that an attempt has computed. Rows of a run that was stopped only may have been computed.
    pub(super) fn learn(&mut self, attempt: &Attempt, is_whole: bool) {
        let stopped = attempt.stops.iter().filter_map(|(_, good)| good.as_ref());
        for made in attempt.tables.iter().map(|(_, made)| made).chain(stopped) {
            self.known.maybe.extend(&made.least);
            if is_whole {
                self.known.surely.extend(&made.keys);
            }
        }
        let tables =
            attempt.tables.iter().map(|(instance, made)| (place(&attempt.pipeline, instance), published(made)));
        let tables = if is_whole { tables.collect() } else { BTreeMap::new() };
        if let Some(tag) = attempt.tag.as_ref().filter(|_| is_whole) {
            self.runs.iter_mut().filter(|run| run.tag.as_ref() == Some(tag)).for_each(|run| run.tag = None);
        }
        let tag = attempt.tag.clone().filter(|_| is_whole);
        self.runs.push(Ran { pipeline: attempt.pipeline.name.clone(), tag, tables });
    }

    /// Compares the rows that a run computed with those that had to be computed.
    pub(super) fn check_computed(&self, attempt: &Attempt, computed: &Computed) -> Result<(), String> {
        let mut known = self.known.clone();
        for (instance, made) in &attempt.tables {
            let name = instance.name();
            let Some(rows) = computed.get(&name) else {
                return Err(format!("the run does not say what became of {name}; it says {computed:?}"));
            };
            let rows = rows.unwrap_or(0) as usize;
            let is_forced = attempt.forced.contains(&name);
            let most = made.missing(|at| !is_forced && known.surely.contains(&made.keys[at]));
            let least = made.missing(|at| !is_forced && known.maybe.contains(&made.least[at]));
            if rows > most && !self.records_may_be_lost {
                return Err(format!("{name}: {rows} rows were computed, of which {most} had to be"));
            }
            if rows < least {
                return Err(format!("{name}: {rows} rows were computed, and {least} never were before"));
            }
            known.surely.extend(&made.keys);
            known.maybe.extend(&made.least);
        }
        Ok(())
    }

    /// Compares every published table with its possible contents, and records which of them it has.
    pub(super) fn compare(&mut self, allowed: &Allowed) -> Result<(), String> {
        let there = observe::published(&self.lab)?;
        for (place, options) in allowed {
            let is_there = there.contains(place);
            if !options.iter().any(|option| option.is_some() == is_there) {
                return Err(format!("{} {}", named(place), if is_there { "is still there" } else { "is not there" }));
            }
        }
        if let Some(place) = there.iter().find(|place| !allowed.contains_key(*place)) {
            return Err(format!("{} is there, and was never declared so", named(place)));
        }
        let mut tables: BTreeMap<(&String, &String), BTreeSet<_>> = BTreeMap::new();
        for (pipeline, table, variant) in &there {
            tables.entry((pipeline, table)).or_default().insert(variant.clone());
        }
        let wanted = tables.keys().map(|(pipeline, table)| {
            let pipeline = self.pipelines.iter().find(|p| p.name == **pipeline).unwrap();
            Wanted { label: format!("{}.{table}", pipeline.name), name: observe::in_sql(pipeline, table, None) }
        });
        let wanted: Vec<Wanted> = wanted.collect();
        let mut rows = observe::ask(&self.lab, &wanted)?.map_err(|said| format!("SQL refuses: {said}"))?;
        let mut published = BTreeMap::new();
        for ((pipeline, table), variants) in tables {
            let rows = rows.remove(&format!("{pipeline}.{table}")).unwrap();
            for (variant, content) in observe::by_variant(rows, &variants)? {
                let place = (pipeline.clone(), table.clone(), variant);
                let options: Vec<&Published> = allowed[&place].iter().flatten().collect();
                let right: Vec<&&Published> = options.iter().filter(|option| option.content == content).collect();
                let Some(found) = right.last() else { return Err(differs(&place, &content, &options)) };
                let mut found = (**found).clone();
                if right.iter().any(|other| other.keys != found.keys) {
                    found.keys = Rc::default();
                }
                self.known.surely.extend(found.keys.iter());
                published.insert(place, found);
            }
        }
        self.published = published;
        Ok(())
    }

    /// Compares the tables of tagged runs with their contents when the tag was given.
    pub(super) fn compare_tags(&self) -> Result<(), String> {
        for run in self.runs.iter().filter(|run| run.tag.is_some()) {
            let pipeline = self.pipelines.iter().find(|p| p.name == run.pipeline).unwrap();
            let mut tables: BTreeMap<&String, BTreeSet<_>> = BTreeMap::new();
            for (_, table, variant) in run.tables.keys() {
                tables.entry(table).or_default().insert(variant.clone());
            }
            let wanted = tables.keys().map(|table| Wanted {
                label: (*table).clone(),
                name: observe::in_sql(pipeline, table, run.tag.as_deref()),
            });
            let mut rows = match observe::ask(&self.lab, &wanted.collect::<Vec<_>>())? {
                Ok(rows) => rows,
                Err(_) if self.tags_may_be_lost => continue,
                Err(said) => return Err(format!("SQL refuses tables of the tag {:?}: {said}", run.tag)),
            };
            for (table, variants) in tables {
                for (variant, content) in observe::by_variant(rows.remove(table).unwrap(), &variants)? {
                    let place = (run.pipeline.clone(), table.clone(), variant);
                    let expected = &run.tables[&place];
                    if expected.content != content {
                        return Err(format!("at the tag {:?}: {}", run.tag, differs(&place, &content, &[expected])));
                    }
                }
            }
        }
        Ok(())
    }

    /// Removes rows that a clean-up may delete: those in no published table, no tagged run and none of the last runs.
    pub(super) fn forget(&mut self, keep: usize) {
        let mut seen: BTreeMap<String, usize> = BTreeMap::new();
        let mut kept: HashSet<u64> = self.published.values().flat_map(|table| table.keys.iter().copied()).collect();
        for run in self.runs.iter().rev() {
            let seen = seen.entry(run.pipeline.clone()).or_default();
            *seen += 1;
            if *seen <= keep || run.tag.is_some() {
                kept.extend(run.tables.values().flat_map(|table| table.keys.iter()));
            }
        }
        self.known.surely.retain(|key| kept.contains(key));
    }
}

fn named((pipeline, table, variant): &Place) -> String {
    format!("{pipeline}.{table}{variant:?}")
}

/// Returns the first rows in which a table differs from each of its possible contents.
fn differs(place: &Place, content: &Content, options: &[&Published]) -> String {
    let only = |these: &Content, others: &Content| {
        these.iter().filter(|row| !others.contains(row)).take(4).cloned().collect::<Vec<_>>().join("\n    ")
    };
    let mut text = format!("{} is wrong: {} rows", named(place), content.len());
    for Published { content: right, .. } in options {
        text += &format!(
            "\n  against {} rows that are right:\n  only here\n    {}\n  missing\n    {}",
            right.len(),
            only(content, right),
            only(right, content)
        );
    }
    text
}
