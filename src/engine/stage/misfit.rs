//! Errors about a stage that does not fit its inputs or its parameters.

use std::fmt;

use crate::engine::Error;

/// A stage cannot be made from its parameters and inputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misfit {
    /// The parameter or input that does not fit.
    pub at: At,
    /// The reason, and what would work.
    pub message: String,
}

/// An error in a parameter.
#[derive(Debug)]
pub struct ParamError {
    /// The path of the parameter below `with:`, such as `config.block_out_channels[1]`; empty for the parameters as a
    /// whole.
    pub path: String,
    /// The error.
    pub message: String,
}

impl From<serde_path_to_error::Error<serde_json::Error>> for ParamError {
    fn from(error: serde_path_to_error::Error<serde_json::Error>) -> Self {
        let path = error.path().to_string().trim_matches('.').to_owned();
        Self { path, message: error.into_inner().to_string() }
    }
}

/// The subject of a [`Misfit`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum At {
    /// A parameter, by its path below `with:`, such as `config.block_out_channels`.
    Parameter(String),
    /// A parameter that names a file which is not here yet. A plan can be made without it.
    Absent(String),
    /// The table at an input, by the name of the port.
    Input(String),
    /// The stage as a whole.
    Stage,
}

impl Misfit {
    /// Makes a misfit of a parameter.
    pub fn parameter(path: impl Into<String>, message: impl ToString) -> Self {
        Self { at: At::Parameter(path.into()), message: message.to_string() }
    }

    /// Makes a misfit of a parameter that names a file which is not here yet.
    pub fn absent(path: impl Into<String>, message: impl ToString) -> Self {
        Self { at: At::Absent(path.into()), message: message.to_string() }
    }

    /// Makes a misfit of the table at an input.
    pub fn input(port: impl Into<String>, message: impl ToString) -> Self {
        Self { at: At::Input(port.into()), message: message.to_string() }
    }

    /// Makes a misfit that no single parameter or input causes.
    pub fn stage(message: impl ToString) -> Self {
        Self { at: At::Stage, message: message.to_string() }
    }
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.at {
            At::Parameter(path) | At::Absent(path) => write!(f, "`{path}`: {}", self.message),
            At::Input(_) | At::Stage => f.write_str(&self.message),
        }
    }
}

impl From<Misfit> for Error {
    fn from(misfit: Misfit) -> Self {
        Self::Input(misfit.to_string())
    }
}
