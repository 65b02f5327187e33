//! Why a stage does not fit its inputs or its parameters.

use std::fmt;

use crate::engine::Error;

/// Why a stage cannot be made of its parameters and inputs, and which of these it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misfit {
    /// What does not fit.
    pub at: At,
    /// Why, and what would work.
    pub message: String,
}

/// What a [`Misfit`] is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum At {
    /// A parameter, by its path below `with:`, such as `config.block_out_channels`.
    Parameter(String),
    /// The table at an input, by the name of the port.
    Input(String),
    /// The stage as a whole.
    Stage,
}

impl Misfit {
    /// A parameter that does not fit.
    pub fn parameter(path: impl Into<String>, message: impl ToString) -> Self {
        Self { at: At::Parameter(path.into()), message: message.to_string() }
    }

    /// A table that does not fit at an input.
    pub fn input(port: impl Into<String>, message: impl ToString) -> Self {
        Self { at: At::Input(port.into()), message: message.to_string() }
    }

    /// What is the fault of no single parameter and no single input.
    pub fn stage(message: impl ToString) -> Self {
        Self { at: At::Stage, message: message.to_string() }
    }
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.at {
            At::Parameter(path) => write!(f, "`{path}`: {}", self.message),
            At::Input(_) | At::Stage => f.write_str(&self.message),
        }
    }
}

impl From<Misfit> for Error {
    fn from(misfit: Misfit) -> Self {
        Self::Input(misfit.to_string())
    }
}
