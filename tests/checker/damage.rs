//! Damages objects of a store. No command may answer wrongly or panic, and a run that verifies must repair
//! everything.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde_json::json;

use super::{
    edits::{below, one},
    given,
    observe::{self, Content, Wanted, ended},
    pipeline::{Axis, Filter, Makes, Pipeline, Stage, Table, Variant},
    sources::{File, Manner},
    steps::{files_below, whole_run},
    world::World,
};
use crate::lab::{Lab, toy_above};

/// A kind of damage to a file.
#[derive(Clone, Debug)]
pub(super) enum Kind {
    /// One bit of a byte is flipped.
    Flip { at: u64, bit: u8 },
    /// The file is cut to this length in bytes.
    Cut { to: u64 },
    /// The file is deleted.
    Gone,
}

#[derive(Clone, Debug)]
pub(super) struct Damage {
    pub(super) file: PathBuf,
    pub(super) kind: Kind,
}

impl Damage {
    /// Chooses damage to an object of a store other than a lock; each kind of objects is equally likely. `None` if
    /// there is no object.
    pub(super) fn random(store: &Path, random: &mut ChaCha8Rng) -> Option<Self> {
        let mut kinds: BTreeMap<PathBuf, Vec<PathBuf>> = BTreeMap::new();
        for file in files_below(store) {
            let kind = file.strip_prefix(store).unwrap().components().next().unwrap().as_os_str().into();
            kinds.entry(kind).or_default().push(file);
        }
        kinds.remove(Path::new("locks"));
        let kinds: Vec<Vec<PathBuf>> = kinds.into_values().collect();
        if kinds.is_empty() {
            return None;
        }
        let files = one(random, &kinds);
        let file = one(random, &files);
        Some(Self { kind: Kind::random(&file, random), file })
    }

    pub(super) fn inflict(&self) {
        let mut bytes = fs::read(&self.file).unwrap();
        match self.kind {
            Kind::Gone => return fs::remove_file(&self.file).unwrap(),
            Kind::Flip { at, bit } => {
                if let Some(byte) = bytes.get_mut(at as usize) {
                    *byte ^= 1 << bit;
                }
            }
            Kind::Cut { to } => bytes.truncate(to as usize),
        }
        fs::write(&self.file, bytes).unwrap();
    }
}

impl Kind {
    fn random(file: &Path, random: &mut ChaCha8Rng) -> Self {
        let length = fs::metadata(file).unwrap().len();
        match below(random, 10) {
            0..7 => Self::Flip { at: below(random, length), bit: below(random, 8) as u8 },
            7 => Self::Cut { to: 0 },
            8 => Self::Cut { to: below(random, length) },
            _ => Self::Gone,
        }
    }
}

/// Returns a pipeline with all kinds of tables.
pub(super) fn pipeline() -> Pipeline {
    let images = Table { skips: true, ..Table::new("images", Stage::Ingest { size: 16 }, &[]) };
    let mut captions = Table::new("captions", Stage::Caption { default: "nothing".into() }, &["images"]);
    captions.filter = Some(Filter::Train);
    Pipeline {
        name: "one".into(),
        tables: vec![
            Table::new("a", Stage::Read(File::Csv), &[]),
            Table::new("c", Stage::Read(File::Parquet), &[]),
            images,
            captions,
            Table::new("parts", Stage::Parts, &["c"]),
            Table::new("kept", Stage::Keep { above: 0, makes: Makes::Rows }, &["a"]),
            Table::new("left", Stage::Left, &["a", "kept"]),
            Table::new("total", Stage::Total, &["a"]),
            Table::new("against", Stage::Against, &["a", "total"]),
        ],
        sweep: vec![Axis {
            table: "captions".into(),
            values: ["nothing", "a {class}"].map(|default| Stage::Caption { default: default.into() }).into(),
        }],
    }
}

/// Makes a store with a history: several versions, a tag, rows that failed, a table that is no longer declared.
fn world() -> Result<World, String> {
    let mut world = World::new(&mut ChaCha8Rng::seed_from_u64(11));
    world.pipelines = vec![pipeline()];
    let mut silent = |_: String| {};
    let folder = world.folder();
    for number in [5, 7, 8] {
        let rows = world.sources.records.get_mut(&File::Csv).unwrap();
        rows[1].insert("n".into(), json!(number));
        world.sources.write_records(File::Csv, &folder, Manner::Replaced);
        if number == 7 {
            world.sources.classes.get_mut("tile").unwrap().pictures.get_mut("test/good/0.png").unwrap().is_broken =
                true;
            world.sources.write_picture("tile", "test/good/0.png", &folder, Manner::Replaced);
        }
        if number == 8 {
            world.pipelines[0].tables.retain(|table| table.name != "left");
        }
        world.write_pipelines();
        let mut attempt = world.attempt(world.pipelines[0].clone(), &|_, _| true);
        if number == 7 {
            attempt.arguments.extend(["--tag", "first"].map(str::to_owned));
            attempt.tag = Some("first".into());
        }
        whole_run(&mut world, &attempt, &mut silent)?;
    }
    Ok(world)
}

