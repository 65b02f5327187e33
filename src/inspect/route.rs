//! The way of new photographs through the tables of a pipeline.

use std::collections::BTreeSet;

use crate::{
    engine::{
        Error, Result, or_none,
        pipeline::{Input, Pipeline, Table},
        stage::Reads,
        suggestion,
    },
    tables::{Role, images::CLASS, tiles},
};

/// The tables of a pipeline that new photographs go through.
#[derive(Debug)]
pub(super) struct Route {
    /// The table of photographs.
    pub(super) images: String,
    /// The tables that read photographs, that of their tiles among them, with the names of the parameters that the
    /// pipeline gives.
    pub(super) readers: Vec<(String, BTreeSet<String>)>,
    /// The table of decisions.
    pub(super) decisions: String,
    /// The table of anomaly maps whose scores are decided on, if it has maps.
    pub(super) maps: Option<String>,
    /// The table of the regions of these maps.
    pub(super) regions: Option<String>,
    /// All tables that are computed for new photographs, in the order of the file.
    pub(super) computed: Vec<String>,
    /// The tables that are taken as they are.
    pub(super) taken: BTreeSet<String>,
    /// Those of them that the decisions follow from.
    pub(super) model: BTreeSet<String>,
    /// True if a stage reads the class of photographs otherwise than to look it up in a table that is taken as it is.
    pub(super) reads_class: bool,
}

/// The stages that look the class of a photograph up in a table that they read whole, or pass it on.
const LOOK_UP: [&str; 3] = ["detect", "decide", "regions"];

impl Route {
    /// Finds the way from the photographs of a pipeline to its decisions, those of the table that is named if there are several,
    /// and to the regions below these.
    pub(super) fn of(pipeline: &Pipeline, named: Option<&str>) -> Result<Self> {
        let one = |what: &str, found: &[&Table], choose: &str| match found {
            [table] => Ok(table.name.clone()),
            [] => Err(Error::Input(format!("the pipeline has no table of {what}; pipelines/inspect.yaml has one"))),
            _ => {
                let names: Vec<&str> = found.iter().map(|table| &*table.name).collect();
                Err(Error::Input(format!("the pipeline has several tables of {what}: {}; {choose}", names.join(", "))))
            }
        };
        let has_role = |table: &&Table, role: Role| Role::of(&table.output).contains(&role);
        let decides = |table: &&Table| has_role(table, Role::Decisions);
        let all: Vec<&Table> = pipeline.tables.iter().filter(decides).collect();
        let decisions = match named {
            Some(name) => chosen(name, &all)?,
            None => one("decisions", &all, "--decisions names one of them, and --only chooses one of a sweep")?,
        };
        // Tables stand below those that they read. A table that is read as a whole, such as a bank, is taken as it is.
        let by_row = |table: &Table| -> Vec<String> {
            table.inputs.iter().filter(|input| input.reads != Reads::Table).map(|input| input.table.clone()).collect()
        };
        let mut needed = BTreeSet::from([decisions.clone()]);
        for table in pipeline.tables.iter().rev() {
            if needed.contains(&table.name) {
                needed.extend(by_row(table));
            }
        }
        let reads = |table: &&Table| needed.contains(&table.name) && table.kind.name == "ingest";
        let readers: Vec<&Table> = pipeline.tables.iter().filter(reads).collect();
        let whole: Vec<&Table> = readers.iter().copied().filter(|table| !tiles::are_in(&table.output)).collect();
        let images = one("photographs above its decisions", &whole, "new photographs can be read into one alone")?;
        let mut computed: Vec<String> = readers.iter().map(|table| table.name.clone()).collect();
        for table in pipeline.tables.iter().filter(|table| needed.contains(&table.name)) {
            let is_moved = |input: &Input| input.reads != Reads::Table && computed.contains(&input.table);
            if table.is_keyed() && table.inputs.iter().any(is_moved) {
                computed.push(table.name.clone());
            }
        }
        let named = |name: &String| pipeline.tables.iter().find(|table| table.name == *name);
        let maps = named(&decisions).map(by_row).unwrap_or_default().into_iter().find(|input| {
            computed.contains(input) && named(input).is_some_and(|table| has_role(&table, Role::AnomalyMaps))
        });
        let finds_regions = |table: &&Table| {
            let is_computed = |input: &Input| input.reads != Reads::Table && computed.contains(&input.table);
            has_role(table, Role::Regions)
                && table.inputs.iter().all(is_computed)
                && maps.as_ref().is_some_and(|maps| table.inputs.iter().any(|input| input.table == *maps))
        };
        let regions = pipeline.tables.iter().find(finds_regions).map(|table| table.name.clone());
        computed.extend(regions.clone());
        let model = named(&decisions).map(|table| table.model.clone()).unwrap_or_default();
        let read = computed.iter().filter_map(named).flat_map(|table| &table.inputs).map(|input| &input.table);
        let taken: BTreeSet<String> = read.chain(&model).filter(|name| !computed.contains(name)).cloned().collect();
        let reads_class = computed.iter().filter_map(named).any(|table| {
            let is_read = |input: &Input| {
                readers.iter().any(|table| table.name == input.table)
                    && input.columns.iter().any(|column| column == CLASS)
            };
            table.inputs.iter().any(is_read) && !LOOK_UP.contains(&table.kind.name)
        });
        let given = |table: &Table| {
            let params = table.stage.params();
            params.as_object().into_iter().flatten().map(|(name, _)| name.clone()).collect()
        };
        let readers = readers.into_iter().map(|table| (table.name.clone(), given(table))).collect();
        Ok(Self { images, readers, decisions, maps, regions, computed, taken, model, reads_class })
    }
}

/// Returns the name of a table of decisions if it is one of all.
fn chosen(name: &str, all: &[&Table]) -> Result<String> {
    let names: Vec<&str> = all.iter().map(|table| &*table.name).collect();
    if names.contains(&name) {
        return Ok(name.to_owned());
    }
    let (found, suggestion) = (or_none(&names), suggestion(name, &names));
    Err(Error::Input(format!("`{name}` is no table of decisions of the pipeline{suggestion}; it has {found}")))
}
