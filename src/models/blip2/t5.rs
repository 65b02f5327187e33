//! T5 (Raffel et al. 2020) in its version 1.1, as flan-T5 has it: an encoder of the prompt and a decoder of the answer.
//! Distances are biases of the attention, which is not scaled.

use super::{
    super::{
        checkpoint::{CheckpointError, Mapped},
        language::{
            beam::Beams,
            linear::Linear,
            norm::{Norm, NormKind},
            weights::Weights,
        },
    },
    config::T5Config,
};
use tch::{Device, Kind, Tensor};

/// The names of the table of tokens, of which files hold one or several with equal values.
pub(super) const TABLES: [&str; 3] = ["shared", "encoder.embed_tokens", "decoder.embed_tokens"];

/// Encoder and decoder.
#[derive(Debug)]
pub struct T5 {
    config: T5Config,
    embedding: Mapped,
    encoder: Stack,
    decoder: Stack,
    head: Linear,
    options: (Kind, Device),
}

/// The keys and values [rows, heads, tokens, d_kv] that a block of the decoder keeps from one token to the next.
#[derive(Debug, Default)]
struct Memory {
    /// The keys and values of the answer so far.
    answer: Option<[Tensor; 2]>,
    /// The keys and values of the prompt.
    prompt: Option<[Tensor; 2]>,
}

impl T5 {
    /// Takes the tensors below `language_model`.
    pub(super) fn load(weights: &Weights<'_>, config: &T5Config) -> Result<Self, CheckpointError> {
        let sizes = [config.d_model, config.vocab_size];
        let has = |table: &&str| weights.has(&format!("{table}.weight"));
        let table = TABLES.into_iter().find(has).unwrap_or(TABLES[0]);
        let head = if config.tie_word_embeddings { table } else { "lm_head" };
        Ok(Self {
            embedding: weights.published(&format!("{table}.weight"), &[config.vocab_size, config.d_model])?,
            encoder: Stack::load(&weights.below("encoder"), config, false)?,
            decoder: Stack::load(&weights.below("decoder"), config, true)?,
            head: Linear::load(weights, head, sizes, false)?,
            options: (weights.arithmetic().computing.kind(), weights.device()),
            config: config.clone(),
        })
    }

    /// Returns the type of activations and the device.
    pub fn options(&self) -> (Kind, Device) {
        self.options
    }

    /// Returns the embeddings of `ids` [..] i64 as [.., d_model].
    pub fn embed(&self, ids: &Tensor) -> Tensor {
        let ids = ids.to_device(self.options.1);
        Tensor::embedding(self.embedding.tensor(), &ids, -1, false, false).to_kind(self.options.0)
    }

    /// Maps the embeddings of a prompt [B, N, d_model] to the states that the decoder looks at, of the same shape.
    pub fn encode(&self, prompt: &Tensor) -> Tensor {
        self.encoder.forward(prompt, None, &mut self.encoder.memory())
    }

    /// Maps the ids of an answer so far [B, M] and the states of its prompt [B, N, d_model] to logits [B, M,
    /// vocabulary] f32.
    pub fn decode(&self, ids: &Tensor, prompt: &Tensor) -> Tensor {
        self.logits(&self.decoder.forward(&self.embed(ids), Some(prompt), &mut self.decoder.memory()))
    }

    fn logits(&self, states: &Tensor) -> Tensor {
        // A table that is used twice makes logits that are larger by the root of the width.
        let scale = if self.config.tie_word_embeddings { (self.config.d_model as f64).powf(-0.5) } else { 1. };
        self.head.forward(&(states * scale)).to_kind(Kind::Float)
    }
}

/// The blocks of an encoder or a decoder.
#[derive(Debug)]
struct Stack {
    blocks: Vec<Block>,
    /// A bias per bucket of distances and head, [buckets, heads], which all blocks share.
    distances: Mapped,
    norm: Norm,
    is_decoder: bool,
    buckets: i64,
    max_distance: i64,
}

impl Stack {
    fn load(weights: &Weights<'_>, config: &T5Config, is_decoder: bool) -> Result<Self, CheckpointError> {
        let (buckets, heads) = (config.relative_attention_num_buckets, config.num_heads);
        let layers = if is_decoder { config.num_decoder_layers } else { None }.unwrap_or(config.num_layers);
        let distances = "block.0.layer.0.SelfAttention.relative_attention_bias.weight";
        let block = |i| Block::load(&weights.below("block").below(i), config, is_decoder);
        Ok(Self {
            blocks: (0..layers).map(block).collect::<Result<_, _>>()?,
            distances: weights.tensor(distances, &[buckets, heads])?,
            norm: norm(weights, "final_layer_norm", config)?,
            is_decoder,
            buckets,
            max_distance: config.relative_attention_max_distance,
        })
    }

