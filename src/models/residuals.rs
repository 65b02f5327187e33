//! The output of a control branch, which the U-Net reads.

use tch::Tensor;

/// The maps that a control network adds to those of the UNet.
#[derive(Debug)]
pub struct ControlResiduals {
    /// Maps for the UNet's skips, in the order in which the UNet makes them. If there are fewer, they are for the last
    /// skips.
    pub skips: Vec<Tensor>,
    /// The addend of the map after the middle block.
    pub mid: Tensor,
}
