//! Prompts: the words with which a language model is asked for a caption, and the conversations around them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::wording::Wording;
use crate::engine::stage::Misfit;

/// The prompts that have a name: the paper's; those of the authors' code, which ask for a length; and a question whose
/// answer is a verdict (paper, section 4.5, which does not print its own).
const NAMED: [(&str, &str); 6] = [
    ("paper", "Describe the main object in detail."),
    ("paper-coco", "Describe the visual features of image in detail."),
    (
        "pd",
        "Describe the visual features of image in detail with a focus on the main object, with around 60 words and maybe \
         4 or 5 sentences.",
    ),
    ("coco", "Describe the visual features of image in detail, with around 60 words and maybe 4 or 5 sentences."),
    (
        "pa",
        "Be a pixel level visual defect inspector, and describe whether there is a defect or not on the main object \
         itself, with around 60 words and maybe 4 or 5 sentences.",
    ),
    (
        "yes-no",
        "Be a pixel level visual defect inspector. Is there a defect on the main object itself? Answer with yes or no.",
    ),
];

/// A prompt: `paper`, `paper-coco`, `pd`, `coco`, `pa` or `yes-no`, or any text of several words, in which `{class}` stands for the
/// image's class. Empty for a model that describes images without being asked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(inline)]
pub struct Prompt(String);

impl Prompt {
    /// Makes a prompt of a name or a text.
    pub fn new(prompt: impl Into<String>) -> Self {
        Self(prompt.into())
    }

    /// Checks that the prompt is a name or a text with known placeholders; the error is at `parameter`.
    pub fn check(&self, parameter: &str) -> Result<(), Misfit> {
        let is_word = !self.0.is_empty() && !self.0.trim().contains(char::is_whitespace);
        if is_word && self.named().is_none() {
            let names: Vec<&str> = NAMED.iter().map(|(name, _)| *name).collect();
            let message = format!(
                "no prompt is called `{}`; there are {}, and any text of several words is a prompt",
                self.0,
                names.join(", ")
            );
            return Err(Misfit::parameter(parameter, message));
        }
        Wording::new(self.0.clone()).check(parameter)
    }

    /// Returns true if the words depend on the image's class.
    pub fn has_class(&self) -> bool {
        self.text("a", None) != self.text("b", None)
    }

    fn named(&self) -> Option<&'static str> {
        NAMED.iter().find(|(name, _)| *name == self.0.trim()).map(|(_, text)| *text)
    }

    /// Returns the words for an image of this class. `max_words` asks for an answer that is not longer.
    pub fn text(&self, class: &str, max_words: Option<u32>) -> String {
        let text = Wording::new(self.named().unwrap_or(&self.0)).fill(class);
        match max_words {
            Some(words) if text.is_empty() => format!("Use at most {words} words."),
            Some(words) => format!("{text} Use at most {words} words."),
            None => text,
        }
    }
}

/// The system's words of InternVL 2.
const INTERNVL2: &str =
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。";
/// The system's words of InternVL 2.5.
const INTERNVL2_5: &str =
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。";
/// The system's words of DeepSeek-VL.
const DEEPSEEK_VL: &str = "You are a helpful language and vision assistant. You are able to understand the visual content that the user \
     provides, and assist the user with a variety of tasks using natural language.";

/// The place of an image in a prompt of InternVL.
pub const IMAGE: &str = "<image>";
/// The place of an image in a prompt of DeepSeek-VL, which the tokenizer knows as one token.
pub const DEEPSEEK_IMAGE: &str = "<image_placeholder>";

/// The words and marks of a conversation around what is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conversation {
    /// InternVL 2 with Qwen2: `Hermes-2` in its `config.json`.
    Hermes2,
    /// InternVL 2 with InternLM2: `internlm2-chat`.
    InternLm2Chat,
    /// InternVL 2.5 and 3: `internvl2_5`.
    InternVl25,
    /// InternVL 2 with Phi-3: `phi3-chat`.
    Phi3Chat,
    /// DeepSeek-VL.
    DeepSeekVl,
    /// None: BLIP-2 continues the prompt itself.
    Plain,
}

impl Conversation {
    /// Returns the conversation of this name, as `template` in a `config.json` of InternVL has it.
    pub fn of_template(name: &str) -> Result<Self, String> {
        let known = [
            ("Hermes-2", Self::Hermes2),
            ("internlm2-chat", Self::InternLm2Chat),
            ("internvl2_5", Self::InternVl25),
            ("phi3-chat", Self::Phi3Chat),
        ];
        let found = known.iter().find(|(known, _)| *known == name).map(|(_, conversation)| *conversation);
        found.ok_or_else(|| {
            let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
            format!("`template` is `{name}`; templates that are known are {}", names.join(", "))
        })
    }

