//! The names and shapes of the real configurations.

use super::Case;
use std::collections::BTreeMap;
use tch::nn::VarStore;

/// Compares the variables of a network with a published list, of whose names `own` makes ours, and drops what we have not.
pub(crate) fn manifest(case: &Case, name: &str, vs: &VarStore, own: impl Fn(&str) -> Option<String>) {
    let file = format!("{name}.json.gz");
    if !case.has(&file) {
        return;
    }
    let listed: BTreeMap<String, (Vec<i64>, String)> = case.json(&file);
    let want: BTreeMap<String, Vec<i64>> =
        listed.into_iter().filter_map(|(name, (shape, _))| Some((own(&name)?, shape))).collect();
    let got: BTreeMap<String, Vec<i64>> =
        vs.variables().into_iter().map(|(name, variable)| (name, variable.size())).collect();
    for (name, shape) in &want {
        case.equal(name, &got.get(name), &Some(shape));
    }
    let more: Vec<&String> = got.keys().filter(|name| !want.contains_key(*name)).collect();
    case.equal(name, &more, &Vec::new());
}
