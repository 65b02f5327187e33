//! The pipeline, one file a stage, in the order of data flow. The only place where the engine and the networks meet.

pub mod anomaly_maps;
pub mod caption;
pub mod column;
pub mod command;
pub mod encode_latents;
pub mod encode_text;
pub mod evaluate;
pub mod ingest;
mod likeness;
pub mod pretrained;
pub mod read;
pub mod reconstruct;
pub mod sql;
mod tensors;
pub mod train_autoencoder;
pub mod train_denoiser;
pub mod train_text_encoder;
mod training;
mod types;
mod weights;

use crate::engine::stage::{OpenFn, Stage, StageKind, open};

/// Every stage kind, as the driver knows it, in pipeline order.
pub const KINDS: &[StageKind] = &[
    StageKind::in_driver::<ingest::Ingest>(),
    StageKind::in_driver::<read::Read>(),
    StageKind::in_driver::<caption::Caption>(),
    StageKind::in_worker::<pretrained::Pretrained>(),
    StageKind::in_worker::<train_text_encoder::TrainTextEncoder>(),
    StageKind::in_worker::<encode_text::EncodeText>(),
    StageKind::in_worker::<train_autoencoder::TrainAutoencoder>(),
    StageKind::in_worker::<encode_latents::EncodeLatents>(),
    StageKind::in_worker::<train_denoiser::TrainDenoiser>(),
    StageKind::in_worker::<reconstruct::Reconstruct>(),
    StageKind::in_worker::<anomaly_maps::AnomalyMaps>(),
    StageKind::in_driver::<evaluate::Evaluate>(),
    StageKind::in_driver::<sql::Sql>(),
    StageKind::in_driver::<command::Command>(),
];

/// How the worker opens its stages. The driver must not name this: it would then link libtorch.
pub fn open_in_worker(stage: &str) -> Option<OpenFn> {
    Some(match stage {
        pretrained::Pretrained::NAME => open::<pretrained::Pretrained>,
        train_text_encoder::TrainTextEncoder::NAME => open::<train_text_encoder::TrainTextEncoder>,
        encode_text::EncodeText::NAME => open::<encode_text::EncodeText>,
        train_autoencoder::TrainAutoencoder::NAME => open::<train_autoencoder::TrainAutoencoder>,
        encode_latents::EncodeLatents::NAME => open::<encode_latents::EncodeLatents>,
        train_denoiser::TrainDenoiser::NAME => open::<train_denoiser::TrainDenoiser>,
        reconstruct::Reconstruct::NAME => open::<reconstruct::Reconstruct>,
        anomaly_maps::AnomalyMaps::NAME => open::<anomaly_maps::AnomalyMaps>,
        _ => return None,
    })
}
