//! The parameters of captioners with a model.

use garde::Validate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::super::prompts::Prompt;
use crate::{
    engine::stage::Misfit,
    models::language::{
        choose::Sampling,
        weights::{Arithmetic, Computing},
    },
};

/// The parameters that not every family takes. All other parameters of [`Asking`] belong to every family.
const SPECIAL: [&str; 5] = ["max_tiles", "beams", "temperature", "top_p", "seed"];

/// Returns true if a family that takes the special parameters `taken` has the parameter `name`.
pub(super) fn is_taken(name: &str, taken: &[&str]) -> bool {
    !SPECIAL.contains(&name) || taken.contains(&name)
}

/// The picture that a model is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Picture {
    /// The photograph as it lies on disk, in its own size.
    #[default]
    File,
    /// The column `pixels`, which every image has, also a generated one.
    Pixels,
}

/// The type of the model's numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Precision {
    /// bfloat16, in which weights are published.
    #[default]
    Bf16,
    /// float32: twice the memory, and the last digits.
    F32,
    /// The language model's matrices in int8, all else in bfloat16: half of the memory. On a CPU it writes more slowly
    /// than bfloat16.
    Int8,
}

/// The parameters of a captioner with a model. Those that are absent are as VLMDiff's authors asked.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields)]
pub(super) struct Asking {
    /// The model's weights, `config.json` and tokenizer: a folder in Hugging Face layout, or a name or hub id. Absent: the
    /// checkpoint of the model's name, which `vlmdiff models fetch` brings. Identified by content, not by place.
    #[garde(inner(length(min = 1)))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<String>,
    /// The question: `pd`, `coco`, `pa` (the authors' code), `paper`, `paper-coco`, `yes-no`, or any text of several
    /// words, in which `{class}` stands for the image's class. Absent: `pd`.
    #[garde(skip)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<Prompt>,
    /// Asks the model for at most this number of words. CLIP reads the first 75 tokens of a caption, about 55 words.
    #[garde(inner(range(min = 1)))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_words: Option<u32>,
    /// The picture that the model is shown.
    #[garde(skip)]
    #[serde(default)]
    pub image: Picture,
    /// The largest number of tiles into which a photograph is cut, without the view of the whole. Absent: 12.
    #[garde(inner(range(min = 1, max = 64)))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tiles: Option<u32>,
    /// The most tokens of a caption. Absent: 1024 for InternVL, 512 for DeepSeek-VL, 30 for BLIP-2.
    #[garde(inner(range(min = 1, max = 32_768)))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_new_tokens: Option<u32>,
    /// The number of texts that beam search follows. Absent: 5.
    #[garde(inner(range(min = 1, max = 64)))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beams: Option<u32>,
    /// Draws each token at random, with logits divided by this number. Absent: the likeliest token.
    #[garde(inner(range(min = 0.01, max = 100.)))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// Draws from the likeliest tokens that have this probability together. Needs `temperature`.
    #[garde(inner(range(min = 0.01, max = 1.)))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f64>,
    /// The seed of the draws. Needs `temperature`.
    #[garde(skip)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Divides the likelihood of tokens that the caption has already. Absent: 1, which changes nothing.
    #[garde(inner(range(min = 0.1, max = 10.)))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repetition_penalty: Option<f64>,
    /// The type of the model's numbers.
    #[garde(skip)]
    #[serde(default)]
    pub precision: Precision,
}

/// The values of a family for parameters that are absent.
#[derive(Clone, Copy, Debug)]
pub struct Defaults {
    /// The prompt's name.
    pub prompt: &'static str,
    /// The most tokens of a caption.
    pub max_new_tokens: u32,
}

/// The parameters with the family's defaults.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The question.
    pub prompt: Prompt,
    /// The most words that the model is asked for.
    pub max_words: Option<u32>,
    /// The picture that the model is shown.
    pub image: Picture,
    /// The largest number of tiles.
    pub max_tiles: u32,
    /// The most tokens of a caption.
    pub max_new_tokens: usize,
    /// The number of texts that beam search follows.
    pub beams: usize,
    /// The random choice of tokens; `None` takes the likeliest.
    pub sampling: Option<Sampling>,
    /// Divides the likelihood of tokens that the caption has already.
    pub repetition_penalty: f64,
    /// The type of the model's numbers.
    pub arithmetic: Arithmetic,
}

impl Settings {
    /// Returns the question about an image of this class.
    pub(super) fn question(&self, class: &str) -> String {
        self.prompt.text(class, self.max_words)
    }
}

impl Asking {
    /// Returns the question.
    pub(super) fn prompt(&self, defaults: &Defaults) -> Prompt {
        self.prompt.clone().unwrap_or_else(|| Prompt::new(defaults.prompt))
    }

    /// Checks the parameters of a family of models `names` that takes the special parameters `taken`.
    pub(super) fn check(&self, names: &[&str], taken: &[&str]) -> Result<(), Misfit> {
        let given = [
            ("max_tiles", self.max_tiles.is_some()),
            ("beams", self.beams.is_some()),
            ("temperature", self.temperature.is_some()),
            ("top_p", self.top_p.is_some()),
            ("seed", self.seed.is_some()),
        ];
        if let Some((name, _)) = given.iter().find(|(name, given)| *given && !is_taken(name, taken)) {
            return Err(Misfit::parameter(*name, format!("{} takes no such parameter", names.join(", "))));
        }
        let draws = [("top_p", self.top_p.is_some()), ("seed", self.seed.is_some())];
        if let Some((name, _)) = draws.iter().find(|(_, given)| *given && self.temperature.is_none()) {
            let message = "it belongs to draws at random; `temperature: 1` makes them";
            return Err(Misfit::parameter(*name, message));
        }
        self.prompt.as_ref().map_or(Ok(()), |prompt| prompt.check("prompt"))
    }

    /// Returns the parameters with the defaults of a family.
    pub(super) fn settings(&self, defaults: &Defaults) -> Settings {
        let sampling = self.temperature.map(|temperature| Sampling {
            temperature,
            top_p: self.top_p.unwrap_or(1.),
            seed: self.seed.unwrap_or(0),
        });
        let computing = if self.precision == Precision::F32 { Computing::F32 } else { Computing::Bf16 };
        Settings {
            prompt: self.prompt(defaults),
            max_words: self.max_words,
            image: self.image,
            max_tiles: self.max_tiles.unwrap_or(12),
            max_new_tokens: self.max_new_tokens.unwrap_or(defaults.max_new_tokens) as usize,
            beams: self.beams.unwrap_or(5) as usize,
            sampling,
            repetition_penalty: self.repetition_penalty.unwrap_or(1.),
            arithmetic: Arithmetic { computing, int8: self.precision == Precision::Int8 },
        }
    }
}
