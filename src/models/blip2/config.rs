//! The configuration of BLIP-2. The defaults are those of transformers, whose configs leave such values out: the tower
//! ViT-g and a Q-Former of twelve layers.

use super::super::nn::{ConfigError, MAX_LAYERS, MAX_SIZE, require, require_sizes};
use serde::Deserialize;
use serde_json::Value;

const NAME: &str = "Blip2ForConditionalGeneration";

/// `vision_config`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct VisionConfig {
    /// Width of a token.
    pub hidden_size: i64,
    /// Width of the feed-forward layers.
    pub intermediate_size: i64,
    /// Number of layers.
    pub num_hidden_layers: i64,
    /// Number of heads; divides `hidden_size`.
    pub num_attention_heads: i64,
    /// Side of a picture, in pixels.
    pub image_size: i64,
    /// Side of a patch, in pixels.
    pub patch_size: i64,
    /// True if query, key and value have a bias.
    pub qkv_bias: bool,
}

impl Default for VisionConfig {
    fn default() -> Self {
        Self {
            hidden_size: 1408,
            intermediate_size: 6144,
            num_hidden_layers: 39,
            num_attention_heads: 16,
            image_size: 224,
            patch_size: 14,
            qkv_bias: true,
        }
    }
}

/// `qformer_config`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct QFormerConfig {
    /// Width of a query.
    pub hidden_size: i64,
    /// Width of the feed-forward layers.
    pub intermediate_size: i64,
    /// Number of layers.
    pub num_hidden_layers: i64,
    /// Number of heads; divides `hidden_size`.
    pub num_attention_heads: i64,
    /// Queries look at the picture in every n-th layer, from the first on.
    pub cross_attention_frequency: i64,
    /// Epsilon of the normalisations.
    pub layer_norm_eps: f64,
}

impl Default for QFormerConfig {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            cross_attention_frequency: 2,
            layer_norm_eps: 1e-12,
        }
    }
}

/// `text_config` of `OPTForCausalLM`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct OptConfig {
    /// Number of token ids.
    pub vocab_size: i64,
    /// Width of a token.
    pub hidden_size: i64,
    /// Width of the feed-forward layers.
    pub ffn_dim: i64,
    /// Number of layers.
    pub num_hidden_layers: i64,
    /// Number of heads; divides `hidden_size`.
    pub num_attention_heads: i64,
    /// Most tokens in a text.
    pub max_position_embeddings: i64,
    do_layer_norm_before: bool,
    activation_function: String,
    word_embed_proj_dim: Option<i64>,
}

impl Default for OptConfig {
    fn default() -> Self {
        Self {
            vocab_size: 50272,
            hidden_size: 768,
            ffn_dim: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            max_position_embeddings: 2048,
            do_layer_norm_before: true,
            activation_function: "relu".to_owned(),
            word_embed_proj_dim: None,
        }
    }
}

/// `text_config` of `T5ForConditionalGeneration`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct T5Config {
    /// Number of token ids.
    pub vocab_size: i64,
    /// Width of a token.
    pub d_model: i64,
    /// Width of a head.
    pub d_kv: i64,
    /// Width of the feed-forward layers.
    pub d_ff: i64,
    /// Number of layers of the encoder.
    pub num_layers: i64,
    /// Number of layers of the decoder; None is as many.
    pub num_decoder_layers: Option<i64>,
    /// Number of heads.
    pub num_heads: i64,
    /// Number of buckets of distances.
    pub relative_attention_num_buckets: i64,
    /// Distances from here on share a bucket.
    pub relative_attention_max_distance: i64,
    /// Epsilon of the normalisations.
    pub layer_norm_epsilon: f64,
    /// True if the table of tokens is also the map to the logits.
    pub tie_word_embeddings: bool,
    /// The token with which an answer begins.
    pub decoder_start_token_id: i64,
    feed_forward_proj: String,
}

impl Default for T5Config {
    fn default() -> Self {
        Self {
            vocab_size: 32128,
            d_model: 512,
            d_kv: 64,
            d_ff: 2048,
            num_layers: 6,
            num_decoder_layers: None,
            num_heads: 8,
            relative_attention_num_buckets: 32,
            relative_attention_max_distance: 128,
            layer_norm_epsilon: 1e-6,
            tie_word_embeddings: true,
            decoder_start_token_id: 0,
            feed_forward_proj: "gated-gelu".to_owned(),
        }
    }
}

/// The language model.
#[derive(Debug, Clone, PartialEq)]
pub enum TextConfig {
    /// A decoder alone.
    Opt(OptConfig),
    /// An encoder of the prompt and a decoder of the answer.
    T5(T5Config),
}

