//! `model: deepseek-vl-1.3b`: captions by DeepSeek-VL.

use tch::Tensor;

use super::{
    language::{
        Family, Opening, Tokens,
        asking::Defaults,
        chat::{Chat, ChatNetwork},
        model::VisionLanguageModel,
        pictures::Pictures,
    },
    prompts::{Conversation, DEEPSEEK_IMAGE},
};
use crate::{
    engine::Result,
    models::{
        deepseek_vl::{self, DeepseekVl},
        language::decoder::Decoder,
        language_tokenizer::{LanguageTokenizer, Rules},
        preprocessing::Preprocessing,
    },
    published::input,
};

/// The fewest pixels of a photograph's shorter side in the square that the tower sees.
const LEAST: u32 = 14;
/// The level around the photograph: the mean of 0.5, in 8 bits.
const GREY: u8 = 127;

/// DeepSeek-VL 1.3B.
#[derive(Clone, Debug)]
pub struct DeepseekVlFamily;

impl Family for DeepseekVlFamily {
    const NAMES: &'static [&'static str] = &["deepseek-vl-1.3b"];
    const ABOUT: &'static str = "Captions by DeepSeek-VL 1.3B, which sees a photograph as one square.";
    const LAYOUTS: &'static [&'static str] = &["deepseek-vl", "deepseek-vl-hf"];
    const TAKES: &'static [&'static str] = &["temperature", "top_p", "seed"];

    fn defaults() -> Defaults {
        Defaults { prompt: "pd", max_new_tokens: 512 }
    }

    fn open(opening: Opening) -> Result<Box<dyn VisionLanguageModel>> {
        let folder = &opening.folder;
        let config = deepseek_vl::read_config(folder).map_err(input)?;
        let tokenizer = LanguageTokenizer::open(folder, Rules::Gpt2)?;
        let stop = Conversation::DeepSeekVl.stop().map(|stop| tokenizer.id(stop).map(i64::from)).transpose()?;
        let tokens =
            Tokens { image: tokenizer.id(DEEPSEEK_IMAGE)?.into(), stop: stop.into_iter().collect(), tokenizer };
        let size = deepseek_vl::picture_size(&opening.checkpoint).map_err(input)?;
        let pictures = Pictures::Padded { side: size.side as u32, least: LEAST.min(size.side as u32), grey: GREY };
        let weights =
            deepseek_vl::memory(opening.checkpoint.clone(), &config, opening.settings.arithmetic).map_err(input)?;
        let chat = Chat::load(
            opening,
            pictures,
            tokens,
            &config.text,
            size.tokens,
            weights,
            |weights, arithmetic, device| {
                let network = DeepseekVl::load(weights, &config, arithmetic, device)?;
                Ok(DeepseekVlChat { network, tokens: size.tokens as usize })
            },
        )?;
        Ok(Box::new(chat))
    }
}

struct DeepseekVlChat {
    network: DeepseekVl,
    /// The visual tokens of a picture.
    tokens: usize,
}

impl ChatNetwork for DeepseekVlChat {
    fn decoder(&self) -> &Decoder {
        self.network.decoder()
    }

    fn preprocessing(&self) -> Preprocessing {
        Preprocessing { mean: [0.5; 3], std: [0.5; 3], size_multiple: 1 }
    }

    fn visual_tokens(&self, pictures: &Tensor) -> Tensor {
        self.network.visual_tokens(pictures)
    }

    /// Puts the photograph behind the words, as VLMDiff's authors do.
    fn prompt(&self, text: &str, _: usize) -> Result<String> {
        let prompt = Conversation::DeepSeekVl.prompt(&format!("{text} {DEEPSEEK_IMAGE}"), &[]);
        Ok(prompt.replace(DEEPSEEK_IMAGE, &DEEPSEEK_IMAGE.repeat(self.tokens)))
    }
}
