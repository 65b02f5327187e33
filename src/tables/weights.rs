//! Trained weights: the column that names them, and the configuration of their network that travels with it.

use std::collections::HashMap;

use arrow::datatypes::{DataType, Field};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::engine::stage::{Column, Misfit, Schemas};

/// The digest of the file of weights. If several rows have one, the last counts.
pub const WEIGHTS: &str = "weights";

/// The key of the network's configuration in a weights file's metadata, and of the column that names the file.
pub const CONFIG: &str = "config";
/// The key of a text encoder's tokenizer in a weights file's metadata.
pub const TOKENIZER: &str = "tokenizer";

/// Returns the column that names weights, with the configuration of their network.
pub fn weights_field(config: &impl Serialize) -> Field {
    let config = serde_json::to_string(config).unwrap_or_default();
    Field::new(WEIGHTS, DataType::Utf8, true).with_metadata(HashMap::from([(CONFIG.to_owned(), config)]))
}

/// Returns the column that names weights, as a stage reads it; [`config_of`] checks of which network they are.
pub fn weights_column() -> Column {
    Column::any(WEIGHTS)
}

/// Returns the configuration that [`weights_field`] put beside the weights of the table at `port`.
pub fn config_of<C: Serialize + DeserializeOwned>(inputs: &Schemas, port: &str) -> Result<C, Misfit> {
    let weights = inputs.field(port, WEIGHTS)?;
    let none = || {
        Misfit::input(
            port,
            format!("`{port}` names no weights of a network: a training or `pretrained` makes such a table"),
        )
    };
    let json = weights.metadata().get(CONFIG).ok_or_else(none)?;
    let other = |why: String| Misfit::input(port, format!("`{port}` names weights of another network: {why}"));
    let config: C = serde_json::from_str(json).map_err(|e| other(e.to_string()))?;
    // If all values have defaults, only unknown keys show that a configuration is that of another network.
    let [theirs, ours]: [Value; 2] =
        [serde_json::from_str(json), serde_json::to_value(&config)].map(Result::unwrap_or_default);
    match theirs.as_object().and_then(|theirs| theirs.keys().find(|key| ours.get(key).is_none())) {
        Some(key) => Err(other(format!("its configuration has `{key}`"))),
        None => Ok(config),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::datatypes::Schema;

    use super::*;
    use crate::models::{clip::ClipTextConfig, vae::AutoencoderKlConfig};

    #[test]
    fn weights_of_another_network_are_refused() {
        let inputs = |field: Field| Schemas {
            all: [("autoencoder".to_owned(), Arc::new(Schema::new(vec![field])))].into(),
            by_row: Vec::new(),
        };
        let read = |field| config_of::<AutoencoderKlConfig>(&inputs(field), "autoencoder");
        let own = AutoencoderKlConfig { latent_channels: 8, ..Default::default() };
        assert_eq!(read(weights_field(&own)), Ok(own));
        let other = read(weights_field(&ClipTextConfig::default())).unwrap_err().to_string();
        assert!(
            other.starts_with("`autoencoder` names weights of another network: its configuration has `"),
            "{other}"
        );
        assert!(
            read(Field::new("weights", DataType::Utf8, true))
                .unwrap_err()
                .to_string()
                .starts_with("`autoencoder` names no weights")
        );
    }
}
