//! Errors as clients see them.

use tonic::{Code, Status};

use crate::engine::Error;

/// The maximum length of a message in bytes. It is sent as a header, in which a byte may become three, and clients take
/// headers of 8 KiB.
const LONGEST: usize = 2000;

/// The answer to a request to write.
const ONLY_READS: &str = "published tables are only read here; a run of their pipeline writes them";

/// Makes the answer about an error.
pub(super) fn status(error: &Error) -> Status {
    let code = match error {
        Error::Memory(_) => Code::ResourceExhausted,
        Error::Damaged(_) | Error::Lost { .. } => Code::DataLoss,
        Error::Store(_) => Code::Unavailable,
        error if error.is_input() => Code::InvalidArgument,
        _ => Code::Internal,
    };
    Status::new(code, shortened(error.to_string()))
}

/// Makes the answer to a request that would write or begin a transaction.
pub(super) fn only_reads(what: &str) -> Status {
    Status::invalid_argument(format!("{what}: {ONLY_READS}"))
}

/// Makes the answer about something that ended unexpectedly.
pub(super) fn unexpected(error: impl std::fmt::Display) -> Status {
    Status::internal(shortened(format!("the server failed: {error}")))
}

fn shortened(mut message: String) -> String {
    if message.len() > LONGEST {
        let end = (0..=LONGEST).rev().find(|at| message.is_char_boundary(*at)).unwrap_or_default();
        message.truncate(end);
        message.push('…');
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_fits_into_a_header() {
        let told = status(&Error::Input("ä".repeat(3000)));
        assert_eq!((told.code(), told.message().chars().count()), (Code::InvalidArgument, LONGEST / 2 + 1));
        assert_eq!(status(&Error::Memory("short".into())).message(), "short");
    }
}
