//! The text transformer of CLIP, which turns captions into the denoiser's context: transformers' `CLIPTextModel`.

use super::{
    checkpoint::Checkpoint,
    initialisation::init,
    latent_diffusion::TEXT_ENCODER,
    nn::{
        ConfigError, MAX_LAYERS, MAX_SIZE, attention, layer_norm, linear, linear_no_bias, require, require_sizes, show,
    },
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{
    Kind, Tensor,
    nn::{self, Init, Module},
};

const NAME: &str = "CLIPTextModel";
const PROJECTION: &str = "text_projection.weight";

/// The activation of the feed-forward layers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HiddenAct {
    /// x · sigmoid(1.702 x): OpenAI's models.
    #[default]
    QuickGelu,
    /// The exact Gaussian error unit: OpenCLIP's models.
    Gelu,
}

/// `text_encoder/config.json`; the defaults are those of transformers, which leaves a value out where it equals its
/// default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ClipTextConfig {
    /// Number of token ids.
    pub vocab_size: i64,
    /// Width of a token.
    pub hidden_size: i64,
    /// Width of the feed-forward layers.
    pub intermediate_size: i64,
    /// Number of layers.
    pub num_hidden_layers: i64,
    /// Number of heads; divides `hidden_size`.
    pub num_attention_heads: i64,
    /// Most tokens in a text, with its begin and end.
    pub max_position_embeddings: i64,
    /// The activation of the feed-forward layers.
    pub hidden_act: HiddenAct,
    /// Epsilon of the layer normalisations.
    pub layer_norm_eps: f64,
    /// The id that ends a text; 2 is the mistake of old configs and means the largest id.
    pub eos_token_id: i64,
    /// Width of the space shared with images.
    pub projection_dim: i64,
}

impl Default for ClipTextConfig {
    fn default() -> Self {
        Self {
            vocab_size: 49408,
            hidden_size: 512,
            intermediate_size: 2048,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            hidden_act: HiddenAct::QuickGelu,
            layer_norm_eps: 1e-5,
            eos_token_id: 49407,
            projection_dim: 512,
        }
    }
}

impl ClipTextConfig {
    /// Returns the configuration of CLIP ViT-L/14, the text encoder of Stable Diffusion 1.x.
    pub fn vit_l_14() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            num_attention_heads: 12,
            projection_dim: 768,
            ..Self::default()
        }
    }

    /// Reads the text of a `config.json` of a text model, or of a whole CLIP model: then it takes its `text_config`,
    /// with the `projection_dim` of the whole.
    pub fn from_json(text: &str) -> Result<Self, serde_json::Error> {
        #[derive(Deserialize)]
        struct Whole {
            text_config: Option<ClipTextConfig>,
            projection_dim: Option<i64>,
        }
        let whole: Whole = serde_json::from_str(text)?;
        match whole.text_config {
            Some(config) => {
                Ok(Self { projection_dim: whole.projection_dim.unwrap_or(config.projection_dim), ..config })
            }
            None => serde_json::from_str(text),
        }
    }

    /// Checks that a network can be built from these values.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_attention_heads", self.num_attention_heads),
            ("max_position_embeddings", self.max_position_embeddings),
            ("projection_dim", self.projection_dim),
        ];
        require_sizes(NAME, MAX_SIZE, &sizes)?;
        require_sizes(NAME, MAX_LAYERS, &[("num_hidden_layers", self.num_hidden_layers)])?;
        require(self.hidden_size % self.num_attention_heads == 0, NAME, || {
            format!("num_attention_heads {} has to divide hidden_size {}", self.num_attention_heads, self.hidden_size)
        })
    }

    /// Returns the same weights under the names of this network, which are those of transformers (`text_model.…`), from
    /// any layout in which they are published: alone, in a whole CLIP model, or below `cond_stage_model.transformer.`
    /// of a file of latent-diffusion. The image half of a CLIP model, the projections, the scale, and the position
    /// numbers of old files are left out.
    pub fn canonical(&self, published: Checkpoint) -> Checkpoint {
        self.canonical_with_projection(published).retain(|name| name != PROJECTION)
    }

    /// Does as [`ClipTextConfig::canonical`], but keeps the text projection for [`ClipTextModel::with_projection`].
    pub fn canonical_with_projection(&self, published: Checkpoint) -> Checkpoint {
        let foreign = ["visual_projection.weight", "logit_scale", "text_model.embeddings.position_ids"];
        let own = |name: &str| !name.starts_with("vision_model.") && !foreign.contains(&name);
        published.part(TEXT_ENCODER).part("transformer").retain(own)
    }
}