    /// Returns an empty memory of each block.
    fn memory(&self) -> Vec<Memory> {
        self.blocks.iter().map(|_| Memory::default()).collect()
    }

    /// Maps tokens `x` [B, N, d_model] to their states. A decoder's tokens look at the states of the `prompt` and at
    /// the tokens before them, of which `memory` keeps the keys and values, to which those of `x` are added.
    fn forward(&self, x: &Tensor, prompt: Option<&Tensor>, memory: &mut [Memory]) -> Tensor {
        let before = memory.first().and_then(|memory| memory.answer.as_ref()).map_or(0, |[keys, _]| keys.size()[2]);
        let bias = self.bias(before, x.size()[1], x.kind());
        let states = self
            .blocks
            .iter()
            .zip(memory)
            .fold(x.shallow_clone(), |x, (block, memory)| block.forward(&x, &bias, prompt, memory));
        self.norm.forward(&states)
    }

    /// Returns the bias of the attention of `count` tokens after `before` ones to all of them: [1, heads, count, before
    /// + count].
    fn bias(&self, before: i64, count: i64, kind: Kind) -> Tensor {
        let device = self.distances.tensor().device();
        let counting = |n: i64| Tensor::arange(n, (Kind::Int64, device));
        let distance = counting(before + count).unsqueeze(0) - (counting(count) + before).unsqueeze(1); // [N, T]
        let buckets = self.bucket(&distance);
        let bias = Tensor::embedding(self.distances.tensor(), &buckets, -1, false, false); // [N, T, heads]
        let bias = bias.permute([2, 0, 1]).unsqueeze(0).to_kind(kind); // [1, heads, N, T]
        if self.is_decoder { bias.masked_fill(&distance.gt(0), f64::NEG_INFINITY) } else { bias }
    }

    /// Returns the buckets of distances. Half of them are for single distances, the others grow by a factor up to
    /// `max_distance`; an encoder has as many for tokens after as for those before.
    fn bucket(&self, distance: &Tensor) -> Tensor {
        let buckets = if self.is_decoder { self.buckets } else { self.buckets / 2 };
        let (far, offset) = if self.is_decoder {
            (distance.clamp_max(0).neg(), Tensor::zeros_like(distance))
        } else {
            (distance.abs(), distance.gt(0).to_kind(Kind::Int64) * buckets)
        };
        let exact = buckets / 2;
        let growth = (self.max_distance as f64 / exact as f64).ln();
        let large = (far.to_kind(Kind::Float) / exact as f64).log() / growth * (buckets - exact) as f64;
        // The logarithm of 0 is not used: such distances have buckets of their own.
        let large = (large.clamp_min(0.).to_kind(Kind::Int64) + exact).clamp_max(buckets - 1);
        offset + far.where_self(&far.less(exact), &large)
    }
}

fn norm(weights: &Weights<'_>, name: &str, config: &T5Config) -> Result<Norm, CheckpointError> {
    Norm::load(weights, name, config.d_model, config.layer_norm_epsilon, NormKind::Rms)
}

#[derive(Debug)]
struct Attention {
    norm: Norm,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    heads: i64,
}

impl Attention {
    fn load(weights: &Weights<'_>, name: &str, config: &T5Config) -> Result<Self, CheckpointError> {
        let (width, inner) = (config.d_model, config.d_kv * config.num_heads);
        let map = |x: &str, sizes| Linear::load(weights, &format!("{name}.{x}"), sizes, false);
        Ok(Self {
            norm: norm(weights, "layer_norm", config)?,
            q: map("q", [width, inner])?,
            k: map("k", [width, inner])?,
            v: map("v", [width, inner])?,
            o: map("o", [inner, width])?,
            heads: config.num_heads,
        })
    }

    /// Maps [B, N, heads · d] to [B, heads, N, d].
    fn split(&self, x: &Tensor) -> Tensor {
        let (b, n, inner) = x.size3().unwrap();
        x.view([b, n, self.heads, inner / self.heads]).transpose(1, 2)
    }

    /// Returns the keys and values of tokens [B, N, d_model].
    fn keys_values(&self, x: &Tensor) -> [Tensor; 2] {
        [self.split(&self.k.forward(x)), self.split(&self.v.forward(x))]
    }

