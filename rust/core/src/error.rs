//! The one error type of the crate. Messages are whole sentences that name what is wrong.

use std::fmt;
use std::path::PathBuf;

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
    /// There is not so much memory to be had.
    Memory(String),
    /// A file could not be read or written: what was being done ("read"), the file, why.
    Io(&'static str, PathBuf, std::io::Error),
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
            Error::Option(m) | Error::Shape(m) | Error::Data(m) | Error::Format(m) | Error::Memory(m) => {
                f.write_str(m)
            }
            Error::Io(doing, path, source) => write!(f, "cannot {doing} {}: {source}", path.display()),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Io(_, _, source) => Some(source),
            _ => None,
        }
    }
}
