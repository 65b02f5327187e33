//! Verdicts by class: alarms, and the promised beside the realised rate of false alarms.

use std::collections::{BTreeMap, HashMap};

use arrow::{
    array::{Array, AsArray},
    compute::cast,
    datatypes::DataType,
};
use minijinja::{Value, context};

use super::{charts, data::Source};
use crate::{
    engine::{Result, store::Manifest},
    tables::{
        Role,
        column::{column, numbers, text},
        decisions::{ANOMALOUS, CLASS, MODEL, RATE, THRESHOLD},
        images::{LABEL, id_column},
    },
};

/// The verdicts on the images of a class.
#[derive(Debug, Default, PartialEq)]
struct Class {
    rate: Option<f64>,
    threshold: Option<f64>,
    images: usize,
    alarms: usize,
    /// Images without a verdict.
    undecided: usize,
    good: Share,
    defects: Share,
}

/// The alarms among images whose label is known.
#[derive(Debug, Default, PartialEq)]
struct Share {
    alarms: usize,
    of: usize,
}

impl Share {
    fn add(&mut self, alarm: bool) {
        self.alarms += usize::from(alarm);
        self.of += 1;
    }

    /// Returns it in words; `None` if no image was counted.
    fn text(&self) -> Option<String> {
        let share = charts::percent(Some(self.alarms as f64 / self.of as f64));
        (self.of > 0).then(|| format!("{} of {} ({share} %)", self.alarms, self.of))
    }
}

/// Returns a section for each table of decisions: its name, and a row for each class with its alarms, the promised rate of
/// false alarms and the realised one, in the words of the report.
pub fn sections(source: &Source) -> Result<Vec<Value>> {
    source.of_role(Role::Decisions).map(|table| section(source, table)).collect()
}

fn section(source: &Source, table: &Manifest) -> Result<Value> {
    let labels = match source.table(Role::Images, &[Some(table)]) {
        Some(images) => labels(source, images)?,
        None => HashMap::new(),
    };
    let rows = source.rows(table)?;
    let id = id_column(&*table.schema()?).map(str::to_owned).unwrap_or_default();
    let (ids, names) = (text(&rows, &id)?, text(&rows, CLASS)?);
    let verdicts = column(&rows, ANOMALOUS)?.as_boolean();
    // A table that a query made may lack the promised rate.
    let rates = rows.column_by_name(RATE).map(|_| numbers(&rows, RATE)).transpose()?;
    let thresholds = numbers(&rows, THRESHOLD)?;
    let mut classes: BTreeMap<&str, Class> = BTreeMap::new();
    for row in 0..rows.num_rows() {
        let class = classes.entry(names.value(row)).or_default();
        class.images += 1;
        class.rate = rates.as_ref().and_then(|rates| rates[row]);
        class.threshold = thresholds[row];
        if verdicts.is_null(row) {
            class.undecided += 1;
            continue;
        }
        let alarm = verdicts.value(row);
        class.alarms += usize::from(alarm);
        match labels.get(ids.value(row)) {
            Some(true) => class.defects.add(alarm),
            Some(false) => class.good.add(alarm),
            None => {}
        }
    }
    // All rows of a version have the same. A table that a query made may lack it.
    let models = rows.column_by_name(MODEL).and_then(|models| models.as_string_opt::<i32>());
    let model = models.and_then(|models| models.iter().flatten().next());
    let row = |(name, class): (&&str, &Class)| {
        context! {
            class => *name,
            images => class.images,
            alarms => class.alarms,
            undecided => class.undecided,
            threshold => class.threshold.map(charts::short),
            promised => class.rate.map(|rate| charts::short(rate * 100.)),
            realised => class.good.text(),
            found => class.defects.text(),
        }
    };
    let rows: Vec<Value> = classes.iter().map(row).collect();
    Ok(context! { table => table.variant.name(&table.table), model, rows })
}

/// Returns the labels of images that have one, by id.
fn labels(source: &Source, images: &Manifest) -> Result<HashMap<String, bool>> {
    let (ids, labels) = source.by_id(images, LABEL)?;
    let labels = cast(&labels, &DataType::Boolean)?;
    Ok(ids.into_iter().zip(labels.as_boolean()).filter_map(|(id, label)| Some((id, label?))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn share_is_told_with_its_counts() {
        let mut share = Share::default();
        assert_eq!(share.text(), None);
        [true, false, false, false].into_iter().for_each(|alarm| share.add(alarm));
        assert_eq!(share.text().unwrap(), "1 of 4 (25.0 %)");
    }
}
