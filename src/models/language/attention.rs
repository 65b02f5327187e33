//! Attention to the tokens in a cache.

use super::cache::{Cache, Span};
use tch::Tensor;

/// The place of an attention: its layer, the new tokens, and the keys and values before them.
#[derive(Debug)]
pub(in crate::models) struct Place<'a> {
    pub(in crate::models) layer: usize,
    pub(in crate::models) span: &'a Span,
    pub(in crate::models) cache: &'a mut Cache,
    /// [`Span::mask`]; not needed for a span that is the first of its rows.
    pub(in crate::models) mask: Option<&'a Tensor>,
}

/// Returns the causal attention of queries [rows, N, heads, d] to keys and values [rows, N, kv_heads, d] and those
/// before them in the cache, to which they are added: [rows, N, heads · d].
pub(in crate::models) fn attend(q: &Tensor, k: &Tensor, v: &Tensor, place: &mut Place<'_>) -> Tensor {
    let (b, n, heads, d) = q.size4().unwrap();
    let kv_heads = k.size()[2];
    place.cache.write(place.layer, place.span, k, v);
    if n == 1 && !place.span.is_first() {
        // The query heads that share a key head are its queries, so that keys are not repeated.
        let q = q.reshape([b, kv_heads, heads / kv_heads, d]);
        let [k, v] = place.cache.read(place.layer, place.span); // [rows, kv_heads, T, d]
        let out = Tensor::scaled_dot_product_attention(&q, &k, &v, place.mask, 0., false, None, false);
        return out.reshape([b, 1, heads * d]);
    }
    let [k, v] = if place.span.is_first() {
        [k, v].map(|x| x.transpose(1, 2)) // [rows, kv_heads, N, d]
    } else {
        place.cache.read(place.layer, place.span) // [rows, kv_heads, T, d]
    };
    let repeat = |x: &Tensor| {
        let length = x.size()[2];
        let group = [b, kv_heads, heads / kv_heads, length, d];
        x.unsqueeze(2).expand(group, false).reshape([b, heads, length, d])
    };
    let causal = place.mask.is_none();
    let q = q.transpose(1, 2); // [rows, heads, N, d]
    let out = Tensor::scaled_dot_product_attention(&q, &repeat(&k), &repeat(&v), place.mask, 0., causal, None, false);
    out.transpose(1, 2).reshape([b, n, heads * d])
}
