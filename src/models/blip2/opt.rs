//! OPT (Zhang et al. 2022), a decoder with learned positions.

use super::{
    super::{
        checkpoint::{CheckpointError, Mapped},
        language::{
            attention::{Place, attend},
            beam::Beams,
            cache::{Cache, CacheFull, CacheSize, Span},
            linear::Linear,
            norm::{Norm, NormKind},
            weights::Weights,
        },
    },
    config::OptConfig,
};
use tch::{Device, Kind, Tensor};

/// The rows of the position table before that of the first token.
const FIRST_POSITION: i64 = 2;
/// Epsilon of the normalisations, which no config states.
const EPS: f64 = 1e-5;

/// The decoder.
#[derive(Debug)]
pub struct Opt {
    config: OptConfig,
    embedding: Mapped,
    /// [2 + tokens, hidden_size]
    positions: Mapped,
    layers: Vec<Layer>,
    norm: Norm,
    head: Linear,
    options: (Kind, Device),
}

impl Opt {
    /// Takes the tensors below `language_model`. The table of tokens is the map to the logits where `lm_head` is left
    /// out.
    pub(super) fn load(weights: &Weights<'_>, config: &OptConfig) -> Result<Self, CheckpointError> {
        let decoder = weights.below("model.decoder");
        let (width, tokens) = (config.hidden_size, config.max_position_embeddings + FIRST_POSITION);
        let head = if weights.has("lm_head.weight") { "lm_head" } else { "model.decoder.embed_tokens" };
        let layers = decoder.below("layers");
        Ok(Self {
            embedding: decoder.published("embed_tokens.weight", &[config.vocab_size, width])?,
            positions: decoder.tensor("embed_positions.weight", &[tokens, width])?,
            layers: (0..config.num_hidden_layers)
                .map(|i| Layer::load(&layers.below(i), config))
                .collect::<Result<_, _>>()?,
            norm: Norm::load(&decoder, "final_layer_norm", width, EPS, NormKind::Layer)?,
            head: Linear::load(weights, head, [width, config.vocab_size], false)?,
            options: (weights.arithmetic().computing.kind(), weights.device()),
            config: config.clone(),
        })
    }

    /// Returns the type of activations and the device.
    pub fn options(&self) -> (Kind, Device) {
        self.options
    }

    /// Returns an empty cache.
    pub fn cache(&self, rows: usize, places: i64) -> Cache {
        let heads = self.config.num_attention_heads;
        let head_dim = self.config.hidden_size / heads;
        let size = CacheSize { layers: self.config.num_hidden_layers, kv_heads: heads, head_dim };
        Cache::new(size, rows, places.min(self.config.max_position_embeddings), self.options)
    }

    /// Returns the embeddings of `ids` [..] i64 as [.., hidden_size], without positions.
    pub fn embed(&self, ids: &Tensor) -> Tensor {
        let ids = ids.to_device(self.options.1);
        Tensor::embedding(self.embedding.tensor(), &ids, -1, false, false).to_kind(self.options.0)
    }

    /// Maps the embeddings `x` [rows, width, hidden_size] of a span's tokens to logits [rows, width, vocabulary] f32,
    /// and appends their keys and values to the cache.
    pub fn forward(&self, x: &Tensor, span: &Span, cache: &mut Cache) -> Tensor {
        let mask = if span.is_first() { None } else { span.mask(self.options.1) };
        let positions = span.starts().iter().map(|start| {
            self.positions.tensor().narrow(0, start + FIRST_POSITION, span.width()) // [width, hidden_size]
        });
        let mut x = x + Tensor::stack(&positions.collect::<Vec<_>>(), 0);
        for (layer, block) in self.layers.iter().enumerate() {
            let mut place = Place { layer, span, cache, mask: mask.as_ref() };
            x = block.forward(&x, self.config.num_attention_heads, &mut place);
        }
        cache.commit(span);
        self.head.forward(&self.norm.forward(&x)).to_kind(Kind::Float)
    }
}

#[derive(Debug)]
struct Layer {
    attention_norm: Norm,
    qkv: [Linear; 3],
    output: Linear,
    norm: Norm,
    fc1: Linear,
    fc2: Linear,
}

impl Layer {
    fn load(weights: &Weights<'_>, config: &OptConfig) -> Result<Self, CheckpointError> {
        let (width, hidden) = (config.hidden_size, config.ffn_dim);
        let norm = |name| Norm::load(weights, name, width, EPS, NormKind::Layer);
        let map = |name: &str, sizes| Linear::load(weights, name, sizes, true);
        let square = |name| map(name, [width, width]);
        Ok(Self {
            attention_norm: norm("self_attn_layer_norm")?,
            qkv: [square("self_attn.q_proj")?, square("self_attn.k_proj")?, square("self_attn.v_proj")?],
            output: square("self_attn.out_proj")?,
            norm: norm("final_layer_norm")?,
            fc1: map("fc1", [width, hidden])?,
            fc2: map("fc2", [hidden, width])?,
        })
    }

    fn forward(&self, x: &Tensor, heads: i64, place: &mut Place<'_>) -> Tensor {
        let (b, n, width) = x.size3().unwrap();
        let normed = self.attention_norm.forward(x);
        let [q, k, v] = self.qkv.each_ref().map(|map| map.forward(&normed).view([b, n, heads, width / heads]));
        let x = x + self.output.forward(&attend(&q, &k, &v, place));
        &x + self.fc2.forward(&self.fc1.forward(&self.norm.forward(&x)).relu_())
    }
}

/// The beams of one prompt.
pub(super) struct OptBeams<'a> {
    model: &'a Opt,
    prompt: &'a Tensor,
    cache: Cache,
}

impl<'a> OptBeams<'a> {
    /// Takes a prompt [tokens, hidden_size] and allocates a cache for it and `new_tokens` of each beam.
    ///
    /// # Errors
    /// [`CacheFull`] if the model has too few positions for them.
    pub(super) fn new(model: &'a Opt, prompt: &'a Tensor, beams: usize, new_tokens: usize) -> Result<Self, CacheFull> {
        let needed = prompt.size()[0] + new_tokens as i64;
        let cache = model.cache(beams, needed);
        if needed > cache.places() {
            return Err(CacheFull { needed, places: cache.places() });
        }
        Ok(Self { model, prompt, cache })
    }

    /// Appends embeddings [rows, width, hidden_size] to the first rows, and returns the logits of the last token of
    /// each, [rows, vocabulary].
    fn append(&mut self, x: &Tensor) -> Tensor {
        let (rows, width, _) = x.size3().unwrap();
        let numbers: Vec<usize> = (0..rows as usize).collect();
        match self.cache.span(&numbers, &vec![width; rows as usize]) {
            // `new` has made sure that every token has a place.
            Ok(span) => self.model.forward(x, &span, &mut self.cache).select(1, width - 1),
            Err(_full) => Tensor::zeros([rows, self.model.config.vocab_size], (Kind::Float, self.model.options.1)),
        }
    }
}

impl Beams for OptBeams<'_> {
    fn start(&mut self) -> Tensor {
        let logits = self.append(&self.prompt.unsqueeze(0));
        logits.get(0)
    }

    fn step(&mut self, tokens: &[i64], parents: &[usize]) -> Tensor {
        self.cache.reorder(parents);
        let x = self.model.embed(&Tensor::from_slice(tokens).unsqueeze(1)); // [beams, 1, hidden_size]
        self.append(&x)
    }
}
