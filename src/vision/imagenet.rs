//! The colours of ImageNet's photographs, by which networks see images.

/// The mean of red, green and blue on the scale 0 to 1, as torchvision, timm and Hugging Face round it.
pub const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
/// The standard deviation of red, green and blue on the scale 0 to 1.
pub const STD: [f32; 3] = [0.229, 0.224, 0.225];
