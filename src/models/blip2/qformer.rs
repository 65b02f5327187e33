//! The Q-Former: a BERT of a few queries that look at the picture.

use super::{
    super::{
        checkpoint::{CheckpointError, Mapped},
        language::{
            linear::Linear,
            norm::{Norm, NormKind},
            weights::Weights,
        },
        nn::attention,
    },
    config::QFormerConfig,
};
use tch::Tensor;

/// The transformer.
#[derive(Debug)]
pub(super) struct QFormer {
    /// The queries, [1, Q, D].
    queries: Mapped,
    norm: Norm,
    layers: Vec<Layer>,
}

impl QFormer {
    /// Takes `query_tokens` and the tensors below `qformer`; pictures are `image_width` wide.
    pub(super) fn load(
        weights: &Weights<'_>,
        config: &QFormerConfig,
        queries: i64,
        image_width: i64,
    ) -> Result<Self, CheckpointError> {
        let below = weights.below("qformer");
        let layers = below.below("encoder.layer");
        let width = config.hidden_size;
        let layer = |i: i64| {
            let image_width = (i % config.cross_attention_frequency == 0).then_some(image_width);
            Layer::load(&layers.below(i), config, image_width)
        };
        Ok(Self {
            queries: weights.tensor("query_tokens", &[1, queries, width])?,
            norm: Norm::load(&below, "layernorm", width, config.layer_norm_eps, NormKind::Layer)?,
            layers: (0..config.num_hidden_layers).map(layer).collect::<Result<_, _>>()?,
        })
    }

    /// Maps the states of pictures [B, N, image width] to those of the queries [B, Q, D].
    pub(super) fn forward(&self, images: &Tensor) -> Tensor {
        let queries = self.queries.tensor().expand([images.size()[0], -1, -1], false);
        let start = self.norm.forward(&queries);
        self.layers.iter().fold(start, |x, layer| layer.forward(&x, images))
    }
}

/// Attention of queries to themselves or to the picture, added and then normalised.
#[derive(Debug)]
struct Attention {
    heads: i64,
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    norm: Norm,
}

impl Attention {
    /// Takes the tensors of an attention to tokens `inputs` wide.
    fn load(weights: &Weights<'_>, config: &QFormerConfig, inputs: i64) -> Result<Self, CheckpointError> {
        let width = config.hidden_size;
        let map = |name, inputs| Linear::load(weights, name, [inputs, width], true);
        Ok(Self {
            heads: config.num_attention_heads,
            query: map("attention.query", width)?,
            key: map("attention.key", inputs)?,
            value: map("attention.value", inputs)?,
            output: map("output.dense", width)?,
            norm: Norm::load(weights, "output.LayerNorm", width, config.layer_norm_eps, NormKind::Layer)?,
        })
    }

    /// Maps `x` [B, Q, D] that looks at `to` [B, N, inputs] to [B, Q, D].
    fn forward(&self, x: &Tensor, to: &Tensor) -> Tensor {
        let (q, k, v) = (self.query.forward(x), self.key.forward(to), self.value.forward(to));
        self.norm.forward(&(x + self.output.forward(&attention(&q, &k, &v, self.heads, false))))
    }
}

#[derive(Debug)]
struct Layer {
    itself: Attention,
    image: Option<Attention>,
    first: Linear,
    second: Linear,
    norm: Norm,
}

impl Layer {
    fn load(weights: &Weights<'_>, config: &QFormerConfig, image_width: Option<i64>) -> Result<Self, CheckpointError> {
        let (width, hidden) = (config.hidden_size, config.intermediate_size);
        let image = |inputs| Attention::load(&weights.below("crossattention"), config, inputs);
        Ok(Self {
            itself: Attention::load(&weights.below("attention"), config, width)?,
            image: image_width.map(image).transpose()?,
            first: Linear::load(weights, "intermediate_query.dense", [width, hidden], true)?,
            second: Linear::load(weights, "output_query.dense", [hidden, width], true)?,
            norm: Norm::load(weights, "output_query.LayerNorm", width, config.layer_norm_eps, NormKind::Layer)?,
        })
    }

    fn forward(&self, x: &Tensor, images: &Tensor) -> Tensor {
        let x = self.itself.forward(x, x);
        let x = self.image.as_ref().map_or(x.shallow_clone(), |image| image.forward(&x, images));
        let hidden = self.first.forward(&x).gelu_("none"); // [B, Q, hidden]
        self.norm.forward(&(&x + self.second.forward(&hidden)))
    }
}
