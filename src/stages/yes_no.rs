//! Answers to a yes/no question -> scores.

use std::sync::Arc;

use arrow::{
    array::{Array, AsArray, BooleanArray, Float32Array, StringArray},
    datatypes::{DataType, Float32Type, SchemaRef},
};
use garde::Validate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    engine::{
        Result,
        stage::{Column, Context, Misfit, Open, Operator, Output, Port, Ports, Rows, Schemas, Sink, Stage},
    },
    tables::{
        captions::{self, CAPTION, YES_PROBABILITY, caption_column},
        column::missing,
    },
};

/// Reads the answers of a vision-language model to the question whether there is a defect (`caption` with `prompt:
/// yes-no`) as verdicts and scores, which `evaluate` takes in place of anomaly maps.
///
/// An answer that begins with yes or no says so. Of any other, each word such as defect or scratch counts, which is denied by a
/// negation among the five words before it or by `-free` after it: yes if one is not denied, no if all are, and no verdict if
/// there is none. In `not defect-free` the defect is not denied.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields)]
#[schemars(extend("examples" = [{}]))]
pub struct YesNo {
    /// The score of an image.
    #[garde(skip)]
    #[serde(default)]
    pub score: Score,
}

/// The score of an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Score {
    /// The probability that the first token of the answer says yes, among those that say yes or no.
    #[default]
    Probability,
    /// 1 for yes, 0 for no, and 0.5 for an answer that is neither.
    Answer,
}

/// The port of answers.
const ANSWERS: &str = "answers";

/// Words that name a defect.
const DEFECTS: [&str; 18] = [
    "defect",
    "defects",
    "defective",
    "scratch",
    "scratches",
    "crack",
    "cracks",
    "cracked",
    "dent",
    "dents",
    "damage",
    "damaged",
    "flaw",
    "flaws",
    "anomaly",
    "anomalies",
    "broken",
    "hole",
];
/// Words that negate what follows.
const NEGATIONS: [&str; 7] = ["no", "not", "without", "none", "never", "free", "cannot"];
/// The number of words before a defect among which a negation counts. A word that ends in [`FREE`] is negated by the word before
/// it alone, as other negations near it are as a rule those of other words.
const NEAR: usize = 5;
/// The end of a word that denies what it begins with.
const FREE: &str = "free";

/// Returns the verdict of an answer: true if there is a defect, `None` if it does not say.
fn verdict(answer: &str) -> Option<bool> {
    let lower = answer.to_lowercase().replace('’', "'").replace("n't", " not").replace("-free", FREE);
    let words: Vec<&str> = lower.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect();
    match words.first() {
        Some(&"yes") => return Some(true),
        Some(&"no") => return Some(false),
        _ => {}
    }
    let is_negated =
        |at: usize, near: usize| words[at.saturating_sub(near)..at].iter().any(|word| NEGATIONS.contains(word));
    let is_defect = |(at, word): (usize, &&str)| match word.strip_suffix(FREE) {
        Some(word) => DEFECTS.contains(&word).then(|| is_negated(at, 1)),
        None => DEFECTS.contains(word).then(|| !is_negated(at, NEAR)),
    };
    words.iter().enumerate().filter_map(is_defect).reduce(|a, b| a || b)
}

impl Stage for YesNo {
    fn revision(&self) -> u32 {
        2
    }

    fn ports(&self) -> Ports {
        let mut columns = vec![caption_column()];
        if self.score == Score::Probability {
            columns.push(Column::new(YES_PROBABILITY, DataType::Float32));
        }
        Ports::Named(vec![Port::rows(ANSWERS, columns)])
    }

    fn makes(&self) -> Output {
        Output::RowPerRow
    }

    fn is_quick(&self) -> bool {
        true
    }

    fn output(&self, _: &Schemas) -> Result<SchemaRef, Misfit> {
        Ok(captions::verdict_schema())
    }
}

impl Open for YesNo {
    fn open(self, _: &Context) -> Result<Box<dyn Operator>> {
        Ok(Box::new(self))
    }
}

impl Operator for YesNo {
    fn run(&mut self, rows: &mut Rows, out: &mut Sink<'_>) -> Result<()> {
        while let Some(batch) = rows.next(1024)? {
            let answers = batch.column(ANSWERS, CAPTION)?.as_string::<i32>();
            let verdicts: Vec<Option<bool>> =
                answers.iter().map(|answer| verdict(answer.unwrap_or_default())).collect();
            let scores: Float32Array = match self.score {
                Score::Answer => verdicts.iter().map(|verdict| Some(verdict.map_or(0.5, f32::from))).collect(),
                Score::Probability => {
                    let given = batch.column(ANSWERS, YES_PROBABILITY)?.as_primitive::<Float32Type>();
                    if let Some(row) = (0..given.len()).find(|row| given.is_null(*row)) {
                        return Err(missing(&batch.ids[row], ANSWERS, YES_PROBABILITY));
                    }
                    given.clone()
                }
            };
            for (id, _) in batch.ids.iter().zip(&verdicts).filter(|(_, verdict)| verdict.is_none()) {
                out.note("the answer says neither yes nor no", id);
            }
            let answers = StringArray::from_iter_values(answers.iter().map(Option::unwrap_or_default));
            out.write_rows(&batch, vec![Arc::new(scores), Arc::new(BooleanArray::from(verdicts)), Arc::new(answers)])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_by_its_first_word_or_by_the_defects_that_it_names() {
        for yes in [
            "Yes.",
            "yes",
            " YES, there is a crack",
            "There is a scratch on the lid.",
            "It is cracked, but not dented.",
            "The part is not defect-free.",
            "It is scratch-free, but cracked.",
        ] {
            assert_eq!(verdict(yes), Some(true), "{yes}");
        }
        for no in [
            "No.",
            "no, it is fine",
            "There are no visible defects.",
            "The nut doesn't show any damage.",
            "Free of scratches",
            "The part appears to be defect-free.",
            "There are no cracks, and the lid is scratch-free.",
            "The nut isn’t damaged.",
        ] {
            assert_eq!(verdict(no), Some(false), "{no}");
        }
        for neither in ["", "A metal nut on a table.", "Nobody knows."] {
            assert_eq!(verdict(neither), None, "{neither}");
        }
    }
}
