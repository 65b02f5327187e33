//! The parameters of `evaluate`.

use garde::Validate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use vlmdiff_metrics::Protocol;

/// Computes detection and localisation metrics per class and their mean over classes, by the rules of one or several
/// programs.
///
/// All metrics are exact over the stored scores and maps, which are read once. A class without ground truth has no
/// pixel metrics; an anomalous image without a mask counts in the image metrics alone. Undefined metrics are null and
/// are left out of the mean. An image without a label is not counted, nor is a pixel outside of an image's `roi`. An image
/// without class, score or map is an error. A table of scores without a column `map` has image metrics alone. A protocol has
/// null for a metric that its program lacks.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields)]
#[schemars(extend("examples" = [{}]))]
pub struct Evaluate {
    /// The rules that the metrics follow, or a list of them, with a row per class and protocol. Numbers of different
    /// protocols must not be compared.
    #[garde(length(min = 1))]
    #[serde(default = "default_protocols", deserialize_with = "one_or_more")]
    #[schemars(with = "OneOrMore")]
    pub protocol: Vec<Protocol>,
    /// The false positive rate up to which AUPRO of the protocol `exact` is integrated.
    #[garde(range(min = 0.001, max = 1.))]
    #[serde(default = "default_limit")]
    pub aupro_limit: f64,
    /// Computes 95 % intervals of all metrics but `pixel_f1`: the columns `image_auroc_low`, `image_auroc_high` and so on.
    /// They say by how much a metric differs on other images of the same source, not on other seeds of a training. Absent:
    /// none.
    #[garde(dive)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bootstrap: Option<Bootstrap>,
}

/// The bootstrap over images: the images of a class are drawn again and again, each as often as chance decides.
///
/// Metrics of images are computed exactly in each resample, those of pixels at up to 128 levels of scores by their
/// definition. The interval of a protocol lies around its metric as that of the definition does around the definition's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields)]
pub struct Bootstrap {
    /// The number of resamples.
    #[garde(range(min = 100, max = 10_000))]
    #[serde(default = "default_resamples")]
    pub resamples: u16,
    /// The seed. With the id of an image it decides how often the image is drawn.
    #[garde(skip)]
    #[serde(default)]
    pub seed: u64,
}

fn default_resamples() -> u16 {
    1_000
}

fn default_protocols() -> Vec<Protocol> {
    vec![Protocol::Exact, Protocol::Reference]
}

fn default_limit() -> f64 {
    0.3
}

#[derive(Deserialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "a protocol is `exact`, `reference`, `ader`, `mvtec`, `mvtec_ad_2`, `anomalib_1`, `anomalib_2` or `adeval`, or a list of them"
)]
enum OneOrMore {
    One(Protocol),
    More(Vec<Protocol>),
}

fn one_or_more<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<Protocol>, D::Error> {
    let protocols = match OneOrMore::deserialize(from)? {
        OneOrMore::One(protocol) => vec![protocol],
        OneOrMore::More(protocols) => protocols,
    };
    // A protocol that is listed twice is measured once.
    let mut once = Vec::new();
    for protocol in protocols {
        if !once.contains(&protocol) {
            once.push(protocol);
        }
    }
    Ok(once)
}

impl Evaluate {
    /// Returns true if images of one split are only there for a threshold.
    pub(super) fn reads_splits(&self) -> bool {
        self.protocol.contains(&Protocol::MvtecAd2)
    }
}
