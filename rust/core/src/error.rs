//! The one error type of the crate. Messages are whole sentences that name what is wrong.

use std::fmt;

#[derive(Debug)]
pub enum Error {
    /// An option or argument that makes no sense (bad group size, fit, plane count, thread count).
    Option(String),
    /// Arrays whose shapes or lengths disagree.
    Shape(String),
    /// Data that cannot be used: NaN, infinity, a scale beyond fp16, an invalid code.
    Data(String),
    /// A file that is not what it should be.
    Format(String),
    /// Reading or writing failed; the string says what was being done.
    Io(String, std::io::Error),
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub fn option(message: impl Into<String>) -> Self {
        Error::Option(message.into())
    }
    pub fn shape(message: impl Into<String>) -> Self {
        Error::Shape(message.into())
    }
    pub fn data(message: impl Into<String>) -> Self {
        Error::Data(message.into())
    }
    pub fn format(message: impl Into<String>) -> Self {
        Error::Format(message.into())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Option(m) | Error::Shape(m) | Error::Data(m) | Error::Format(m) => f.write_str(m),
            Error::Io(doing, source) => write!(f, "{doing}: {source}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Io(_, source) => Some(source),
            _ => None,
        }
    }
}