/// The right answers of SQL for all tables, by the table's name in SQL.
type Answers = BTreeMap<String, BTreeMap<Variant, Content>>;

/// Returns the right answers after a run, and those of the tagged run.
fn answers(world: &World) -> (Answers, Answers) {
    let pipeline = &world.pipelines[0];
    let mut now = Answers::new();
    let attempt = world.attempt(pipeline.clone(), &|_, _| true);
    for (instance, made) in &attempt.tables {
        let name = observe::in_sql(pipeline, &instance.table.name, None);
        now.entry(name).or_default().insert(instance.variant.clone(), observe::content(&made.rows));
    }
    let mut tagged = Answers::new();
    for run in world.runs.iter().filter(|run| run.tag.is_some()) {
        for ((_, table, variant), published) in &run.tables {
            let name = observe::in_sql(pipeline, table, run.tag.as_deref());
            tagged.entry(name).or_default().insert(variant.clone(), published.content.clone());
        }
    }
    (now, tagged)
}

/// Queries tables, all at once and, if that is refused, one by one. Each must give one of the right answers or be
/// refused. Returns the message of a refusal, if there was one.
fn ask(world: &World, right: &[&Answers]) -> Result<Option<String>, String> {
    let wanted = |name: &String| Wanted { label: name.clone(), name: name.clone() };
    let all: Vec<Wanted> = right[0].keys().map(wanted).collect();
    if let Ok(rows) = observe::ask(&world.lab, &all)? {
        for (name, rows) in rows {
            check(&name, rows, right)?;
        }
        return Ok(None);
    }
    let mut refused = None;
    for table in all {
        let name = table.name.clone();
        match observe::ask(&world.lab, &[table])? {
            Ok(mut rows) => check(&name, rows.remove(&name).unwrap(), right)?,
            Err(said) if NAMES.iter().any(|name| said.contains(name)) => refused = Some(said),
            Err(said) => return Err(format!("SQL refuses {name} without naming the damage: {said}")),
        }
    }
    Ok(refused)
}

/// Words in errors about damaged or missing objects.
const NAMES: [&str; 6] = ["damaged", "missing", "does not match", "no longer in the store", "no run", "no table"];

fn check(name: &str, rows: Vec<super::sources::Row>, right: &[&Answers]) -> Result<(), String> {
    let is_right = |answers: &&&Answers| {
        let variants: BTreeSet<Variant> = answers[name].keys().cloned().collect();
        observe::by_variant(rows.clone(), &variants).is_ok_and(|split| split == answers[name])
    };
    if right.iter().any(|answers| is_right(&answers)) {
        return Ok(());
    }
    Err(format!(
        "SQL answers {name} wrongly:\n  {}\nright is\n  {:?}",
        observe::content(&rows).join("\n  "),
        right[0][name]
    ))
}

/// A copy of a store beside it, from which the store is restored.
struct Copy {
    files: BTreeMap<PathBuf, Vec<u8>>,
    store: PathBuf,
}

impl Copy {
    fn of(store: PathBuf) -> Self {
        Self {
            files: files_below(&store).into_iter().map(|file| (file.clone(), fs::read(file).unwrap())).collect(),
            store,
        }
    }

    fn restore(&self) {
        for file in files_below(&self.store).iter().filter(|file| !self.files.contains_key(*file)) {
            fs::remove_file(file).unwrap();
        }
        for (file, bytes) in &self.files {
            if fs::read(file).ok().as_ref() != Some(bytes) {
                fs::create_dir_all(file.parent().unwrap()).unwrap();
                fs::write(file, bytes).unwrap();
            }
        }
    }
}

/// Inflicts one damage and runs commands after it. They must answer rightly or name the damage, and a verifying run
/// must repair it.
fn trial(world: &mut World, damage: &Damage, random: &mut ChaCha8Rng) -> Result<(), String> {
    let (before, tagged) = answers(world);
    damage.inflict();
    ask(world, &[&before])?;
    ask(world, &[&tagged])?;
    if below(random, 2) == 0 {
        let folder = world.folder();
        let number = world.sources.records[&File::Csv][2].get("n").and_then(|n| n.as_i64()).unwrap_or(0);
        world.sources.records.get_mut(&File::Csv).unwrap()[2].insert("n".into(), json!(number + 20));
        world.sources.write_records(File::Csv, &folder, Manner::Replaced);
    }
    let (after, _) = answers(world);
    let other =
        one(random, &[&["status"][..], &["runs"], &["gc", "--keep", "1"], &["diff", "first"], &["plan", "one.yaml"]]);
    ended(&mut observe::command(&world.lab, other), "")?;
    ended(&mut observe::command(&world.lab, &["plan", "one.yaml"]), "")?;
    let end = ended(&mut observe::command(&world.lab, &["run", "one.yaml"]), "")?;
    // A run that refuses has made some of the tables already.
    let right: &[&Answers] = if end.code == Some(3) { &[&after] } else { &[&after, &before] };
    ask(world, right)?;
    let end = ended(&mut observe::command(&world.lab, &["run", "one.yaml", "--verify"]), "")?;
    if end.code != Some(3) {
        return Err(format!("run --verify ends with {:?}: {}", end.code, end.stderr));
    }
    ask(world, &[&tagged])?;
    match ask(world, &[&after])? {
        Some(said) => Err(format!("after run --verify SQL refuses: {said}")),
        None => Ok(()),
    }
}

