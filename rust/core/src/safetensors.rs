//! The header of a safetensors file, read as if an enemy had written it.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::error::{Error, Result};

/// A header longer than this is refused (the format's own limit).
pub const MAX_HEADER: u64 = 100_000_000;

/// One tensor; `begin..end` are absolute positions in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub name: String,
    pub dtype: String,
    pub shape: Vec<u64>,
    pub begin: u64,
    pub end: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    pub metadata: BTreeMap<String, String>,
    /// By position in the file.
    pub tensors: Vec<Entry>,
}

/// Bytes of one element; None for a type this reader does not know.
pub fn dtype_size(dtype: &str) -> Option<u64> {
    Some(match dtype {
        "BOOL" | "U8" | "I8" | "F8_E4M3" | "F8_E5M2" | "F8_E8M0" => 1,
        "I16" | "U16" | "F16" | "BF16" => 2,
        "I32" | "U32" | "F32" => 4,
        "I64" | "U64" | "F64" | "C64" => 8,
        _ => return None,
    })
}

/// A JSON object that refuses to hold a key twice.
struct Unique<T>(Vec<(String, T)>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Unique<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Keys<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Keys<T> {
            type Value = Unique<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self::Value, A::Error> {
                let mut seen = std::collections::HashSet::new();
                let mut out = Vec::new();
                while let Some((key, value)) = map.next_entry::<String, T>()? {
                    if !seen.insert(key.clone()) {
                        return Err(serde::de::Error::custom(format!("the key {key:?} appears twice")));
                    }
                    out.push((key, value));
                }
                Ok(Unique(out))
            }
        }
        deserializer.deserialize_map(Keys(std::marker::PhantomData))
    }
}

/// A value of the header's top level: the metadata (string -> string) or a tensor's record, their values as they
/// stand, so that nothing is built of what nobody asks for.
type Record<'a> = Unique<&'a RawValue>;

/// Read and check the header of `path`. Errors name the file and the tensor.
pub fn read_header(path: &Path) -> Result<Header> {
    let shown = path.display();
    let io = |e| Error::Io("read", path.to_owned(), e);
    let mut file = File::open(path).map_err(io)?;
    let meta = file.metadata().map_err(io)?;
    if !meta.is_file() {
        return Err(Error::format(format!("{shown} is not a file")));
    }
    let size = meta.len();
    let mut prefix = [0u8; 8];
    if size < 8 {
        return Err(Error::format(format!("{shown}: {size} bytes are too few for a safetensors file")));
    }
    file.read_exact(&mut prefix).map_err(io)?;
    let length = u64::from_le_bytes(prefix);
    if length > MAX_HEADER {
        return Err(Error::format(format!(
            "{shown}: the header claims {length} bytes, more than the {MAX_HEADER} that the format allows"
        )));
    }
    if length > size - 8 {
        return Err(Error::format(format!(
            "{shown}: the header claims {length} bytes, but the file has {} after its length",
            size - 8
        )));
    }
    let mut text = vec![0u8; length as usize];
    file.read_exact(&mut text).map_err(io)?;
    parse_header(&text, size).map_err(|e| Error::format(format!("{shown}: {e}")))
}

/// Check a header's JSON for a file of `file_size` bytes in all.
pub fn parse_header(text: &[u8], file_size: u64) -> Result<Header> {
    if text.first() != Some(&b'{') {
        return Err(Error::format("the header is not a JSON object"));
    }
    let records: Unique<Record<'_>> =
        serde_json::from_slice(text).map_err(|e| Error::format(format!("the header is not valid: {e}")))?;
    let data = 8 + text.len() as u64;
    if data > file_size {
        return Err(Error::format("the file ends inside its header"));
    }
    let mut header = Header::default();
    for (name, Unique(fields)) in records.0 {
        if name == "__metadata__" {
            for (key, value) in fields {
                let Ok(value) = serde_json::from_str(value.get()) else {
                    return Err(Error::format(format!("metadata {key:?} is not a string")));
                };
                header.metadata.insert(key, value);
            }
        } else {
            header.tensors.push(entry(name, fields, data, file_size)?);
        }
    }
    header.tensors.sort_by(|a, b| (a.begin, a.end, &a.name).cmp(&(b.begin, b.end, &b.name)));
    let mut at = data;
    for tensor in &header.tensors {
        if tensor.begin < at {
            return Err(Error::format(format!("tensor {:?} overlaps the one before it", tensor.name)));
        }
        if tensor.begin > at {
            return Err(Error::format(format!(
                "{} bytes before tensor {:?} belong to no tensor",
                tensor.begin - at,
                tensor.name
            )));
        }
        at = tensor.end;
    }
    if at != file_size {
        return Err(Error::format(format!(
            "{} bytes after the last tensor belong to no tensor",
            file_size - at
        )));
    }
    Ok(header)
}

