//! Any bytes are a header or an error; what is accepted covers its file exactly, tensor after tensor.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tritpress_core::safetensors::{dtype_size, parse_header};

fuzz_target!(|input: (u16, &[u8])| {
    let (data, text) = input;
    let size = 8 + text.len() as u64 + data as u64;
    let Ok(header) = parse_header(text, size) else { return };
    let mut at = 8 + text.len() as u64;
    for tensor in &header.tensors {
        assert_eq!(tensor.begin, at);
        let bytes = tensor.shape.iter().product::<u64>() * dtype_size(&tensor.dtype).unwrap();
        assert_eq!(tensor.end - tensor.begin, bytes);
        at = tensor.end;
    }
    assert_eq!(at, size);
});
