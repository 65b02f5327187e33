//! The page about the photographs that were judged. It needs no script, and nothing from elsewhere.

use std::{collections::BTreeMap, sync::Arc};

use minijinja::{Environment, Value, context, syntax::SyntaxConfig};
use url::form_urlencoded::Serializer;

use super::{
    answer::{Links, Word},
    archive::Kept,
    now::Batch,
    selection::{Selected, Selection, Show, Sort},
    shared::Shared,
};
use crate::{
    engine::{
        Error, Result,
        store::{Run, history},
    },
    report,
    tables::thresholds::{IMAGE, Threshold},
};

const TEMPLATE: &str = include_str!("page.html");
/// The style of the page: that of reports, and what it has beside.
pub(super) const STYLE: &str = concat!(include_str!("../report/look.css"), include_str!("page.css"));
/// The name of the page's template, by whose ending texts are escaped.
const NAME: &str = "page.html";
/// The number of runs that are shown, and of those that are looked at to find them among the server's own.
const RUNS: usize = 6;
const RUNS_SEEN: usize = 128;
/// The longest side of a picture on the page, and of one on a screen of twice as many pixels.
const SIDE: u32 = 480;
/// The seconds between two loads of a page that refreshes itself, at least and at most.
const REFRESH: (u32, u32) = (2, 3600);

/// Returns the templates of the page.
pub(super) fn templates() -> Result<Environment<'static>> {
    let mut templates = Environment::new();
    let prepare = |templates: &mut Environment<'static>| {
        templates.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
        templates.add_template(NAME, TEMPLATE)
    };
    prepare(&mut templates).map_err(wrong)?;
    Ok(templates)
}

/// Returns the page with the photographs of a selection.
pub(super) fn html(shared: &Shared, selection: &Selection) -> Result<String> {
    let selected = selection.of(shared);
    let now = shared.now.look();
    let [judged, alarms, failed] = shared.figures.totals();
    let model = shared.inspector.model();
    let page = context! {
        version => env!("CARGO_PKG_VERSION"),
        pipeline => &shared.pipeline,
        tables => shared.inspector.name(),
        store => &shared.store.url,
        model => model.get(..12).unwrap_or(model),
        since => report::time(shared.started_ms),
        refresh => selection.refresh.map(|seconds| seconds.clamp(REFRESH.0, REFRESH.1)),
        judged,
        alarms,
        failed,
        queue => shared.queue.length(),
        limit => shared.queue.limit(),
        running => now.running,
        batches => now.batches.iter().map(batch).collect::<Vec<_>>(),
        notes => now.notes,
        total => selected.total,
        cards => selected.shown.iter().map(|kept| card(kept)).collect::<Vec<_>>(),
        links => links(selection, &selected),
        thresholds => shared.inspector.thresholds().iter().map(threshold).collect::<Vec<_>>(),
        alarms_by_class => alarms_by_class(&shared.archive.all()),
        verdicts => &shared.own_verdicts,
        runs => runs(shared)?,
    };
    shared.templates.get_template(NAME).and_then(|template| template.render(page)).map_err(wrong)
}
fn wrong(error: minijinja::Error) -> Error {
    Error::Stage(format!("the template: {error:#}"))
}

/// Formats a number with four digits that count.
fn short(number: f64) -> String {
    let before = if number == 0. { 0. } else { number.abs().log10().floor() };
    let decimals = (3. - before).clamp(0., 6.) as usize;
    format!("{number:.decimals$}")
}

/// Formats a share in percent, without decimals that say nothing.
fn percent(share: f64) -> String {
    let text = format!("{:.1}", share * 100.);
    format!("{} %", text.trim_end_matches('0').trim_end_matches('.'))
}

/// Returns the card of a photograph.
fn card(kept: &Kept) -> Value {
    let answer = &kept.answer;
    let Links { verdict, photograph, map, overlay, mask, nearest } = &answer.links;
    let small = |path: &String| format!("{path}?side={SIDE}");
    context! {
        name => answer.name.as_deref().unwrap_or(&answer.judged.image_id),
        class => &answer.judged.class,
        word => match answer.verdict {
            Word::None => "no threshold",
            word => word.name(),
        },
        is_bad => answer.verdict == Word::Anomalous,
        is_open => answer.verdict == Word::None,
        score => answer.judged.score.map(short),
        threshold => answer.judged.threshold.map(short),
        p_value => answer.judged.p_value.map(short),
        regions => answer.judged.regions.as_ref().map(Vec::len),
        width => answer.width,
        height => answer.height,
        at => report::time(answer.judged_ms),
        links => context! { verdict, photograph, map, overlay, mask, nearest },
        nearest => nearest.as_ref().map(small),
        nearest_id => answer.judged.nearest.as_ref().map(|nearest| &nearest.image_id),
        photograph => small(photograph),
        overlay => overlay.as_ref().map(small),
    }
}

fn batch(batch: &Batch) -> Value {
    context! {
        at => report::time(batch.ended_ms),
        images => batch.images,
        anomalous => batch.anomalous,
        failed => batch.failed,
        seconds => format!("{:.2}", batch.seconds),
        error => &batch.error,
    }
}

fn threshold(threshold: &Threshold) -> Value {
    context! {
        class => threshold.class.as_deref().unwrap_or("all classes"),
        of => if threshold.level == IMAGE { "photographs" } else { "pixels" },
        rate => threshold.rate.map(percent),
        confidence => threshold.confidence.map(percent),
        threshold => threshold.threshold.map(short),
        photographs => threshold.photographs.map(|count| count as u64),
        least => threshold.least_rate.map(percent),
    }
}