    /// Returns the attention of normalised tokens [B, N, d_model] to keys and values: [B, N, d_model].
    fn forward(&self, normed: &Tensor, [keys, values]: &[Tensor; 2], bias: Option<&Tensor>) -> Tensor {
        let q = self.split(&self.q.forward(normed));
        let out = Tensor::scaled_dot_product_attention(&q, keys, values, bias, 0., false, Some(1.), false);
        let (b, _, n, _) = out.size4().unwrap();
        self.o.forward(&out.transpose(1, 2).reshape([b, n, -1]))
    }
}

#[derive(Debug)]
struct Block {
    itself: Attention,
    prompt: Option<Attention>,
    norm: Norm,
    gate: Linear,
    up: Linear,
    down: Linear,
}

impl Block {
    fn load(weights: &Weights<'_>, config: &T5Config, is_decoder: bool) -> Result<Self, CheckpointError> {
        let layers = weights.below("layer");
        let prompt = || Attention::load(&layers.below(1), "EncDecAttention", config);
        let last = layers.below(if is_decoder { 2 } else { 1 });
        let (width, hidden) = (config.d_model, config.d_ff);
        let map = |name: &str, sizes| Linear::load(&last, &format!("DenseReluDense.{name}"), sizes, false);
        Ok(Self {
            itself: Attention::load(&layers.below(0), "SelfAttention", config)?,
            prompt: is_decoder.then(prompt).transpose()?,
            norm: norm(&last, "layer_norm", config)?,
            gate: map("wi_0", [width, hidden])?,
            up: map("wi_1", [width, hidden])?,
            down: map("wo", [hidden, width])?,
        })
    }

    /// Maps tokens [B, N, d_model] to the same shape. Tokens of a decoder look at those of `memory` too, to which they
    /// are added, and at the states of the prompt, whose keys and values are computed with the first tokens.
    fn forward(&self, x: &Tensor, bias: &Tensor, prompt: Option<&Tensor>, memory: &mut Memory) -> Tensor {
        let normed = self.itself.norm.forward(x);
        let mut own = self.itself.keys_values(&normed);
        if let Some([keys, values]) = memory.answer.take() {
            own = [Tensor::cat(&[&keys, &own[0]], 2), Tensor::cat(&[&values, &own[1]], 2)];
        }
        let mut x = x + self.itself.forward(&normed, &own, Some(bias));
        if let Some((attention, prompt)) = self.prompt.as_ref().zip(prompt) {
            memory.answer = Some(own);
            let prompt = memory.prompt.get_or_insert_with(|| attention.keys_values(prompt));
            let rows = x.size()[0];
            let prompt = prompt.each_ref().map(|y| y.expand([rows, -1, -1, -1], false));
            x = &x + attention.forward(&attention.norm.forward(&x), &prompt, None);
        }
        let normed = self.norm.forward(&x);
        let hidden = self.gate.forward(&normed).gelu_("tanh") * self.up.forward(&normed); // [B, N, d_ff]
        &x + self.down.forward(&hidden)
    }
}

/// The beams of one prompt.
pub(super) struct T5Beams<'a> {
    model: &'a T5,
    /// The states of the prompt, [1, N, d_model].
    prompt: Tensor,
    memory: Vec<Memory>,
}

impl<'a> T5Beams<'a> {
    /// Takes the embeddings of a prompt, [tokens, d_model].
    pub(super) fn new(model: &'a T5, prompt: &Tensor) -> Self {
        let prompt = model.encode(&prompt.unsqueeze(0));
        Self { model, prompt, memory: model.decoder.memory() }
    }

    /// Appends a token to each beam, and returns the logits of the next, [beams, vocabulary].
    fn append(&mut self, tokens: &[i64]) -> Tensor {
        let x = self.model.embed(&Tensor::from_slice(tokens).unsqueeze(1)); // [beams, 1, d_model]
        let states = self.model.decoder.forward(&x, Some(&self.prompt), &mut self.memory);
        self.model.logits(&states.squeeze_dim(1))
    }
}

impl Beams for T5Beams<'_> {
    fn start(&mut self) -> Tensor {
        let logits = self.append(&[self.model.config.decoder_start_token_id]);
        logits.get(0)
    }

    fn step(&mut self, tokens: &[i64], parents: &[usize]) -> Tensor {
        let parents: Vec<i64> = parents.iter().map(|&parent| parent as i64).collect();
        let parents = Tensor::from_slice(&parents).to_device(self.model.options.1);
        for [keys, values] in self.memory.iter_mut().filter_map(|memory| memory.answer.as_mut()) {
            (*keys, *values) = (keys.index_select(0, &parents), values.index_select(0, &parents));
        }
        self.append(tokens)
    }
}
