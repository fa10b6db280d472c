//! Every path this machine has, on one thread and from cache; fits and packing of one band.

use criterion::{criterion_group, criterion_main, BenchmarkId, Criterion, Throughput};
use tritpress_core::half::f32_to_f16;
use tritpress_core::kernel::{self, Activations, Batch, Isa, Reading, TILES};
use tritpress_core::packing::{self, Canonical};
use tritpress_core::ternary::{ternarize, Fit, Options, Weights};
use tritpress_core::tiles::{Tiles, TILE};

fn noise(len: usize) -> Vec<f32> {
    let mut state = 88_172_645_463_325_252u64;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

fn products(c: &mut Criterion) {
    let (rows, cols) = (2560, 2560);
    let trits: Vec<i8> = noise(rows * cols)
        .iter()
        .map(|x| (x * 1.4).round() as i8)
        .collect();
    let codes = packing::pack(&trits, cols, 1).unwrap();
    for group_size in [64, 0] {
        let groups = packing::groups_of(cols, group_size);
        let scales = vec![f32_to_f16(0.5); rows * groups];
        let matrix = Canonical::new(&codes, &scales, 1, (rows, cols), group_size, 1).unwrap();
        let tiles = Tiles::pack(&matrix, 1).unwrap();
        let x = Activations::quantize(&noise(cols), &tiles.geometry).unwrap();
        let mut group = c.benchmark_group(format!("matvec {rows}x{cols}, groups of {group_size}"));
        group.throughput(Throughput::Elements(2 * (rows * cols) as u64));
        for isa in Isa::usable() {
            let mut out = vec![0f32; rows];
            group.bench_function(BenchmarkId::from_parameter(isa.name()), |b| {
                let reading = Reading::usual(isa);
                b.iter(|| {
                    let bytes = tiles.bytes.as_slice();
                    kernel::matvec(isa, bytes, &tiles.geometry, &x, &mut out, reading)
                });
            });
        }
        group.finish();
        for n in [2, 16, 64] {
            let tokens = vec![x.clone(); n];
            let mut group = c.benchmark_group(format!("matmul n={n}, groups of {group_size}"));
            group.throughput(Throughput::Elements(2 * (n * rows * cols) as u64));
            for isa in Isa::usable() {
                let ahead = Reading::usual(isa).ahead;
                let batch = Batch::new(&tokens, &tiles.geometry, 1, ahead);
                let mut out = vec![0f32; TILES * n * TILE];
                let size = tiles.geometry.tile_bytes();
                group.bench_function(BenchmarkId::from_parameter(isa.name()), |b| {
                    b.iter(|| {
                        for some in tiles.bytes.as_slice().chunks_exact(TILES * size) {
                            kernel::matmul(isa, some, &tiles.geometry, &batch, &mut out);
                        }
                    });
                });
            }
            group.finish();
        }
    }
}

fn fits(c: &mut Criterion) {
    let (rows, cols) = (64, 4096);
    let w = noise(rows * cols);
    let mut group = c.benchmark_group("ternarize");
    group.throughput(Throughput::Elements(w.len() as u64));
    for (name, options) in [
        (
            "absmean",
            Options {
                fit: Fit::Absmean,
                ..Options::default()
            },
        ),
        ("exact", Options::default()),
        (
            "exact, ceiling",
            Options {
                max_sparsity: Some(0.2),
                ..Options::default()
            },
        ),
    ] {
        group.bench_function(name, |b| {
            b.iter(|| ternarize(Weights::F32(&w), (rows, cols), None, &options, 1).unwrap());
        });
    }
    group.finish();
}

criterion_group!(benches, products, fits);
criterion_main!(benches);
