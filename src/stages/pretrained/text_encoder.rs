//! Published weights of a text encoder, and its tokenizer.

use tch::nn;

use super::network::PublishedNetwork;
use crate::{
    engine::{Error, Result},
    models::{
        checkpoint::Checkpoint,
        clip::{ClipTextConfig, ClipTextModel},
        initialisation::skip_init,
        nn::ConfigError,
        tokenizer::ClipTokenizer,
    },
    published::{TEXT_ENCODER, Weights, input},
    stages::tensors::save_weights,
    tables::weights::TOKENIZER,
};

/// CLIP's text transformer.
pub(super) struct PublishedTextEncoder;

impl PublishedNetwork for PublishedTextEncoder {
    type Config = ClipTextConfig;

    const LAYOUTS: &'static [&'static str] = TEXT_ENCODER;
    const HAS_TOKENIZER: bool = true;

    fn published_config() -> ClipTextConfig {
        ClipTextConfig::vit_l_14()
    }

    fn parse_config(text: &str, _: bool) -> serde_json::Result<Option<ClipTextConfig>> {
        ClipTextConfig::from_json(text).map(Some)
    }

    fn check_config(config: &ClipTextConfig) -> Result<(), ConfigError> {
        config.validate()
    }

    fn load(published: Checkpoint, config: ClipTextConfig, tokenizer: &str, vs: &nn::VarStore) -> Result<Vec<u8>> {
        let place = Weights(tokenizer).beside().map_err(|e| Error::Input(e.to_string()))?;
        let tokenizer = ClipTokenizer::open(&place)?;
        fits(&tokenizer, &config).map_err(|e| Error::Input(format!("`tokenizer`: {}: {e}", place.display())))?;
        skip_init(|| ClipTextModel::new(vs.root(), &config))?;
        config.canonical(published).load_into(vs).map_err(input)?;
        save_weights(vs.variables(), &config, &[(TOKENIZER, tokenizer.to_json()?)])
    }
}

/// Checks that a tokenizer has the same tokens as a text encoder.
fn fits(tokenizer: &ClipTokenizer, config: &ClipTextConfig) -> Result<(), String> {
    let (tokens, end) = (tokenizer.vocab_size() as i64, i64::from(tokenizer.end()));
    if tokens > config.vocab_size {
        return Err(format!("it has {tokens} tokens, and the text encoder knows {}", config.vocab_size));
    }
    // Old configurations contain 2 by mistake.
    if ![2, end].contains(&config.eos_token_id) {
        return Err(format!("it ends texts by token {end}, and the text encoder's end is {}", config.eos_token_id));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokenizer_of_another_vocabulary_is_refused() {
        let tokenizer = ClipTokenizer::train(&["a gear".into()], 300).unwrap();
        let (vocab_size, eos_token_id) = (tokenizer.vocab_size() as i64, i64::from(tokenizer.end()));
        let fits = |vocab_size, eos_token_id| {
            fits(&tokenizer, &ClipTextConfig { vocab_size, eos_token_id, ..Default::default() })
        };
        assert_eq!(fits(vocab_size, eos_token_id), Ok(()));
        assert_eq!(fits(vocab_size + 1, 2), Ok(()));
        let few = format!("it has {vocab_size} tokens, and the text encoder knows {}", vocab_size - 1);
        assert_eq!(fits(vocab_size - 1, eos_token_id), Err(few));
        assert!(fits(vocab_size, eos_token_id + 2).unwrap_err().starts_with("it ends texts by token"));
    }
}
