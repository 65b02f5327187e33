//! One step of a sequence: some edits, then a run of some kind or an accident, and a comparison of everything.

use std::{
    collections::BTreeSet,
    fs,
    process::{Child, Command, Stdio},
    time::Duration,
};

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

use super::{
    damage,
    edits::{self, below, one},
    observe::{self, Computed, Ended, end_of, ended},
    pipeline::{Instance, Makes, Pipeline, Stage},
    world::{Allowed, Attempt, World},
};

/// Makes a step; `log` is called with each action before it is done.
pub(super) fn step(world: &mut World, random: &mut ChaCha8Rng, log: &mut dyn FnMut(String)) -> Result<(), String> {
    for _ in 0..one(random, &[0, 1, 1, 1, 2, 3]) {
        let folder = world.folder();
        log(match random.random_range(0..5) {
            0..3 => edits::edit_sources(&mut world.sources, &folder, random),
            _ => {
                let which = random.random_range(0..world.pipelines.len());
                edits::edit_pipeline(&mut world.pipelines[which], random)
            }
        });
    }
    world.write_pipelines();
    match random.random_range(0..100) {
        0..62 => run(world, random, log),
        62..72 => stopped(world, random, log),
        72..77 => full_disk(world, random, log),
        77..85 => together(world, random, log),
        85..93 => clean_up(world, random, log),
        93..97 if super::given("VLMDIFF_DAMAGE") != Some(0) => damaged(world, random, log),
        97 => refused(world, random, log),
        _ => nothing_changed(world, random, log),
    }
}

fn words(attempt: &Attempt) -> Vec<&str> {
    attempt.arguments.iter().map(String::as_str).collect()
}

/// Returns an attempt with random options.
fn random_attempt(world: &World, random: &mut ChaCha8Rng) -> Attempt {
    let mut pipeline = one(random, &world.pipelines);
    let mut arguments: Vec<String> = Vec::new();
    let percent = |random: &mut ChaCha8Rng, percent: u64| below(random, 100) < percent;
    if percent(random, 15) {
        arguments.extend(set(&mut pipeline, random));
    }
    let only = if percent(random, 25) { only(&pipeline, random) } else { None };
    arguments.extend(only.iter().flat_map(|(axis, value)| ["--only".to_owned(), format!("{axis}={value}")]));
    let fits = |instance: &Instance| match &only {
        None => true,
        Some((axis, value)) => instance.variant.iter().all(|(name, other)| name != axis || other == value),
    };
    let instances = pipeline.instances();
    // A table can be named only if it exists in the chosen combinations.
    let here: Vec<&Instance> = instances.iter().filter(|instance| fits(instance)).collect();
    let named = one(random, &here).table.name.clone();
    let which = below(random, 8);
    match which {
        0 => arguments.extend(["--target".to_owned(), named.clone()]),
        1 => arguments.extend(["--until".to_owned(), named.clone()]),
        _ => {}
    }
    let mut chosen: BTreeSet<usize> = BTreeSet::new();
    for (at, instance) in instances.iter().enumerate().rev().filter(|(_, instance)| fits(instance)) {
        let is_named = instance.table.name == named;
        let is_below = |other: &&Instance| fits(other) && other.table.name == named;
        let is_chosen = match which {
            0 => is_named,
            1 => instances[at..].iter().any(|other| is_below(&other)),
            _ => true,
        };
        if is_chosen || chosen.contains(&at) {
            chosen.insert(at);
            chosen.extend(&instance.inputs);
        }
    }
    let mut attempt = world.attempt(pipeline, &|at, _| chosen.contains(&at));
    if percent(random, 12) {
        let table = one(random, &here).table.name.clone();
        arguments.extend(["--force".to_owned(), table.clone()]);
        let is_called = |instance: &&Instance| instance.table.name == table;
        attempt.forced = instances.iter().filter(is_called).map(Instance::name).collect();
    }
    attempt.selection.clone_from(&arguments);
    if percent(random, 25) {
        arguments.extend(["--task-rows".to_owned(), one(random, &["1", "2", "3"]).to_owned()]);
    }
    if percent(random, 12) {
        arguments.push("--verify".into());
    }
    attempt.arguments.extend(arguments);
    attempt
}

