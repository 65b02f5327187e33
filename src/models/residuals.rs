//! What a control branch hands to the U-Net.

use tch::Tensor;

/// What a control network adds to the UNet.
#[derive(Debug)]
pub struct ControlResiduals {
    /// For the last of the UNet's skips, as many as there are, in the order in which the UNet makes them.
    pub skips: Vec<Tensor>,
    /// For the map after the middle block.
    pub mid: Tensor,
}
