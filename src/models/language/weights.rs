//! The tensors of a checkpoint as layers read them.

use super::super::checkpoint::{Checkpoint, CheckpointError, Mapped, format_error};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{fmt::Display, path::Path};
use tch::{Device, Kind, Tensor};

/// The number of rows that are quantised at once, which bounds the memory that loading takes beside the result.
const ROWS_AT_ONCE: i64 = 1024;

/// libtorch's product with an int8 matrix takes outputs and inputs in steps of this many.
pub(super) const INT8_STEP: i64 = 64;

/// The type of numbers in which a network computes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Computing {
    /// bfloat16, the type of most published weights.
    #[default]
    Bf16,
    /// float32.
    F32,
}

impl Computing {
    /// Returns libtorch's name of the type.
    pub fn kind(self) -> Kind {
        match self {
            Self::Bf16 => Kind::BFloat16,
            Self::F32 => Kind::Float,
        }
    }
}

/// The types of numbers in which a network computes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Arithmetic {
    /// The type of activations, and of weights that are not int8.
    pub computing: Computing,
    /// Holds the matrices of linear maps in int8 with a scale per output. It halves the bytes that decoding reads per
    /// token, at the cost of a relative error of up to 1/254 of the largest weight of each output.
    pub int8: bool,
}

/// The bytes that the weights of a network take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WeightBytes {
    /// Bytes in the maps of the files: in memory while there is room.
    pub in_file: u64,
    /// Bytes of converted copies, which the program holds.
    pub held: u64,
}

impl WeightBytes {
    /// Returns the bytes that are read to compute with all weights once.
    pub fn total(self) -> u64 {
        self.in_file + self.held
    }
}

/// The way in which a tensor is used, which decides the form in which it is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// A table of which rows are picked: held as published.
    Table,
    /// The matrix of a linear map.
    Matrix,
    /// Anything else: held in the computing type.
    Other,
}

/// A matrix [outputs, inputs] in int8, and the scale of each output. It is filled with outputs of 0 up to a multiple of
/// [`INT8_STEP`]: a vocabulary of 151,655 words, a quarter of the weights of a small model, is no such multiple.
#[derive(Debug)]
pub(in crate::models) struct Quantised {
    /// Values from -127 to 127, [outputs and filling, inputs] int8.
    pub(in crate::models) values: Tensor,
    /// The factor of each row in the computing type, \[outputs and filling\].
    pub(in crate::models) scales: Tensor,
}

/// A part of a checkpoint, with the device and arithmetic of the layers that are made of it.
#[derive(Debug, Clone)]
pub struct Weights<'a> {
    checkpoint: &'a Checkpoint,
    prefix: String,
    device: Device,
    arithmetic: Arithmetic,
}

impl<'a> Weights<'a> {
    /// Takes all of a checkpoint.
    pub fn new(checkpoint: &'a Checkpoint, arithmetic: Arithmetic, device: Device) -> Self {
        Self { checkpoint, prefix: String::new(), device, arithmetic }
    }

    /// Returns the part of the tensors below `name`.
    pub fn below(&self, name: impl Display) -> Self {
        Self { prefix: format!("{}{name}.", self.prefix), ..self.clone() }
    }

    /// Returns the same tensors without quantisation.
    pub fn exact(&self) -> Self {
        Self { arithmetic: Arithmetic { int8: false, ..self.arithmetic }, ..self.clone() }
    }

    /// Returns the arithmetic.
    pub fn arithmetic(&self) -> Arithmetic {
        self.arithmetic
    }