impl TextConfig {
    fn check_sizes(&self) -> Result<(), ConfigError> {
        match self {
            Self::Opt(opt) => {
                let sizes = [
                    ("vocab_size of text_config", opt.vocab_size),
                    ("hidden_size of text_config", opt.hidden_size),
                    ("ffn_dim of text_config", opt.ffn_dim),
                    ("max_position_embeddings of text_config", opt.max_position_embeddings),
                ];
                require_sizes(NAME, MAX_SIZE, &sizes)?;
                require_sizes(NAME, MAX_LAYERS, &[("num_hidden_layers of text_config", opt.num_hidden_layers)])
            }
            Self::T5(t5) => {
                let sizes = [
                    ("vocab_size of text_config", t5.vocab_size),
                    ("d_model of text_config", t5.d_model),
                    ("d_kv of text_config", t5.d_kv),
                    ("d_ff of text_config", t5.d_ff),
                    ("num_heads of text_config", t5.num_heads),
                    ("relative_attention_num_buckets of text_config", t5.relative_attention_num_buckets),
                    ("relative_attention_max_distance of text_config", t5.relative_attention_max_distance),
                ];
                require_sizes(NAME, MAX_SIZE, &sizes)?;
                let layers = [
                    ("num_layers of text_config", t5.num_layers),
                    ("num_decoder_layers of text_config", t5.num_decoder_layers.unwrap_or(t5.num_layers)),
                ];
                require_sizes(NAME, MAX_LAYERS, &layers)
            }
        }
    }
}

/// The whole network.
#[derive(Debug, Clone, PartialEq)]
pub struct Blip2Config {
    /// The vision tower.
    pub vision: VisionConfig,
    /// The transformer that reads the picture by queries.
    pub qformer: QFormerConfig,
    /// The language model.
    pub text: TextConfig,
    /// Number of queries, and so of visual tokens.
    pub queries: i64,
}

impl Blip2Config {
    /// Reads the text of a `config.json`.
    ///
    /// # Errors
    /// Names the value that is missing or unknown, and what would work.
    pub fn from_json(text: &str) -> Result<Self, String> {
        let whole: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let part = |name: &str| whole.get(name).cloned().unwrap_or_else(|| Value::Object(Default::default()));
        let text = part("text_config");
        let wrong = |error: serde_json::Error| error.to_string();
        let language = match text["model_type"].as_str() {
            Some("opt") => TextConfig::Opt(serde_json::from_value(text).map_err(wrong)?),
            Some("t5") => TextConfig::T5(serde_json::from_value(text).map_err(wrong)?),
            other => {
                let other = other.unwrap_or("not stated");
                return Err(format!("the model_type of its text_config is {other}, and only opt and t5 are known"));
            }
        };
        let config = Self {
            vision: serde_json::from_value(part("vision_config")).map_err(wrong)?,
            qformer: serde_json::from_value(part("qformer_config")).map_err(wrong)?,
            text: language,
            queries: whole["num_query_tokens"].as_i64().unwrap_or(32),
        };
        config.check().map(|()| config).map_err(|error| error.problem)
    }

    /// Checks that a network can be built from these values.
    ///
    /// # Errors
    /// Names the value that is wrong.
    pub fn check(&self) -> Result<(), ConfigError> {
        let divides = |heads: i64, width: i64, part: &str| {
            require(heads > 0 && width % heads == 0, NAME, || {
                format!("num_attention_heads {heads} of {part} has to divide hidden_size {width}")
            })
        };
        let Self { vision, qformer, .. } = self;
        let sizes = [
            ("hidden_size of vision_config", vision.hidden_size),
            ("intermediate_size of vision_config", vision.intermediate_size),
            ("image_size of vision_config", vision.image_size),
            ("patch_size of vision_config", vision.patch_size),
            ("hidden_size of qformer_config", qformer.hidden_size),
            ("intermediate_size of qformer_config", qformer.intermediate_size),
            ("num_query_tokens", self.queries),
        ];
        require_sizes(NAME, MAX_SIZE, &sizes)?;
        let layers = [
            ("num_hidden_layers of vision_config", vision.num_hidden_layers),
            ("num_hidden_layers of qformer_config", qformer.num_hidden_layers),
        ];
        require_sizes(NAME, MAX_LAYERS, &layers)?;
        self.text.check_sizes()?;
        divides(self.vision.num_attention_heads, self.vision.hidden_size, "vision_config")?;
        divides(self.qformer.num_attention_heads, self.qformer.hidden_size, "qformer_config")?;
        require(self.qformer.cross_attention_frequency > 0, NAME, || {
            "cross_attention_frequency has to be at least 1".to_owned()
        })?;
        match &self.text {
            TextConfig::Opt(opt) => {
                divides(opt.num_attention_heads, opt.hidden_size, "text_config")?;
                let same_width = opt.word_embed_proj_dim.is_none_or(|width| width == opt.hidden_size);
                require(opt.do_layer_norm_before && opt.activation_function == "relu" && same_width, NAME, || {
                    "only OPT with do_layer_norm_before, relu and embeddings as wide as its layers is known".to_owned()
                })
            }
            TextConfig::T5(t5) => require(t5.feed_forward_proj == "gated-gelu", NAME, || {
                format!("feed_forward_proj is {}, and only gated-gelu is known", t5.feed_forward_proj)
            }),
        }
    }
}