/// Returns the arguments that set a parameter of a table which no sweep sets.
fn set(pipeline: &mut Pipeline, random: &mut ChaCha8Rng) -> Vec<String> {
    let swept: Vec<String> = pipeline.sweep.iter().map(|axis| axis.table.clone()).collect();
    let free = pipeline.tables.iter_mut().filter(|table| !swept.contains(&table.name));
    let mut may: Vec<_> =
        free.filter(|table| matches!(table.stage, Stage::Caption { .. } | Stage::Ingest { .. })).collect();
    if may.is_empty() {
        return Vec::new();
    }
    let at = random.random_range(0..may.len());
    let table = &mut may[at];
    let set = match &mut table.stage {
        Stage::Ingest { size } => {
            *size = 24;
            format!("{}.size=24", table.name)
        }
        Stage::Caption { default } => {
            *default = "words".into();
            format!("{}.default=words", table.name)
        }
        _ => return Vec::new(),
    };
    vec!["--set".into(), set]
}

/// Returns a value of an axis.
fn only(pipeline: &Pipeline, random: &mut ChaCha8Rng) -> Option<(String, String)> {
    let axis = (!pipeline.sweep.is_empty()).then(|| one(random, &pipeline.sweep))?;
    let (name, value) = one(random, &axis.values).setting()?;
    Some((name.to_owned(), value))
}

/// Makes a run without accidents.
fn run(world: &mut World, random: &mut ChaCha8Rng, log: &mut dyn FnMut(String)) -> Result<(), String> {
    let mut attempt = random_attempt(world, random);
    attempt.is_planned = below(random, 5) == 0;
    if below(random, 8) == 0 {
        let tag = one(random, &["first", "second"]).to_owned();
        attempt.arguments.extend(["--tag".to_owned(), tag.clone()]);
        attempt.tag = Some(tag);
    }
    whole_run(world, &attempt, log)?;
    if below(random, 4) == 0 { world.compare_tags() } else { Ok(()) }
}

/// Runs to the end and compares everything.
pub(super) fn whole_run(world: &mut World, attempt: &Attempt, log: &mut dyn FnMut(String)) -> Result<(), String> {
    let allowed = run_to_end(world, attempt, log)?;
    world.compare(&allowed)
}

/// Runs to the end. Returns the contents that tables may then have.
fn run_to_end(world: &mut World, attempt: &Attempt, log: &mut dyn FnMut(String)) -> Result<Allowed, String> {
    log(format!("vlmdiff {}", attempt.arguments.join(" ")));
    let planned = if attempt.is_planned { plan(world, attempt)? } else { Vec::new() };
    let before = observe::logs(&world.lab);
    let end = ended(&mut observe::command(&world.lab, &words(attempt)), "")?;
    ends_rightly(attempt, &end)?;
    let after = observe::logs(&world.lab);
    let computed = observe::computed(&world.lab, after.difference(&before));
    world.check_computed(attempt, &computed)?;
    planned.iter().try_for_each(|table| keeps_promise(table, attempt, &computed))?;
    let allowed = world.allowed(&[attempt], true);
    world.learn(attempt, true);
    if attempt.stops.is_some() {
        // A run that failed gets no tag.
        world.runs.last_mut().unwrap().tag = None;
    }
    Ok(allowed)
}