fn entry(name: String, fields: Vec<(String, &RawValue)>, data: u64, file_size: u64) -> Result<Entry> {
    let bad = |what: String| Error::format(format!("tensor {name:?}: {what}"));
    let (mut dtype, mut shape, mut offsets) = (None, None, None);
    for (key, value) in fields {
        match key.as_str() {
            "dtype" => dtype = serde_json::from_str(value.get()).ok(),
            "shape" => shape = numbers(value),
            "data_offsets" => offsets = numbers(value),
            _ => {} // additions to the format are passed over
        }
    }
    let dtype: String = dtype.ok_or_else(|| bad("dtype is missing or not a string".into()))?;
    let shape = shape.ok_or_else(|| bad("shape is missing or not a list of sizes".into()))?;
    let (begin, end) = match offsets.as_deref() {
        Some(&[begin, end]) => (begin, end),
        _ => return Err(bad("data_offsets is missing or not two positions".into())),
    };
    let size = dtype_size(&dtype).ok_or_else(|| bad(format!("unknown dtype {dtype:?}")))?;
    let bytes = shape
        .iter()
        .try_fold(size, |product, &n| product.checked_mul(n))
        .ok_or_else(|| bad("its shape overflows".into()))?;
    let room = file_size - data;
    if begin > end || end > room {
        return Err(bad(format!("its data [{begin}, {end}) lies outside the file's {room} bytes of data")));
    }
    if end - begin != bytes {
        return Err(bad(format!("{} bytes of data for {dtype} {shape:?}, which takes {bytes}", end - begin)));
    }
    Ok(Entry { name, dtype, shape, begin: data + begin, end: data + end })
}

/// A list of whole numbers; one too long to be a shape is none.
fn numbers(value: &RawValue) -> Option<Vec<u64>> {
    const LONG: usize = 4096;
    (value.get().len() <= LONG).then(|| serde_json::from_str(value.get()).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str, data: u64) -> Result<Header> {
        parse_header(text.as_bytes(), 8 + text.len() as u64 + data)
    }

    #[test]
    fn reads_what_is_right() {
        let text = r#"{"__metadata__":{"format":"pt"},"b":{"dtype":"F16","shape":[2,3],"data_offsets":[4,16]},
            "a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},"z":{"dtype":"U8","shape":[0],"data_offsets":[4,4]}}"#;
        let header = parse(text, 16).unwrap();
        let names: Vec<&str> = header.tensors.iter().map(|t| t.name.as_str()).collect();
        assert_eq!(names, ["a", "z", "b"]);
        assert_eq!(header.metadata["format"], "pt");
        assert_eq!(header.tensors[2].end - header.tensors[2].begin, 12);
        assert!(parse("{}", 0).unwrap().tensors.is_empty());
        // What later versions may add is passed over.
        let text = r#"{"a":{"dtype":"U8","more":{"a":[1,{"b":null}]},"shape":[1],"data_offsets":[0,1]}}"#;
        assert_eq!(parse(text, 1).unwrap().tensors[0].name, "a");
    }

    #[test]
    fn refuses_what_is_wrong() {
        let one = |body: &str| format!(r#"{{"a":{{{body}}}}}"#);
        let cases = [
            (String::new(), 0, "JSON object"),
            ("[]".into(), 0, "JSON object"),
            ("{".into(), 0, "not valid"),
            (r#"{"a":1}"#.into(), 0, "not valid"),
            (r#"{"a":{},"a":{}}"#.into(), 0, "twice"),
            (r#"{"__metadata__":{"a":1}}"#.into(), 0, "not a string"),
            (r#"{"__metadata__":{"a":"","a":""}}"#.into(), 0, "twice"),
            (one(r#""shape":[1],"data_offsets":[0,4]"#), 4, "dtype"),
            (one(r#""dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]"#), 4, "twice"),
            (one(r#""dtype":"F31","shape":[1],"data_offsets":[0,4]"#), 4, "unknown dtype"),
            (one(r#""dtype":"F32","shape":[-1],"data_offsets":[0,4]"#), 4, "shape"),
            (one(r#""dtype":"F32","shape":[1.5],"data_offsets":[0,4]"#), 4, "shape"),
            (one(r#""dtype":"F32","shape":[1],"data_offsets":[0]"#), 4, "data_offsets"),
            (one(r#""dtype":7,"shape":[1],"data_offsets":[0,4]"#), 4, "dtype"),
            (one(&format!(r#""dtype":"F32","shape":[1{}],"data_offsets":[0,4]"#, ",1".repeat(4096))), 4, "shape"),
            (one(r#""dtype":"F32","shape":[1],"data_offsets":[0,8]"#), 4, "outside"),
            (one(r#""dtype":"F32","shape":[1],"data_offsets":[4,0]"#), 4, "outside"),
            (one(r#""dtype":"F32","shape":[2],"data_offsets":[0,4]"#), 4, "takes 8"),
            (one(r#""dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]"#), 4, "overflow"),
            (one(r#""dtype":"F32","shape":[1],"data_offsets":[4,8]"#), 8, "no tensor"),
            (one(r#""dtype":"F32","shape":[1],"data_offsets":[0,4]"#), 5, "no tensor"),
            (
                r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}"#.into(),
                6,
                "overlaps",
            ),
        ];
        for (text, data, expected) in cases {
            let error = parse(&text, data).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200), size in any::<u64>()) {
            let _ = parse_header(&bytes, size);
        }

        #[test]
        fn never_panics_on_torn_headers(cut in 0usize..120, flip in 0usize..120, with in any::<u8>()) {
            let mut text = br#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"F16","shape":[2,1],"data_offsets":[4,8]}}"#.to_vec();
            let at = flip.min(text.len() - 1);
            text[at] = with;
            text.truncate(text.len() - cut.min(text.len()));
            let size = 8 + text.len() as u64 + 8;
            let _ = parse_header(&text, size);
        }
    }
}
