//! The parameters of a statement: `?` one after another, or `$1`, `$2` and so on.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
};

use arrow::{
    array::RecordBatch,
    datatypes::{DataType, Field, Schema},
};
use datafusion::{
    common::{ScalarValue, tree_node::TreeNodeRecursion},
    error::DataFusionError,
    logical_expr::{Expr, LogicalPlan},
    sql::sqlparser::tokenizer::Token,
};

use super::{
    split::{offset, tokens},
    wrong::query_error,
};
use crate::engine::{Error, Result};

/// The maximum number of parameters of a statement.
const MOST: usize = 1000;

const FORMS: &str = "parameters are `?` one after another, or `$1`, `$2` and so on";

/// Writes `$1`, `$2` and so on in place of each `?`. A text that is no SQL is left to the parser, which has a better message.
pub(super) fn numbered(sql: &str) -> Result<Cow<'_, str>> {
    let tokens = tokens(sql).unwrap_or_default();
    let (mut marks, mut numbers) = (Vec::new(), 0);
    for token in &tokens {
        match &token.token {
            Token::Placeholder(name) if name == "?" => marks.push(token.span.start),
            Token::Placeholder(_) => numbers += 1,
            _ => {}
        }
    }
    if marks.is_empty() {
        return Ok(Cow::Borrowed(sql));
    }
    if numbers > 0 || marks.len() > MOST {
        return Err(Error::Input(format!("{FORMS}, at most {MOST} and not both forms in one statement")));
    }
    let (mut text, mut rest) = (String::new(), 0);
    for (number, mark) in (1..).zip(marks) {
        let at = offset(sql, mark);
        text += &format!("{}${number}", &sql[rest..at]);
        rest = at + 1;
    }
    Ok(Cow::Owned(text + &sql[rest..]))
}

/// Returns the parameters of a plan in their order. One whose type does not follow from where it stands is text.
pub(super) fn schema(plan: &LogicalPlan) -> Result<Schema> {
    let mut types = BTreeMap::new();
    let counts = counts(plan).map_err(query_error)?;
    for (name, of) in plan.get_parameter_types().map_err(query_error)? {
        let of = of.or_else(|| counts.contains(&name).then_some(DataType::Int64));
        let number = name.trim_start_matches('$').parse().ok().filter(|number| (1..=MOST).contains(number));
        let number: usize =
            number.ok_or_else(|| Error::Input(format!("`{name}` is no parameter; {FORMS}, at most {MOST}")))?;
        types.insert(number, of);
    }
    let last = types.keys().last().copied().unwrap_or_default();
    let field = |number| {
        let of = types.get(&number).cloned().flatten().unwrap_or(DataType::Utf8);
        Field::new(format!("${number}"), of, true)
    };
    Ok(Schema::new((1..=last).map(field).collect::<Vec<_>>()))
}

/// Returns the names of the parameters of `limit` and `offset`, whose type DataFusion does not tell.
fn counts(plan: &LogicalPlan) -> Result<BTreeSet<String>, DataFusionError> {
    let mut names = BTreeSet::new();
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::Limit(limit) = node {
            names.extend([&limit.skip, &limit.fetch].into_iter().flatten().filter_map(|count| match count.as_ref() {
                Expr::Placeholder(parameter) => Some(parameter.id.clone()),
                _ => None,
            }));
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(names)
}

/// Puts the values of a row in place of a plan's parameters.
pub(super) fn bind(plan: LogicalPlan, row: &RecordBatch) -> Result<LogicalPlan> {
    let expected = schema(&plan)?.fields().len();
    if (row.num_rows(), row.num_columns()) != (1, expected) {
        return Err(Error::Input(format!(
            "{} × {} values are given; the statement takes one row of {expected}",
            row.num_rows(),
            row.num_columns()
        )));
    }
    let values = row.columns().iter().map(|column| ScalarValue::try_from_array(column, 0).map(chosen));
    let values = values.collect::<Result<Vec<_>, DataFusionError>>();
    values.and_then(|values| plan.with_param_values(values)).map_err(query_error)
}

/// Returns the value that a union holds. Some clients send each parameter as a union of all types.
fn chosen(value: ScalarValue) -> ScalarValue {
    match value {
        ScalarValue::Union(Some((_, value)), ..) => *value,
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn question_marks_are_numbered_outside_of_texts() {
        let sql = "select '?', ?, \"a?\" -- ?\n from t where ä = ? and b in (?, '')";
        let expected = "select '?', $1, \"a?\" -- ?\n from t where ä = $2 and b in ($3, '')";
        assert_eq!(numbered(sql).unwrap(), expected);
        for same in ["select $2, $1", "select 'open ?", "select 1"] {
            assert_eq!(numbered(same).unwrap(), same);
        }
        assert!(numbered("select ?, $1").unwrap_err().to_string().ends_with("not both forms in one statement"));
    }
}