/// Returns the plan of a run, a JSON object for each table.
fn plan(world: &World, attempt: &Attempt) -> Result<Vec<Value>, String> {
    let file = attempt.pipeline.file();
    let selection = attempt.selection.iter().map(String::as_str);
    let arguments: Vec<&str> = ["plan", &file, "--json"].into_iter().chain(selection).collect();
    let end = ended(&mut observe::command(&world.lab, &arguments), "")?;
    match (end.code, &attempt.stops) {
        (Some(0), _) => end.stdout.lines().map(|line| serde_json::from_str(line).map_err(|e| e.to_string())).collect(),
        (_, Some(_)) => Ok(Vec::new()),
        (_, None) => Err(format!("the plan of a run that can be made fails: {}", end.stderr)),
    }
}

/// Compares a table's plan with the run. A fresh table stays as it is. A stale table has as many rows computed as
/// the plan says, or fewer if it says "at most".
fn keeps_promise(planned: &Value, attempt: &Attempt, computed: &Computed) -> Result<(), String> {
    let at = attempt.tables.iter().position(|(instance, _)| planned["table"] == instance.name().as_str());
    let Some(at) = at else { return Ok(()) };
    let (instance, made) = &attempt.tables[at];
    // Rows that an equal table above computes need not be computed again.
    let is_twice = attempt.tables[..at].iter().any(|(_, above)| above.keys.iter().any(|key| made.keys.contains(key)));
    let rows = computed.get(&instance.name()).copied().flatten();
    let is_right = match planned["state"].as_str() {
        Some("fresh") => rows.is_none(),
        Some("stale") if made.stage.makes() == Makes::RowPerRow => {
            let (rows, stale) = (rows.unwrap_or(0), planned["stale"].as_u64().unwrap_or(0));
            let may_be_fewer = planned["at_most"] == true || is_twice;
            rows <= stale && (may_be_fewer || rows + made.failed as u64 >= stale)
        }
        _ => true,
    };
    if is_right { Ok(()) } else { Err(format!("the plan says {planned}, and the run computed {rows:?} rows")) }
}

/// Checks the exit code of an undisturbed run.
fn ends_rightly(attempt: &Attempt, end: &Ended) -> Result<(), String> {
    let has_failed = attempt.tables.iter().any(|(_, made)| made.failed > 0);
    let right: &[i32] = match (&attempt.stops, has_failed) {
        (Some(_), _) => &[1, 2],
        (None, true) => &[3],
        (None, false) => &[0],
    };
    if end.code.is_some_and(|code| right.contains(&code)) {
        return Ok(());
    }
    let at = attempt.stops.as_ref().map(|(instance, _)| instance.name());
    Err(format!("the run ended with {:?}, not {right:?} (it has to stop at {at:?}): {}", end.code, end.stderr))
}

