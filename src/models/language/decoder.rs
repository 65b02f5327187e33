//! A decoder-only transformer: token embeddings in, normalised states and logits out.

use super::{
    super::{
        checkpoint::{Checkpoint, CheckpointError, Mapped, format_error},
        nn::show,
    },
    attention::{Place, attend},
    cache::{Cache, CacheSize, Span},
    config::{DecoderConfig, QkvNames},
    linear::Linear,
    norm::{Norm, NormKind},
    rotary::Angles,
    weights::{Arithmetic, Use, WeightBytes, Weights, shared_matrix_bytes, weight_bytes},
};
use tch::{Device, Kind, Tensor};

/// A prompt whose places for visual tokens are not as many as these.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the prompt has {places} places for visual tokens, and the picture has {tokens} tokens")]
pub struct WrongPlaces {
    /// The image tokens in the prompt.
    pub places: i64,
    /// The visual tokens.
    pub tokens: i64,
}

/// The input maps of an attention.
#[derive(Debug)]
enum Qkv {
    Separate(Box<[Linear; 3]>),
    Packed(Linear),
}

#[derive(Debug)]
struct Layer {
    attention_norm: Norm,
    qkv: Qkv,
    output: Linear,
    feed_forward_norm: Norm,
    gate: Linear,
    up: Linear,
    down: Linear,
}

/// The transformer.
#[derive(Debug)]
pub struct Decoder {
    config: DecoderConfig,
    embedding: Mapped,
    layers: Vec<Layer>,
    norm: Norm,
    head: Linear,
    options: (Kind, Device),
}

impl Decoder {
    /// Takes the weights under the names of the config's family.
    ///
    /// # Errors
    /// [`CheckpointError::NoTensor`], and [`CheckpointError::Format`] for a bad config and for shapes that are not
    /// those of the config.
    pub fn load(weights: &Weights<'_>, config: &DecoderConfig) -> Result<Self, CheckpointError> {
        config.check().map_err(|problem| format_error(weights.path(), format!("its config is wrong: {problem}")))?;
        let (names, width) = (&config.names, config.hidden_size);
        let embedding = format!("{}.weight", names.embedding);
        let head = if weights.has(&format!("{}.weight", names.head)) && !config.tied {
            names.head
        } else {
            names.embedding // tied, or left out because it is
        };
        let layer = |i: i64| Layer::load(&weights.below(names.layers).below(i), config);
        Ok(Self {
            embedding: weights.published(&embedding, &[config.vocab_size, width])?,
            layers: (0..config.layers).map(layer).collect::<Result<_, _>>()?,
            norm: Norm::load(weights, names.norm, width, config.rms_norm_eps, NormKind::Rms)?,
            head: Linear::load(weights, head, [width, config.vocab_size], false)?,
            options: (weights.arithmetic().computing.kind(), weights.device()),
            config: config.clone(),
        })
    }

    /// Returns the sizes of the network.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Returns the type of activations and the device.
    pub fn options(&self) -> (Kind, Device) {
        self.options
    }

    /// Returns an empty cache.
    pub fn cache(&self, rows: usize, places: i64) -> Cache {
        let DecoderConfig { layers, kv_heads, head_dim, .. } = self.config;
        Cache::new(CacheSize { layers, kv_heads, head_dim }, rows, places, self.options)
    }

    /// Returns the embeddings of `ids` [..] i64 as [.., hidden_size].
    ///
    /// # Panics
    /// If an id is not below `vocab_size`.
    pub fn embed(&self, ids: &Tensor) -> Tensor {
        let ids = ids.to_device(self.options.1);
        Tensor::embedding(self.embedding.tensor(), &ids, -1, false, false).to_kind(self.options.0)
    }

    /// Returns the embeddings of a prompt [N, hidden_size], in which those of `image_token` are replaced in order by
    /// visual tokens [.., hidden_size].
    ///
    /// # Errors
    /// [`WrongPlaces`] if they are not as many.
    pub fn embed_with(&self, ids: &[i64], image_token: i64, visual: &Tensor) -> Result<Tensor, WrongPlaces> {
        let visual = visual.reshape([-1, self.config.hidden_size]);
        let is_image: Vec<i64> = (0..).zip(ids).filter(|(_, id)| **id == image_token).map(|(at, _)| at).collect();
        let (places, tokens) = (is_image.len() as i64, visual.size()[0]);
        if places != tokens {
            return Err(WrongPlaces { places, tokens });
        }
        let embeddings = self.embed(&Tensor::from_slice(ids)); // [N, hidden_size]
        let at = Tensor::from_slice(&is_image).to_device(embeddings.device());
        Ok(embeddings.index_copy(0, &at, &visual.to_kind(embeddings.kind())))
    }

    /// Maps the embeddings `x` [rows, width, hidden_size] of a span's tokens to their states after the last
    /// normalisation, of the same shape, and appends their keys and values to the cache. Rows that are shorter than the
    /// width are padded at their ends by anything finite; states of padding have no meaning.
    pub fn forward(&self, x: &Tensor, span: &Span, cache: &mut Cache) -> Tensor {
        let angles =
            self.config.rope.angles(self.config.head_dim, span.starts(), span.width(), &span.lengths(), self.options);
        let mask = if span.is_first() { None } else { span.mask(self.options.1) };
        let mut x = x.to_kind(self.options.0);
        for (i, layer) in self.layers.iter().enumerate() {
            let mut place = Place { layer: i, span, cache, mask: mask.as_ref() };
            x = layer.forward(&x, &self.config, &angles, &mut place);
            show(format_args!("layers.{i}"), &x);
        }
        cache.commit(span);
        let x = self.norm.forward(&x);
        show("norm", &x);
        x
    }