    /// Returns the token with which the model ends its answer; `None` if it ends as its tokenizer's texts do.
    pub fn stop(self) -> Option<&'static str> {
        match self {
            Self::Hermes2 | Self::InternLm2Chat | Self::InternVl25 => Some("<|im_end|>"),
            Self::Phi3Chat => Some("<|end|>"),
            Self::DeepSeekVl => Some("<｜end▁of▁sentence｜>"),
            Self::Plain => None,
        }
    }

    /// Returns the prompt that asks a question about an image, after earlier questions and answers. The image stands where
    /// the question has [`IMAGE`], else before the first question.
    pub fn prompt(self, question: &str, earlier: &[(&str, &str)]) -> String {
        let question = if earlier.is_empty() && self != Self::Plain && !question.contains(self.image()) {
            let between = if self == Self::DeepSeekVl { "" } else { "\n" };
            format!("{}{between}{question}", self.image())
        } else {
            question.to_owned()
        };
        match self {
            Self::Hermes2 | Self::InternLm2Chat => {
                chat(INTERNVL2, ["<|im_start|>", "\n", "<|im_end|>"], &question, earlier)
            }
            Self::InternVl25 => chat(INTERNVL2_5, ["<|im_start|>", "\n", "<|im_end|>\n"], &question, earlier),
            Self::Phi3Chat => chat(INTERNVL2, ["<|", "|>\n", "<|end|>"], &question, earlier),
            Self::DeepSeekVl => {
                let turn = |(question, answer): &(&str, &str)| {
                    format!("User: {question}\n\nAssistant: {answer}<｜end▁of▁sentence｜>")
                };
                let earlier: String = earlier.iter().map(turn).collect();
                format!("{DEEPSEEK_VL}\n\n{earlier}User: {question}\n\nAssistant:")
            }
            Self::Plain => question,
        }
    }

    fn image(self) -> &'static str {
        if self == Self::DeepSeekVl { DEEPSEEK_IMAGE } else { IMAGE }
    }
}

/// Returns a conversation of turns `BEGIN role MIDDLE text END`, up to the begin of the answer.
fn chat(system: &str, [begin, middle, end]: [&str; 3], question: &str, earlier: &[(&str, &str)]) -> String {
    let turn = |role: &str, text: &str| format!("{begin}{role}{middle}{text}{end}");
    let mut prompt = turn("system", system);
    for (question, answer) in earlier {
        prompt += &turn("user", question);
        prompt += &turn("assistant", answer);
    }
    prompt + &turn("user", question) + begin + "assistant" + middle
}

/// Puts InternVL's tokens for images into a prompt: for each [`IMAGE`], in order, `tokens` for each of its tiles. Returns an
/// error if the prompt has not as many places as there are images.
pub fn with_tiles(prompt: &str, tokens: usize, tiles: &[usize]) -> Result<String, String> {
    let pieces: Vec<&str> = prompt.split(IMAGE).collect();
    if pieces.len() != tiles.len() + 1 {
        let (places, images) = (pieces.len() - 1, tiles.len());
        return Err(format!("the prompt has {places} places `{IMAGE}` for {images} images"));
    }
    let mut filled = pieces[0].to_owned();
    for (piece, tiles) in pieces[1..].iter().zip(tiles) {
        filled += "<img>";
        filled += &"<IMG_CONTEXT>".repeat(tokens * tiles);
        filled += "</img>";
        filled += piece;
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompt_is_a_name_or_a_text_with_known_placeholders() {
        let text = |prompt: &str, words| Prompt::new(prompt).text("nut", words);
        assert_eq!(text("paper", None), "Describe the main object in detail.");
        assert_eq!(text("paper", Some(40)), "Describe the main object in detail. Use at most 40 words.");
        assert_eq!(text("Describe the {class}.", None), "Describe the nut.");
        assert!(text("pa", None).starts_with("Be a pixel level visual defect inspector, and describe whether"));
        for good in ["pd", "coco", "paper-coco", "", "Describe the {class}."] {
            assert_eq!(Prompt::new(good).check("prompt"), Ok(()), "{good}");
        }
        let told = |prompt: &str| Prompt::new(prompt).check("prompt").unwrap_err().to_string();
        assert!(
            told("papr").starts_with(
                "`prompt`: no prompt is called `papr`; there are paper, paper-coco, pd, coco, pa, yes-no,"
            )
        );
        assert!(told("Describe the {klass}.").contains("`{klass}` at character 14 is no placeholder"));
    }

    #[test]
    fn image_stands_before_the_first_question() {
        let prompt = Conversation::DeepSeekVl.prompt("What is it?", &[]);
        assert!(prompt.ends_with("language.\n\nUser: <image_placeholder>What is it?\n\nAssistant:"), "{prompt}");
        let prompt = Conversation::DeepSeekVl.prompt("What is it? <image_placeholder>", &[]);
        assert!(prompt.ends_with("User: What is it? <image_placeholder>\n\nAssistant:"), "{prompt}");
        assert_eq!(Conversation::Plain.prompt("a photo of", &[]), "a photo of");
    }

    #[test]
    fn tokens_of_tiles_take_the_places_of_images() {
        assert_eq!(
            with_tiles("a<image>b<image>", 2, &[1, 2]).unwrap(),
            format!("a<img>{0}</img>b<img>{0}{0}</img>", "<IMG_CONTEXT><IMG_CONTEXT>")
        );
        assert_eq!(with_tiles("a", 2, &[1]).unwrap_err(), "the prompt has 0 places `<image>` for 1 images");
    }

    #[test]
    fn unknown_template_is_refused_with_the_known_ones() {
        assert_eq!(Conversation::of_template("Hermes-2"), Ok(Conversation::Hermes2));
        let told = Conversation::of_template("vicuna").unwrap_err();
        assert_eq!(
            told,
            "`template` is `vicuna`; templates that are known are Hermes-2, internlm2-chat, internvl2_5, phi3-chat"
        );
    }
}