fn spawn(command: &mut Command) -> Child {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Makes a run that is killed or asked to end.
fn stopped(world: &mut World, random: &mut ChaCha8Rng, log: &mut dyn FnMut(String)) -> Result<(), String> {
    let attempt = random_attempt(world, random);
    let moment = Duration::from_millis(below(random, 90));
    let signal = one(random, &["KILL", "TERM", "KILL"]);
    log(format!("vlmdiff {}, and {signal} after {moment:?}", attempt.arguments.join(" ")));
    let child = spawn(&mut observe::command(&world.lab, &words(&attempt)));
    std::thread::sleep(moment);
    Command::new("kill").args([&format!("-{signal}"), &child.id().to_string()]).stderr(Stdio::null()).status().unwrap();
    let end = end_of(child, "the stopped run")?;
    let disturbed = [None, Some(130)].contains(&end.code);
    if !disturbed {
        ends_rightly(&attempt, &end)?;
    }
    let allowed = world.allowed(&[&attempt], false);
    world.learn(&attempt, false);
    world.compare(&allowed)
}

/// Makes a run that may write no file larger than a few KiB.
fn full_disk(world: &mut World, random: &mut ChaCha8Rng, log: &mut dyn FnMut(String)) -> Result<(), String> {
    let attempt = random_attempt(world, random);
    let most = one(random, &[1, 2, 3, 4, 6, 8]);
    log(format!("vlmdiff {} where a file has {most} KiB at most", attempt.arguments.join(" ")));
    let like = observe::command(&world.lab, &[]);
    let mut shell = Command::new("bash");
    // The signal is ignored, so that writing fails as on a full disk.
    let script = format!("trap '' XFSZ; ulimit -f {most}; exec \"$0\" \"$@\"");
    shell.args(["-c", &script, env!("CARGO_BIN_EXE_vlmdiff")]).args(&attempt.arguments).current_dir(world.folder());
    like.get_envs().for_each(|(name, value)| {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    });
    ended(&mut shell, "")?;
    let allowed = world.allowed(&[&attempt], false);
    world.learn(&attempt, false);
    world.compare(&allowed)
}

/// Makes two to four runs at once, sometimes with a clean-up beside them.
fn together(world: &mut World, random: &mut ChaCha8Rng, log: &mut dyn FnMut(String)) -> Result<(), String> {
    let first = random_attempt(world, random);
    let is_same = below(random, 2) == 0;
    let count = random.random_range(1..4);
    let others: Vec<Attempt> = (0..count).map(|_| random_attempt(world, random)).collect();
    let attempts: Vec<&Attempt> =
        if is_same { vec![&first; count + 1] } else { std::iter::once(&first).chain(&others).collect() };
    let cleans = below(random, 4) == 0;
    for attempt in &attempts {
        log(format!("at once: vlmdiff {}{}", attempt.arguments.join(" "), if cleans { " beside gc" } else { "" }));
    }
    let children: Vec<Child> = attempts.iter().map(|a| spawn(&mut observe::command(&world.lab, &words(a)))).collect();
    if cleans && world.lab.path(".vlmdiff").is_dir() {
        std::thread::sleep(Duration::from_millis(below(random, 60)));
        let end = ended(&mut observe::command(&world.lab, &["gc", "--keep", "0"]), "")?;
        if end.code != Some(0) && !(world.tags_may_be_lost && end.stderr.contains("tags/")) {
            return Err(format!("gc beside runs failed: {}", end.stderr));
        }
    }
    let mut ends = Vec::new();
    for child in children {
        ends.push(end_of(child, "one of several runs")?);
    }
    for (attempt, end) in attempts.iter().zip(&ends) {
        ends_rightly(attempt, end)?;
    }
    let allowed = world.allowed(&attempts, false);
    attempts.iter().for_each(|attempt| world.learn(attempt, false));
    if cleans {
        // The clean-up may have happened between two versions of a table, of which only the last is seen here.
        world.known.surely.clear();
    }
    world.compare(&allowed)
}

/// Makes a clean-up, which changes no answer.
fn clean_up(world: &mut World, random: &mut ChaCha8Rng, log: &mut dyn FnMut(String)) -> Result<(), String> {
    let keep = one(random, &["0", "1", "2", "10"]);
    log(format!("vlmdiff gc --keep {keep}"));
    if !world.lab.path(".vlmdiff").is_dir() {
        return Ok(());
    }
    let end = ended(&mut observe::command(&world.lab, &["gc", "--keep", keep]), "")?;
    match end.code {
        Some(0) => {}
        // If a tag cannot be read, its run must be kept but is not known, so the clean-up refuses.
        _ if world.tags_may_be_lost && end.stderr.contains("tags/") => return Ok(()),
        _ => return Err(format!("gc failed: {}", end.stderr)),
    }
    world.forget(keep.parse().unwrap());
    world.compare(&world.allowed(&[], true))?;
    world.compare_tags()
}

/// Damages an object of the store. Runs that verify then repair everything that is published, unless something else
/// stops them.
fn damaged(world: &mut World, random: &mut ChaCha8Rng, log: &mut dyn FnMut(String)) -> Result<(), String> {
    let folder = world.folder();
    edits::mend(&mut world.sources, &folder);
    let store = world.lab.path(".vlmdiff");
    let Some(damage) = damage::Damage::random(&store, random) else { return Ok(()) };
    log(format!("{damage:?}"));
    damage.inflict();
    world.tags_may_be_lost = true;
    world.records_may_be_lost = true;
    world.known.surely.clear();
    for pipeline in world.pipelines.clone() {
        let mut attempt = world.attempt(pipeline, &|_, _| true);
        attempt.arguments.push("--verify".into());
        // Tables of the other pipeline may be refused until its own run.
        let allowed = run_to_end(world, &attempt, log)?;
        world.published =
            allowed.into_iter().filter_map(|(place, mut options)| Some((place, options.pop()??))).collect();
    }
    world.compare(&world.allowed(&[], true))
}

/// Makes a run twice. The second finds everything fresh, as its plan says.
fn nothing_changed(world: &mut World, random: &mut ChaCha8Rng, log: &mut dyn FnMut(String)) -> Result<(), String> {
    let attempt = world.attempt(one(random, &world.pipelines), &|_, _| true);
    whole_run(world, &attempt, log)?;
    if attempt.stops.is_some() {
        return Ok(());
    }
    let plan = ended(&mut observe::command(&world.lab, &["plan", &attempt.pipeline.file(), "--json"]), "")?;
    let stale: Vec<&str> = plan.stdout.lines().filter(|line| !line.contains("\"state\":\"fresh\"")).collect();
    if plan.code != Some(0) || !stale.is_empty() {
        return Err(format!("after a run the plan says {stale:?} {}", plan.stderr));
    }
    let before = observe::logs(&world.lab);
    whole_run(world, &attempt, log)?;
    let after = observe::logs(&world.lab);
    let computed = observe::computed(&world.lab, after.difference(&before));
    match computed.iter().find(|(_, rows)| rows.is_some()) {
        Some((table, _)) => Err(format!("nothing has changed, and {table} was published again")),
        None => Ok(()),
    }
}

/// Checks that a row-by-row query is refused if its result for a row depends on other rows, because the result would
/// depend on the boundaries of tasks.
fn refused(world: &mut World, random: &mut ChaCha8Rng, log: &mut dyn FnMut(String)) -> Result<(), String> {
    let query = one(
        random,
        &[
            // `id` is the id of `l` and an ordinary column of `r`.
            "select l.id, r.n from l left join r on l.id = r.id",
            "select l.id, r.n from l join r on l.n = r.n",
            "select l.id, r.n from l cross join r",
            "select l.id, sum(l.n) over () as n from l",
            "select l.id, l.n from l where l.n > (select avg(n) from r)",
            "select l.id, (select max(r.n) from r where r.id < l.id) as n from l",
            "select id, n from l union all select key as id, n from r",
            "select id, n from l order by n limit 2",
            "select distinct id, n from l",
        ],
    );
    log(format!("refuses {query}"));
    let text = format!(
        "name: refused\ntables:\n  a: {{ stage: read, with: {{ path: c.parquet, id: id }} }}\n  \
         keys: {{ stage: sql, from: [a], with: {{ query: \"select concat('k', id) as key, id, n from a\", makes: rows }} }}\n  \
         n: {{ stage: sql, from: {{ l: a, r: keys }}, with: {{ query: \"{query}\", makes: row_per_row }} }}\n"
    );
    world.lab.write("refused.yaml", &text);
    let end = ended(&mut observe::command(&world.lab, &["run", "refused.yaml", "--quiet"]), "")?;
    if end.code != Some(2) {
        return Err(format!("a query that looks at other rows ends with {:?}: {}", end.code, end.stderr));
    }
    world.compare(&world.allowed(&[], true))
}

/// Returns the files below a folder, sorted.
pub(super) fn files_below(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(files_below(&path)) } else { files.push(path) }
    }
    files.sort();
    files
}