/// Returns the alarms among the photographs that are kept, by class, beside the rate that was promised.
fn alarms_by_class(all: &[Arc<Kept>]) -> Vec<Value> {
    let mut classes: BTreeMap<&str, (usize, usize, Option<f64>)> = BTreeMap::new();
    for kept in all {
        let (images, alarms, rate) = classes.entry(&kept.answer.judged.class).or_default();
        *images += 1;
        *alarms += usize::from(kept.answer.verdict == Word::Anomalous);
        *rate = rate.or(kept.answer.judged.rate);
    }
    let row = |(class, (images, alarms, rate)): (&str, (usize, usize, Option<f64>))| {
        context! { class, images, alarms, share => percent(alarms as f64 / images as f64), promised => rate.map(percent) }
    };
    classes.into_iter().map(row).collect()
}

/// Returns the links to other selections.
fn links(selection: &Selection, selected: &Selected) -> Value {
    let link = |name: &str, other: Selection, is_shown: bool| context! { name, href => href(&other), is_shown };
    let first = |selection: Selection| Selection { page: None, ..selection };
    let by = |sort: Option<Sort>, name: &str| {
        let other = first(Selection { sort, ..selection.clone() });
        link(name, other, (selection.sort == Some(Sort::Time)) == sort.is_some())
    };
    let shown = selection.show.filter(|show| *show != Show::All);
    let show = |show: Option<Show>, name: &str| {
        let other = first(Selection { show, ..selection.clone() });
        link(name, other, shown == show)
    };
    let class = |class: Option<&str>, name: &str| {
        let other = first(Selection { class: class.map(str::to_owned), ..selection.clone() });
        link(name, other, selection.class.as_deref() == class)
    };
    let turn = |page: usize| {
        let is_there = (1..=selected.pages).contains(&page) && page != selected.page;
        is_there.then(|| href(&Selection { page: Some(page), ..selection.clone() }))
    };
    let refresh = match selection.refresh {
        Some(_) => link("stop", Selection { refresh: None, ..selection.clone() }, false),
        None => link("every 10 s", Selection { refresh: Some(10), ..selection.clone() }, false),
    };
    let several = selected.classes.len() > 1;
    let classes =
        std::iter::once(class(None, "all")).chain(selected.classes.iter().map(|name| class(Some(name), name)));
    context! {
        sort => vec![by(None, "highest score"), by(Some(Sort::Time), "newest")],
        show => vec![show(None, "all"), show(Some(Show::Anomalous), "anomalous"), show(Some(Show::Good), "good")],
        class => classes.filter(|_| several).collect::<Vec<_>>(),
        refresh,
        page => selected.page,
        pages => selected.pages,
        before => turn(selected.page.saturating_sub(1)),
        next => turn(selected.page + 1),
    }
}

/// Returns the address of the page with a selection.
fn href(selection: &Selection) -> String {
    let Selection { sort, show, class, page, refresh } = selection;
    let mut query = Serializer::new(String::new());
    let (sort, show) = (sort.map(Sort::word), show.map(Show::word));
    for (name, value) in [("sort", sort), ("show", show), ("class", class.as_deref())] {
        if let Some(value) = value {
            query.append_pair(name, value);
        }
    }
    for (name, value) in [("page", page.map(|page| page.to_string())), ("refresh", refresh.map(|s| s.to_string()))] {
        if let Some(value) = value {
            query.append_pair(name, &value);
        }
    }
    let query = query.finish();
    if query.is_empty() { "/".to_owned() } else { format!("/?{query}") }
}

/// Returns the last runs in the store that are not the server's own.
fn runs(shared: &Shared) -> Result<Vec<Value>> {
    let runs = history::recent(&shared.store, RUNS_SEEN)?;
    let others = runs.iter().rev().filter(|run| run.pipeline != shared.inspector.name()).take(RUNS);
    let row = |run: &Run| {
        let computed = run.tables.iter().filter(|table| table.computed > 0);
        let computed: Vec<Value> =
            computed.map(|table| context! { name => &table.table, rows => table.computed }).collect();
        context! {
            id => &run.run,
            pipeline => &run.pipeline,
            tags => run.tags.join(", "),
            started => report::time(run.started_ms),
            status => run.status(),
            at => run.tables.last().filter(|table| table.version == 0 && run.seconds.is_none()).map(|t| &t.table),
            is_bad => !["done", "unfinished"].contains(&run.status()),
            seconds => run.seconds.map(|seconds| format!("{seconds:.1}")),
            error => &run.error,
            computed,
        }
    };
    Ok(others.map(row).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_addresses_are_encoded() {
        assert_eq!(href(&Selection::default()), "/");
        let selection = Selection { class: Some("\"><script>&=".into()), page: Some(2), ..Selection::default() };
        assert_eq!(href(&selection), "/?class=%22%3E%3Cscript%3E%26%3D&page=2");
    }

    #[test]
    fn numbers_have_four_digits() {
        assert_eq!(
            [43.38123, 0.0256411, 1234.56, 0., -0.5].map(short),
            ["43.38", "0.02564", "1235", "0.000", "-0.5000"]
        );
    }

    #[test]
    fn shares_have_no_idle_decimals() {
        assert_eq!([0.1, 0.0344, 1., 0.].map(percent), ["10 %", "3.4 %", "100 %", "0 %"]);
    }
}