    /// Maps states [.., hidden_size] to logits [.., vocab_size] f32.
    pub fn logits(&self, states: &Tensor) -> Tensor {
        self.head.forward(states).to_kind(Kind::Float)
    }
}

/// Returns how a decoder uses a tensor, by its name below the decoder.
fn use_of(config: &DecoderConfig, name: &str) -> Option<Use> {
    let names = &config.names;
    let module = name.rsplit_once('.').map_or(name, |(module, _)| module);
    if module == names.head && config.tied {
        return None;
    }
    if module == names.embedding {
        return Some(Use::Table);
    }
    let is_norm = [names.attention_norm, names.feed_forward_norm, names.norm].iter().any(|norm| module.ends_with(norm));
    Some(if is_norm || name.ends_with(".bias") { Use::Other } else { Use::Matrix })
}

/// Returns the bytes that the weights of a network take whose decoder lies below `prefix`, by names, shapes and types alone.
/// All other weights are held as published or in the computing type, and not in int8.
pub fn decoder_and_tower_bytes(
    checkpoint: &Checkpoint,
    prefix: &str,
    config: &DecoderConfig,
    arithmetic: Arithmetic,
) -> WeightBytes {
    let exact = Arithmetic { int8: false, ..arithmetic };
    let tower = weight_bytes(checkpoint, exact, |name| (!name.starts_with(prefix)).then_some(Use::Other));
    let decoder = decoder_bytes(checkpoint, prefix, config, arithmetic);
    WeightBytes { in_file: decoder.in_file + tower.in_file, held: decoder.held + tower.held }
}

/// Returns the bytes that a decoder's weights below `prefix` take, by names, shapes and types alone.
fn decoder_bytes(checkpoint: &Checkpoint, prefix: &str, config: &DecoderConfig, arithmetic: Arithmetic) -> WeightBytes {
    let own = weight_bytes(checkpoint, arithmetic, |name| use_of(config, name.strip_prefix(prefix)?));
    let full = |name: &str| format!("{prefix}{name}.weight");
    if checkpoint.contains(&full(config.names.head)) && !config.tied {
        return own;
    }
    let head = shared_matrix_bytes(checkpoint, &full(config.names.embedding), arithmetic);
    WeightBytes { held: own.held + head, ..own }
}

impl Layer {
    fn load(weights: &Weights<'_>, config: &DecoderConfig) -> Result<Self, CheckpointError> {
        let (names, width, hidden) = (&config.names, config.hidden_size, config.intermediate_size);
        let [query, kv] = [config.heads, config.kv_heads].map(|heads| heads * config.head_dim);
        let qkv = match names.qkv {
            QkvNames::Packed(name) => {
                Qkv::Packed(Linear::load(weights, name, [width, query + 2 * kv], config.qkv_bias)?)
            }
            QkvNames::Separate([q, k, v]) => Qkv::Separate(Box::new([
                Linear::load(weights, q, [width, query], config.qkv_bias)?,
                Linear::load(weights, k, [width, kv], config.qkv_bias)?,
                Linear::load(weights, v, [width, kv], config.qkv_bias)?,
            ])),
        };
        let norm = |name| Norm::load(weights, name, width, config.rms_norm_eps, NormKind::Rms);
        let map = |name, sizes| Linear::load(weights, name, sizes, config.feed_forward_bias);
        let [gate, up, down] = names.feed_forward;
        Ok(Self {
            attention_norm: norm(names.attention_norm)?,
            qkv,
            output: Linear::load(weights, names.output, [query, width], config.output_bias)?,
            feed_forward_norm: norm(names.feed_forward_norm)?,
            gate: map(gate, [width, hidden])?,
            up: map(up, [width, hidden])?,
            down: map(down, [hidden, width])?,
        })
    }

    /// Maps [rows, N, hidden_size] to the same shape.
    fn forward(&self, x: &Tensor, config: &DecoderConfig, angles: &Angles, place: &mut Place<'_>) -> Tensor {
        let [q, k, v] = self.query_key_value(&self.attention_norm.forward(x), config);
        let (q, k) = (angles.rotate(&q), angles.rotate(&k));
        let x = x + self.output.forward(&attend(&q, &k, &v, place));
        let normed = self.feed_forward_norm.forward(&x);
        let hidden = self.gate.forward(&normed).silu_() * self.up.forward(&normed); // [rows, N, intermediate_size]
        x + self.down.forward(&hidden)
    }

    /// Maps [rows, N, hidden_size] to queries [rows, N, heads, head_dim], and keys and values [rows, N, kv_heads,
    /// head_dim].
    fn query_key_value(&self, x: &Tensor, config: &DecoderConfig) -> [Tensor; 3] {
        let size = x.size();
        let (b, n, d) = (size[0], size[1], config.head_dim);
        match &self.qkv {
            Qkv::Separate(maps) => [0, 1, 2].map(|i| maps[i].forward(x).view([b, n, -1, d])),
            Qkv::Packed(map) => {
                let group = config.heads / config.kv_heads;
                let packed = map.forward(x).view([b, n, config.kv_heads, group + 2, d]);
                let q = packed.narrow(3, 0, group).reshape([b, n, config.heads, d]);
                [q, packed.select(3, group), packed.select(3, group + 1)]
            }
        }
    }
}
