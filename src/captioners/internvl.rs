//! `model: internvl…`: captions by InternVL.

use tch::Tensor;

use super::{
    language::{
        Family, Opening, Tokens,
        asking::Defaults,
        chat::{Chat, ChatNetwork},
        model::VisionLanguageModel,
        pictures::Pictures,
    },
    prompts::{Conversation, with_tiles},
};
use crate::{
    engine::{Error, Result},
    models::{
        internvl::{self, InternVl},
        language::decoder::Decoder,
        language_tokenizer::{LanguageTokenizer, Rules},
        preprocessing::Preprocessing,
    },
    published::input,
    vision::tiling::Tiling,
};

/// InternVL 2, 2.5 and 3.
#[derive(Clone, Debug)]
pub struct InternVlFamily;

impl Family for InternVlFamily {
    const NAMES: &'static [&'static str] = &[
        "internvl2-1b",
        "internvl2-2b",
        "internvl2-8b",
        "internvl2.5-1b",
        "internvl2.5-2b",
        "internvl2.5-4b",
        "internvl2.5-8b",
        "internvl3-1b",
        "internvl3-2b",
        "internvl3-8b",
    ];
    const ABOUT: &'static str = "Captions by InternVL, which sees a photograph as a grid of tiles and as a whole.";
    const LAYOUTS: &'static [&'static str] = &["internvl-qwen2", "internvl-internlm2", "internvl-hf"];
    const TAKES: &'static [&'static str] = &["max_tiles", "temperature", "top_p", "seed"];

    fn defaults() -> Defaults {
        Defaults { prompt: "pd", max_new_tokens: 1024 }
    }

    fn open(opening: Opening) -> Result<Box<dyn VisionLanguageModel>> {
        let folder = &opening.folder;
        let config = internvl::read_config(folder).map_err(input)?;
        // The native layout names no conversation, and is that of InternVL 3.
        let conversation = config.template.as_deref().map_or(Ok(Conversation::InternVl25), Conversation::of_template);
        let conversation = conversation.map_err(|e| Error::Input(format!("{}: config.json: {e}", folder.display())))?;
        let tokenizer = LanguageTokenizer::open(folder, Rules::Qwen2)?;
        let tokens = Tokens {
            image: config.image_token.map_or_else(|| tokenizer.id("<IMG_CONTEXT>").map(i64::from), Ok)?,
            stop: conversation.stop().map(|stop| tokenizer.id(stop).map(i64::from)).transpose()?.into_iter().collect(),
            tokenizer,
        };
        let size = config.vision.image_size as u32;
        let pictures = Pictures::Tiles(Tiling { size, max: opening.settings.max_tiles, ..Tiling::default() });
        let weights =
            internvl::memory(opening.checkpoint.clone(), &config, opening.settings.arithmetic).map_err(input)?;
        let tokens_per_tile = config.tokens_per_tile();
        let chat = Chat::load(
            opening,
            pictures,
            tokens,
            &config.text,
            tokens_per_tile,
            weights,
            |weights, arithmetic, device| {
                let network = InternVl::load(weights, &config, arithmetic, device)?;
                Ok(InternVlChat { network, conversation })
            },
        )?;
        Ok(Box::new(chat))
    }
}

struct InternVlChat {
    network: InternVl,
    conversation: Conversation,
}

impl ChatNetwork for InternVlChat {
    fn decoder(&self) -> &Decoder {
        self.network.decoder()
    }

    fn preprocessing(&self) -> Preprocessing {
        Preprocessing::imagenet(1)
    }

    fn visual_tokens(&self, pictures: &Tensor) -> Tensor {
        self.network.visual_tokens(pictures)
    }

    fn prompt(&self, text: &str, count: usize) -> Result<String> {
        let prompt = self.conversation.prompt(text, &[]);
        let tokens = self.network.config().tokens_per_tile() as usize;
        with_tiles(&prompt, tokens, &[count]).map_err(Error::Input)
    }
}