/// Returns x · sigmoid(1.702 x). If no gradient is asked for, it takes memory for one further tensor only.
fn quick_gelu(x: Tensor) -> Tensor {
    let mut gate = (&x * 1.702).sigmoid_();
    if x.requires_grad() { gate * x } else { gate.g_mul_(&x) }
}

/// Causal self-attention and a feed-forward layer, each normalised before and added after.
#[derive(Debug)]
struct EncoderLayer {
    layer_norm1: nn::LayerNorm,
    q_proj: nn::Linear,
    k_proj: nn::Linear,
    v_proj: nn::Linear,
    out_proj: nn::Linear,
    layer_norm2: nn::LayerNorm,
    fc1: nn::Linear,
    fc2: nn::Linear,
    heads: i64,
    act: HiddenAct,
}

impl EncoderLayer {
    fn new(vs: nn::Path, config: &ClipTextConfig) -> Self {
        let (width, eps) = (config.hidden_size, config.layer_norm_eps);
        let project = |name: &str| linear(&vs / "self_attn" / name, width, width);
        Self {
            layer_norm1: layer_norm(&vs / "layer_norm1", width, eps),
            q_proj: project("q_proj"),
            k_proj: project("k_proj"),
            v_proj: project("v_proj"),
            out_proj: project("out_proj"),
            layer_norm2: layer_norm(&vs / "layer_norm2", width, eps),
            fc1: linear(&vs / "mlp" / "fc1", width, config.intermediate_size),
            fc2: linear(&vs / "mlp" / "fc2", config.intermediate_size, width),
            heads: config.num_attention_heads,
            act: config.hidden_act,
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let normed = self.layer_norm1.forward(x);
        let [q, k, v] = [&self.q_proj, &self.k_proj, &self.v_proj].map(|layer| layer.forward(&normed));
        let x = x + self.out_proj.forward(&attention(&q, &k, &v, self.heads, true));
        let hidden = self.fc1.forward(&self.layer_norm2.forward(&x));
        let hidden = match self.act {
            HiddenAct::QuickGelu => quick_gelu(hidden),
            HiddenAct::Gelu => hidden.gelu("none"),
        };
        x + self.fc2.forward(&hidden)
    }
}

/// The output of the text transformer for a batch of texts.
#[derive(Debug)]
pub struct ClipTextOutput {
    /// The tokens after the final normalisation, [B, tokens, hidden_size]: the context of Stable Diffusion.
    pub last_hidden_state: Tensor,
    /// The row of the token that ends the text, [B, hidden_size].
    pub pooled: Tensor,
}

/// The text transformer.
#[derive(Debug)]
pub struct ClipTextModel {
    token_embedding: Tensor,
    position_embedding: Tensor,
    layers: Vec<EncoderLayer>,
    final_layer_norm: nn::LayerNorm,
    text_projection: Option<nn::Linear>,
    eos_token_id: i64,
}

impl ClipTextModel {
    /// Declares the parameters under `vs` by their published names (`text_model.…`); fails if the config describes no
    /// network.
    pub fn new(vs: nn::Path, config: &ClipTextConfig) -> Result<Self, ConfigError> {
        config.validate()?;
        let (text, width) = (&vs / "text_model", config.hidden_size);
        let embedding = |name: &str, rows| {
            let normal = init(Init::Randn { mean: 0., stdev: 0.02 });
            (&text / "embeddings" / name).var("weight", &[rows, width], normal)
        };
        let layer = |i| EncoderLayer::new(&text / "encoder" / "layers" / i, config);
        Ok(Self {
            token_embedding: embedding("token_embedding", config.vocab_size),
            position_embedding: embedding("position_embedding", config.max_position_embeddings),
            layers: (0..config.num_hidden_layers).map(layer).collect(),
            final_layer_norm: layer_norm(&text / "final_layer_norm", width, config.layer_norm_eps),
            text_projection: None,
            eos_token_id: config.eos_token_id,
        })
    }