/// Tries `count` damages, each to the same store.
fn damages(seed: u64, count: u64) {
    let began = Instant::now();
    let mut world = world().unwrap();
    let copy = Copy::of(world.lab.path(".vlmdiff"));
    let sources = world.sources.clone();
    let mut failed = Vec::new();
    for number in seed..seed + count {
        let mut random = ChaCha8Rng::seed_from_u64(number);
        copy.restore();
        if world.sources.records != sources.records {
            world.sources = sources.clone();
            world.sources.write_records(File::Csv, &world.folder(), Manner::Replaced);
        }
        let damage = Damage::random(&copy.store, &mut random).unwrap();
        if let Err(why) = trial(&mut world, &damage, &mut random) {
            let file = damage.file.strip_prefix(&copy.store).unwrap().display().to_string();
            failed.push(format!("VLMDIFF_SEED={number} {file} {:?}: {why}", damage.kind));
            println!("{}\n", failed[failed.len() - 1]);
        }
    }
    println!("{count} damages in {:.0} s", began.elapsed().as_secs_f64());
    assert!(failed.is_empty(), "{} of {count} damages:\n\n{}", failed.len(), failed.join("\n\n"));
}

#[test]
fn damage_is_never_answered_as_data() {
    let seed = given("VLMDIFF_SEED").unwrap_or(1);
    damages(seed, if given("VLMDIFF_SEED").is_some() { 1 } else { 100 });
}

/// Two thousand damages, for `make soak`.
#[test]
#[ignore = "takes many minutes"]
fn two_thousand_damages_are_never_answered_as_data() {
    let seed = given("VLMDIFF_SEED").unwrap_or_else(|| rand::random::<u32>().into());
    damages(seed, given("VLMDIFF_DAMAGES").unwrap_or(2000));
}

/// Damages what a training stores: its saved state while it runs, or its weights when it is done.
fn damages_of_a_training(seed: u64, count: u64) {
    // The training takes a moment, so that it saves its state.
    let lab = Lab::new(&toy_above("text_embeddings").replace("training: { steps: 4,", "training: { steps: 150,"));
    lab.run(&["--store", "undisturbed"]);
    let right = lab.contents("undisturbed");
    let mut run = observe::command(&lab, &["run", "pipeline.yaml", "--quiet", "--save-every", "0"]).spawn().unwrap();
    let state = lab.path(".vlmdiff/state");
    while run.try_wait().unwrap().is_none() && files_below(&state).is_empty() {
        std::thread::sleep(Duration::from_millis(2));
    }
    run.kill().unwrap();
    run.wait().unwrap();
    let under_way = Copy::of(lab.path(".vlmdiff"));
    lab.run(&[]);
    let done = Copy::of(lab.path(".vlmdiff"));
    for number in seed..seed + count {
        let mut random = ChaCha8Rng::seed_from_u64(number);
        let copy = one(&mut random, &[&under_way, &done]);
        copy.restore();
        let damage = Damage::random(&copy.store, &mut random).unwrap();
        damage.inflict();
        for arguments in [&["sql", "select count(*) from text_encoder"][..], &["plan", "pipeline.yaml"]] {
            ended(&mut observe::command(&lab, arguments), "").unwrap_or_else(|why| panic!("{damage:?}: {why}"));
        }
        ended(&mut observe::command(&lab, &["run", "pipeline.yaml"]), "")
            .unwrap_or_else(|why| panic!("{damage:?}: {why}"));
        let end = ended(&mut observe::command(&lab, &["run", "pipeline.yaml", "--verify"]), "").unwrap();
        assert_eq!(end.code, Some(0), "VLMDIFF_SEED={number} {damage:?}: {}", end.stderr);
        assert_eq!(lab.contents(".vlmdiff"), right, "VLMDIFF_SEED={number} {damage:?}");
    }
}

#[test]
fn damage_to_a_training_never_changes_weights() {
    damages_of_a_training(given("VLMDIFF_SEED").unwrap_or(1), 4);
}

/// Runs with `make soak`.
#[test]
#[ignore = "takes many minutes"]
fn many_damages_to_a_training_never_change_weights() {
    damages_of_a_training(given("VLMDIFF_SEED").unwrap_or_else(|| rand::random::<u32>().into()), 100);
}
