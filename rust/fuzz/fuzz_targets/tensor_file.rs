//! A file with one tensor, perhaps torn, streamed to codes and scales in another: what is written is what the call
//! in memory gives, is accepted by the reader of packed files, and has the same statistics; a torn file is refused.
#![no_main]

use std::fs;
use std::path::PathBuf;

use libfuzzer_sys::{arbitrary, fuzz_target};
use tritpress_core::half::{bf16_to_f32, f16_to_f32};
use tritpress_core::packing::Canonical;
use tritpress_core::safetensors::read_header;
use tritpress_core::stats::layer_statistics;
use tritpress_core::stream::{ternarize_stream, Source, Target};
use tritpress_core::ternary::{ternarize, Fit, Options, Weights};

#[derive(arbitrary::Arbitrary, Debug)]
struct Input<'a> {
    dtype: u8,
    rows: u8,
    cols: u16,
    transposed: bool,
    fit: u8,
    group_size: u8,
    planes: u8,
    /// These three in parts of 200: more than 1 is too much for a share.
    threshold: Option<u8>,
    sparsity: Option<u8>,
    max_sparsity: Option<u8>,
    weighted: bool,
    /// Whether weights are finite and below 2, so that they have scales.
    tame: bool,
    /// How many more bytes the header's length claims than there are.
    claim: i8,
    /// Bytes missing at the end.
    torn: u8,
    /// Repeated until the tensor is full.
    data: &'a [u8],
}

fuzz_target!(|input: Input<'_>| {
    let (rows, cols) = (input.rows as usize % 40, input.cols as usize % 600);
    let (dtype, element) = [("F32", 4), ("F16", 2), ("BF16", 2)][input.dtype as usize % 3];
    let stored = if input.transposed { [cols, rows] } else { [rows, cols] };
    let length = rows * cols * element;
    let text = format!(r#"{{"w":{{"dtype":"{dtype}","shape":{stored:?},"data_offsets":[0,{length}]}}}}"#);
    let mut data: Vec<u8> = match input.data {
        [] => vec![0; length],
        some => some.iter().copied().cycle().take(length).collect(),
    };
    if input.tame {
        data.iter_mut().skip(element - 1).step_by(element).for_each(|byte| *byte &= 0xbf);
    }
    let claimed = (text.len() as u64).wrapping_add_signed(input.claim.into());
    let mut file = [&claimed.to_le_bytes(), text.as_bytes(), &data].concat();
    file.truncate(file.len().saturating_sub(input.torn.into()));
    let [from, to] = ["in", "out"].map(place);
    fs::write(&from, &file).unwrap();

    let header = read_header(&from);
    assert_eq!(header.is_ok(), input.claim == 0 && input.torn == 0);
    let offset = 8 + text.len() as u64;
    if let Ok(header) = header {
        let [tensor] = &header.tensors[..] else { panic!("one tensor, not {:?}", header.tensors) };
        assert_eq!((tensor.begin, tensor.end), (offset, file.len() as u64));
    }

    let parts = |value: Option<u8>| value.map(|value| f64::from(value) / 200.0);
    let options = Options {
        fit: [Fit::Exact, Fit::Twn, Fit::Absmean][input.fit as usize % 3],
        group_size: [64, 0, 32, 128, 256, 48][input.group_size as usize % 6],
        planes: input.planes as usize % 5,
        threshold: parts(input.threshold),
        sparsity: parts(input.sparsity),
        max_sparsity: parts(input.max_sparsity),
    };
    let importance: Option<Vec<f32>> =
        input.weighted.then(|| (0..cols).map(|c| input.data.get(c).copied().unwrap_or(1).into()).collect());
    let importance = importance.as_deref();
    let mut w = floats(dtype, &data);
    if input.transposed {
        w = (0..rows * cols).map(|i| w[i % cols * rows + i / cols]).collect();
    }
    let expected = ternarize(Weights::F32(&w), (rows, cols), importance, &options, 1);
    let sizes = expected.as_ref().map_or((0, 0), |t| (t.codes.len(), 2 * t.scales.len()));
    fs::write(&to, vec![0; sizes.0 + sizes.1]).unwrap();
    let source = Source { path: &from, offset, dtype, rows, cols, transposed: input.transposed };
    let target = Target { path: &to, codes_offset: 0, scales_offset: sizes.0 as u64 };
    let found = ternarize_stream(&source, &target, importance, &options, 1);
    let written = fs::read(&to).unwrap();
    fs::remove_file(&from).unwrap();
    fs::remove_file(&to).unwrap();

    if input.torn > 0 {
        assert!(found.is_err() && written.iter().all(|&byte| byte == 0));
        return;
    }
    assert_eq!(found.is_ok(), expected.is_ok());
    let (Ok(found), Ok(expected)) = (found, expected) else { return };
    let scales: Vec<u8> = expected.scales.iter().flat_map(|scale| scale.to_le_bytes()).collect();
    assert_eq!(written, [expected.codes.as_slice(), &scales].concat());
    let shape = (rows, cols);
    let packed =
        Canonical::new(&expected.codes, &expected.scales, options.planes, shape, options.group_size, 1);
    assert_eq!(found, layer_statistics(Weights::F32(&w), &packed.unwrap(), 1).unwrap());
});

fn place(which: &str) -> PathBuf {
    std::env::temp_dir().join(format!("tritpress-fuzz-{}-{which}", std::process::id()))
}

fn floats(dtype: &str, data: &[u8]) -> Vec<f32> {
    let halves = data.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    match dtype {
        "F32" => data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        "F16" => halves.map(f16_to_f32).collect(),
        _ => halves.map(bf16_to_f32).collect(),
    }
}