    /// Returns the device.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Returns the file.
    pub fn path(&self) -> &'a Path {
        self.checkpoint.path()
    }

    /// Returns true if there is a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        self.checkpoint.contains(&self.full(name))
    }

    /// Returns the shape of a tensor.
    ///
    /// # Errors
    /// [`CheckpointError::NoTensor`].
    pub fn shape(&self, name: &str) -> Result<Vec<i64>, CheckpointError> {
        let full = self.full(name);
        let shape = self.checkpoint.shape(&full).map(<[i64]>::to_vec);
        shape.ok_or_else(|| CheckpointError::NoTensor { path: self.path().to_owned(), name: full })
    }

    fn full(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// Returns the full name of a tensor that has to have this shape.
    fn checked(&self, name: &str, shape: &[i64]) -> Result<String, CheckpointError> {
        let full = self.full(name);
        let found = self.checkpoint.shape(&full);
        let path = self.checkpoint.path();
        match found {
            None => Err(CheckpointError::NoTensor { path: path.to_owned(), name: full }),
            Some(found) if found != shape => Err(format_error(
                path,
                format!("{full} is {found:?}, and {shape:?} by config.json; both have to be of one download"),
            )),
            Some(_) => Ok(full),
        }
    }

    /// Returns a tensor in its published type; on the CPU without a copy.
    ///
    /// # Errors
    /// [`CheckpointError::NoTensor`]; [`CheckpointError::Format`] for another shape.
    pub fn published(&self, name: &str, shape: &[i64]) -> Result<Mapped, CheckpointError> {
        let full = self.checked(name, shape)?;
        match (self.device, self.checkpoint.kind(&full)) {
            (Device::Cpu, _) | (_, None) => self.checkpoint.mapped(&full),
            (device, Some(kind)) => self.checkpoint.converted(&full, kind, device).map(Mapped::owned),
        }
    }

    /// Returns a tensor in the computing type; on the CPU without a copy if that is its published type.
    ///
    /// # Errors
    /// The errors of [`published`](Self::published).
    pub fn tensor(&self, name: &str, shape: &[i64]) -> Result<Mapped, CheckpointError> {
        let full = self.checked(name, shape)?;
        let kind = self.arithmetic.computing.kind();
        if self.device == Device::Cpu && self.checkpoint.kind(&full) == Some(kind) {
            return self.checkpoint.mapped(&full);
        }
        self.checkpoint.converted(&full, kind, self.device).map(Mapped::owned)
    }

    /// Quantises a matrix to int8: each row is divided by 1/127 of its largest absolute value and rounded.
    pub(in crate::models) fn quantised(&self, name: &str, shape: [i64; 2]) -> Result<Quantised, CheckpointError> {
        let full = self.checked(name, &shape)?;
        let whole = self.checkpoint.mapped(&full)?;
        let filled = shape[0] + (-shape[0]).rem_euclid(INT8_STEP);
        let values = Tensor::empty([filled, shape[1]], (Kind::Int8, self.device));
        let _ = values.narrow(0, shape[0], filled - shape[0]).zero_();
        let scales = Tensor::zeros([filled], (self.arithmetic.computing.kind(), self.device));
        let mut first = 0;
        while first < shape[0] {
            let rows = ROWS_AT_ONCE.min(shape[0] - first);
            let part = whole.tensor().narrow(0, first, rows).to_kind(Kind::Float); // [rows, inputs]
            // A scale is rounded to the computing type first, so that the values are those of the scale that is used.
            let scale = (part.abs().amax([1], true) / 127.).clamp_min(f64::from(f32::MIN_POSITIVE));
            let scale = scale.to_kind(scales.kind()).to_kind(Kind::Float); // [rows, 1]
            values.narrow(0, first, rows).copy_(&(part / &scale).round().clamp(-127., 127.));
            scales.narrow(0, first, rows).copy_(&scale.squeeze_dim(1));
            first += rows;
        }
        self.checkpoint.give_back(&full);
        Ok(Quantised { values, scales })
    }
}

/// Returns the bytes that a linear map takes beside the table of which it is the matrix: none if both are held in the
/// same form.
pub fn shared_matrix_bytes(checkpoint: &Checkpoint, table: &str, arithmetic: Arithmetic) -> u64 {
    let (Some(shape), kind) = (checkpoint.shape(table), arithmetic.computing.kind()) else { return 0 };
    let (elements, width) = (shape.iter().product::<i64>() as u64, kind.elt_size_in_bytes() as u64);
    if arithmetic.int8 {
        elements + shape[0] as u64 * width
    } else if checkpoint.kind(table) == Some(kind) {
        0
    } else {
        elements * width
    }
}

/// Returns the bytes that the tensors of a checkpoint take on the CPU, read from names, shapes and types alone. `used`
/// says how each tensor is used; None is a tensor that is not.
pub fn weight_bytes(
    checkpoint: &Checkpoint,
    arithmetic: Arithmetic,
    used: impl Fn(&str) -> Option<Use>,
) -> WeightBytes {
    let mut bytes = WeightBytes::default();
    let kind = arithmetic.computing.kind();
    let width = |kind: Kind| kind.elt_size_in_bytes() as u64;
    for name in checkpoint.names() {
        let (Some(used), Some(shape), Some(published)) = (used(name), checkpoint.shape(name), checkpoint.kind(name))
        else {
            continue;
        };
        let elements = shape.iter().product::<i64>() as u64;
        if used == Use::Matrix && arithmetic.int8 {
            bytes.held += elements + shape[0] as u64 * width(kind);
        } else if used == Use::Table || published == kind {
            bytes.in_file += elements * width(published);
        } else {
            bytes.held += elements * width(kind);
        }
    }
    bytes
}
