//! The answers, as JSON.

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::inspect::Verdict;

/// The verdict in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Word {
    /// The score is above the threshold.
    Anomalous,
    /// The score is not above the threshold.
    Good,
    /// No threshold is known.
    None,
}

impl Word {
    pub(super) fn of(anomalous: Option<bool>) -> Self {
        match anomalous {
            Some(true) => Self::Anomalous,
            Some(false) => Self::Good,
            None => Self::None,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Anomalous => "anomalous",
            Self::Good => "good",
            Self::None => "none",
        }
    }
}

/// The answer to a photograph.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub(super) struct Answer {
    /// The verdict in a word.
    pub(super) verdict: Word,
    #[serde(flatten)]
    pub(super) judged: Verdict,
    /// The threshold of the pixels of its map, which bounds mask and regions; null if none is known.
    pub(super) pixel_threshold: Option<f64>,
    /// The values of its map that are drawn darkest and brightest, the same for all photographs of a class; null without
    /// a map.
    pub(super) map_scale: Option<[f32; 2]>,
    /// The BLAKE3 digest of the bytes.
    pub(super) digest: String,
    /// The name of the file, if the request gave one.
    pub(super) name: Option<String>,
    /// The width of the photograph as it is shown.
    pub(super) width: u32,
    /// Its height.
    pub(super) height: u32,
    /// The time at which it was judged, in milliseconds since 1970.
    pub(super) judged_ms: u64,
    /// Its pictures.
    pub(super) links: Links,
}

/// The paths of the pictures of a photograph. They are there as long as the server keeps the photograph.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub(super) struct Links {
    /// This answer.
    pub(super) verdict: String,
    /// The photograph as it was sent.
    pub(super) photograph: String,
    /// The anomaly map in 16 bits of grey; null without a map.
    pub(super) map: Option<String>,
    /// The map in colours over the photograph, a square around the most anomalous patch if that is known; null without a map.
    pub(super) overlay: Option<String>,
    /// 255 where the map is above the threshold of pixels; null without one.
    pub(super) mask: Option<String>,
    /// The good photograph as it was fitted on, a square around the nearest patch; null if none is sought.
    pub(super) nearest: Option<String>,
}

impl Links {
    pub(super) fn of(id: &str, has_map: bool, has_mask: bool, has_nearest: bool) -> Self {
        let link = |file: &str| format!("/v1/images/{id}/{file}");
        Self {
            verdict: format!("/v1/images/{id}"),
            photograph: link("photograph"),
            map: has_map.then(|| link("map.png")),
            overlay: has_map.then(|| link("overlay.png")),
            mask: (has_map && has_mask).then(|| link("mask.png")),
            nearest: has_nearest.then(|| link("nearest.png")),
        }
    }
}

/// The photographs that the server keeps.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Images {
    /// Their number.
    pub(super) total: usize,
    /// Some of them, in the order that was asked for.
    pub(super) images: Vec<Answer>,
}

/// The state of the server.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Health {
    /// `ok`, as long as the server takes photographs.
    pub(super) status: &'static str,
    /// The pipeline.
    pub(super) pipeline: String,
    /// The digest of the model.
    pub(super) model: String,
    /// The number of photographs that wait or are being judged.
    pub(super) queue: usize,
    /// The greatest number of these.
    pub(super) queue_limit: usize,
}

/// An error.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Problem {
    /// The reason why there is no answer, with what would work.
    pub(super) error: String,
}

/// An answer that is an error.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    message: String,
    retry_after: Option<u64>,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), retry_after: None }
    }

    /// Refuses a request that may come again after some seconds.
    pub(super) fn busy(message: impl Into<String>, seconds: u64) -> Self {
        Self { retry_after: Some(seconds), ..Self::new(StatusCode::TOO_MANY_REQUESTS, message) }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = (self.status, json(&Problem { error: self.message })).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"vlmdiff\""));
        }
        response
    }
}

/// Returns a value as JSON with its media type.
pub(super) fn json(value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(bytes) => ([(header::CONTENT_TYPE, "application/json")], bytes).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
