//! `model: blip2-…`: captions by BLIP-2.

use image::RgbImage;

use super::language::{
    Family, Opening,
    asking::{Defaults, Settings},
    chat::{normalised, words},
    memory::Memory,
    model::{Answer, Question, Told, VisionLanguageModel, YesNo},
    pictures::Pictures,
};
use crate::{
    engine::{Error, Result},
    models::{
        blip2::{self, Blip2, Blip2Config, TextConfig},
        language::{beam::BeamSearch, generate::Speed},
        language_tokenizer::{LanguageTokenizer, Rules},
        preprocessing::Preprocessing,
    },
    published::input,
};

/// The mean and standard deviation of CLIP's photographs, by which the tower sees pictures.
const CLIP: Preprocessing = Preprocessing {
    mean: [0.481_454_66, 0.457_827_5, 0.408_210_73],
    std: [0.268_629_54, 0.261_302_6, 0.275_777_1],
    size_multiple: 1,
};
/// The number of pictures that the tower sees at once.
const PICTURES_AT_ONCE: usize = 8;

/// BLIP-2 with OPT or flan-T5.
#[derive(Clone, Debug)]
pub struct Blip2Family;

impl Family for Blip2Family {
    const NAMES: &'static [&'static str] = &["blip2-opt-2.7b", "blip2-flan-t5-xl", "blip2-flan-t5-xxl"];
    const ABOUT: &'static str = "Captions by BLIP-2, which sees a photograph as one square and writes few words; the likeliest text of several.";
    const LAYOUTS: &'static [&'static str] = &["blip2-opt", "blip2-t5"];
    const TAKES: &'static [&'static str] = &["beams"];

    fn defaults() -> Defaults {
        Defaults { prompt: "pd", max_new_tokens: 30 }
    }

    fn open(opening: Opening) -> Result<Box<dyn VisionLanguageModel>> {
        let Opening { checkpoint, folder, settings, device, .. } = opening;
        let config = blip2::read_config(&folder).map_err(input)?;
        let tokenizer = LanguageTokenizer::open(&folder, Rules::Gpt2)?;
        // OPT ends a caption by a line break, and T5 as every text.
        let (stop, known) = match &config.text {
            TextConfig::Opt(opt) => (tokenizer.encode_piece("\n")?, opt.vocab_size),
            TextConfig::T5(t5) => (vec![tokenizer.id("</s>")?], t5.vocab_size),
        };
        tokenizer.check_fits(known).map_err(Error::from)?;
        let weights = blip2::memory(checkpoint.clone(), &config, settings.arithmetic).map_err(input)?;
        let bytes = cache_bytes(&config, &settings);
        let memory = Memory::plan(weights, Some(1), |_| bytes, device)?;
        Ok(Box::new(Blip2Captioner {
            network: Blip2::load(checkpoint, &config, settings.arithmetic, device).map_err(input)?,
            search: BeamSearch {
                beams: settings.beams,
                max_new_tokens: settings.max_new_tokens,
                min_new_tokens: 1,
                stop: stop.into_iter().map(i64::from).collect(),
                length_penalty: 1.,
                repetition_penalty: settings.repetition_penalty,
            },
            pictures: Pictures::Resized { side: config.vision.image_size as u32 },
            yes_no: YesNo::of(&tokenizer),
            tokenizer,
            memory,
        }))
    }
}

/// Returns the bytes of the keys and values of the texts that a search follows, for a prompt of as many tokens as words
/// have places for.
fn cache_bytes(config: &Blip2Config, settings: &Settings) -> u64 {
    let (layers, width, longest) = match &config.text {
        TextConfig::Opt(opt) => (opt.num_hidden_layers, opt.hidden_size, opt.max_position_embeddings),
        TextConfig::T5(t5) => (t5.num_decoder_layers.unwrap_or(t5.num_layers), t5.num_heads * t5.d_kv, 512),
    };
    let tokens = (settings.max_new_tokens as i64 + 512).min(longest + settings.max_new_tokens as i64);
    let bytes = settings.arithmetic.computing.kind().elt_size_in_bytes();
    (2 * layers * width * tokens) as u64 * settings.beams as u64 * bytes as u64
}

struct Blip2Captioner {
    network: Blip2,
    tokenizer: LanguageTokenizer,
    search: BeamSearch,
    pictures: Pictures,
    yes_no: YesNo,
    memory: Memory,
}

impl VisionLanguageModel for Blip2Captioner {
    fn memory(&self) -> String {
        self.memory.sentence()
    }

    fn pictures(&self) -> Pictures {
        self.pictures
    }

    fn answer(
        &mut self,
        _: &[String],
        questions: &mut dyn Iterator<Item = Result<Question>>,
        told: &mut dyn FnMut(Told) -> Result<()>,
    ) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        let (mut number, mut speed) = (0, Speed::default());
        loop {
            let some: Vec<Question> = (&mut *questions).take(PICTURES_AT_ONCE).collect::<Result<_>>()?;
            if some.is_empty() {
                return Ok(());
            }
            let start = std::time::Instant::now();
            let pictures: Vec<RgbImage> = some.iter().flat_map(|one| self.pictures.cut(&one.photograph)).collect();
            let visual = self.network.visual_tokens(&normalised(&CLIP, &pictures.iter().collect::<Vec<_>>()));
            speed.prefill += start.elapsed();
            for (i, question) in some.iter().enumerate() {
                let ids: Vec<i64> = self.tokenizer.encode(&question.text)?.into_iter().map(i64::from).collect();
                let prompt = self.network.prompt(&visual.f_get(i as i64)?, &ids);
                let start = std::time::Instant::now();
                told(match self.network.answer(&prompt, &self.search) {
                    Ok(answer) => {
                        speed.decoded_tokens += answer.tokens.len();
                        Told::Answer {
                            number,
                            answer: Answer {
                                text: words(&self.tokenizer, &answer.tokens)?,
                                tokens: answer.tokens.len(),
                                finish: answer.finish,
                                yes: self.yes_no.probability(&answer.first_logits),
                            },
                        }
                    }
                    Err(full) => Told::Unanswered { number, reason: format!("{full}; a shorter prompt fits") },
                })?;
                speed.decode += start.elapsed();
                told(Told::Step(speed))?;
                number += 1;
            }
        }
    }
}