    /// Declares the same parameters and `text_projection`, as in a whole CLIP model.
    pub fn with_projection(vs: nn::Path, config: &ClipTextConfig) -> Result<Self, ConfigError> {
        let model = Self::new(vs.clone(), config)?;
        let projection = linear_no_bias(&vs / "text_projection", config.hidden_size, config.projection_dim);
        Ok(Self { text_projection: Some(projection), ..model })
    }

    /// Encodes `input_ids` [B, tokens ≤ max_position_embeddings] i64, which begin and end with the special tokens and
    /// are padded. Padding is not masked: each token sees all tokens before it, as in the training of Stable Diffusion.
    pub fn forward(&self, input_ids: &Tensor) -> ClipTextOutput {
        let (b, n) = input_ids.size2().unwrap();
        let tokens = Tensor::embedding(&self.token_embedding, input_ids, -1, false, false);
        let mut x = tokens + self.position_embedding.narrow(0, 0, n); // [B, N, C]
        show("embeddings", &x);
        for (i, layer) in self.layers.iter().enumerate() {
            x = layer.forward(&x);
            show(format_args!("encoder.layers.{i}"), &x);
        }
        let last_hidden_state = self.final_layer_norm.forward(&x);
        let end = match self.eos_token_id {
            2 => input_ids.argmax(-1, false),
            eos => input_ids.eq(eos).to_kind(Kind::Int64).argmax(-1, false), // the first of equals
        };
        let rows = Tensor::arange(b, (Kind::Int64, input_ids.device()));
        let pooled = last_hidden_state.index(&[Some(rows), Some(end)]);
        ClipTextOutput { last_hidden_state, pooled }
    }

    /// Projects `pooled` [B, hidden_size] into the space shared with images, with length 1: [B, projection_dim].
    /// Returns None for a model without projection.
    pub fn embed(&self, pooled: &Tensor) -> Option<Tensor> {
        let projected = self.text_projection.as_ref()?.forward(pooled);
        let norm = projected.norm_scalaropt_dim(2, [-1].as_slice(), true);
        Some(projected / norm)
    }
}

#[cfg(test)]
mod tests {
    use super::super::nn::quietly;
    use super::*;
    use tch::{Device, nn::VarStore};

    #[test]
    fn a_token_sees_only_the_tokens_before_it() {
        let config = ClipTextConfig {
            vocab_size: 10,
            hidden_size: 8,
            intermediate_size: 16,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            hidden_act: HiddenAct::Gelu,
            eos_token_id: 3,
            ..Default::default()
        };
        let model = ClipTextModel::new(VarStore::new(Device::Cpu).root(), &config).unwrap();
        quietly(|| {
            let of = |ids: [i64; 5]| model.forward(&Tensor::from_slice(&ids).view([1, 5]));
            let (a, b) = (of([9, 1, 3, 3, 3]), of([9, 1, 3, 5, 6]));
            let row = |output: &ClipTextOutput, i| output.last_hidden_state.get(0).get(i);
            assert_eq!(row(&a, 2), row(&b, 2));
            assert_ne!(row(&a, 3), row(&b, 3));
            // the pooled row is that of the first end of the text, not of the padding
            assert_eq!(a.pooled.get(0), row(&a, 2));
        });
        assert!(ClipTextConfig { num_attention_heads: 3, ..config }.validate().is_err());
    }
}
