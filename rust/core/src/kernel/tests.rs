use super::*;
use crate::half::f32_to_f16;
use crate::packing::{groups_of, pack, Canonical};
use crate::tiles::Tiles;
use proptest::prelude::*;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// What codes and activations of +-127 make sums as large as they can be, beside random ones.
#[derive(Clone, Copy)]
enum Kind {
    Random,
    /// One code (T = 1 or -1) everywhere, activations of one sign.
    Alike(i8, f32),
    /// Activations of one sign in the first two of every four inputs and of the other in the last two, T of the
    /// same signs: pairs of products that differ as much as can be from the sums that they start at.
    Pairs(f32),
}

fn check(rows: usize, cols: usize, planes: usize, group_size: usize, seed: u64, kind: Kind) {
    let mut random = Random(seed | 1);
    let x: Vec<f32> = (0..cols)
        .map(|col| match kind {
            Kind::Random => (random.next() % 20001) as f32 / 1000.0 - 10.0,
            Kind::Alike(_, x) => x,
            Kind::Pairs(first) => first * if col % 4 < 2 { 1.0 } else { -1.0 },
        })
        .collect();
    let trits: Vec<i8> = (0..planes * rows * cols)
        .map(|i| match kind {
            Kind::Random => (random.next() % 3) as i8 - 1,
            Kind::Alike(t, _) => t,
            Kind::Pairs(_) => x[i % cols] as i8,
        })
        .collect();
    let codes = pack(&trits, cols, 1).unwrap();
    let groups = groups_of(cols, group_size);
    let scales: Vec<u16> =
        (0..planes * rows * groups).map(|_| f32_to_f16((random.next() % 2000) as f32 / 700.0)).collect();
    let matrix = Canonical::new(&codes, &scales, planes, (rows, cols), group_size, 1).unwrap();
    let tiles = Tiles::pack(&matrix, 1).unwrap();
    let second: Vec<f32> = match kind {
        Kind::Random => x.iter().map(|x| 3.0 - x / 2.0).collect(),
        _ => x.iter().map(|x| -x).collect(),
    };
    let x = Activations::quantize(&x, &tiles.geometry).unwrap();
    let second = Activations::quantize(&second, &tiles.geometry).unwrap();
    let expected = naive::matvec(&matrix, &x);
    for isa in Isa::usable() {
        for (streams, ahead) in [(1, 0), (1, 1024), (2, 0), (4, 1024)] {
            let mut out = vec![0f32; tiles.geometry.tiles * TILE];
            let reading = Reading { streams, ahead };
            matvec(isa, tiles.bytes.as_slice(), &tiles.geometry, &x, &mut out, reading);
            for (row, (a, b)) in out.iter().zip(&expected).enumerate() {
                assert_eq!(
                    a.to_bits(),
                    b.to_bits(),
                    "{}: {rows}x{cols}, {planes} planes, groups of {group_size}, {reading:?}, row {row}: {a} against {b}",
                    isa.name()
                );
            }
        }
        let fastest = trits::Encoding::of(isa);
        for encoding in [trits::Encoding::Fraction, fastest] {
            let five = trits::TritTiles::pack(&tiles, encoding, 1).unwrap();
            for (streams, ahead) in [(1, 0), (4, 1024)] {
                let mut out = vec![0f32; tiles.geometry.tiles * TILE];
                let reading = Reading { streams, ahead };
                trits::matvec(isa, five.bytes.as_slice(), &five.layout, &x, &mut out, reading);
                assert_eq!(&out[..rows], &expected[..], "{}: {encoding:?}, {rows}x{cols}", isa.name());
            }
            assert_eq!(five.expand(1).unwrap().bytes.as_slice(), tiles.bytes.as_slice());
        }
        let others = naive::matvec(&matrix, &second);
        let many = if cols.is_multiple_of(4) { 31 } else { 17 };
        for n in [1, 2, 3, 4, 5, 6, 7, 8, 9, many] {
            let tokens: Vec<Activations> =
                (0..n).map(|t| if t % 2 == 0 { x.clone() } else { second.clone() }).collect();
            let batch = Batch::new(&tokens, &tiles.geometry, 1, 1024);
            // As many tiles at a time as can be, and those left over at the end.
            for first in (0..tiles.geometry.tiles).step_by(TILES) {
                let count = (tiles.geometry.tiles - first).min(TILES);
                let size = tiles.geometry.tile_bytes();
                let bytes = &tiles.bytes.as_slice()[first * size..(first + count) * size];
                let mut out = vec![0f32; count * n * TILE];
                matmul(isa, bytes, &tiles.geometry, &batch, &mut out);
                for (i, out) in out.chunks(TILE).enumerate() {
                    let expected = if i % n % 2 == 0 { &expected } else { &others };
                    let row = (first + i / n) * TILE;
                    let rows = &expected[row..(row + TILE).min(rows)];
                    let same = rows.iter().zip(out).all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(same, "{}: {n} tokens, {rows:?} against {out:?}", isa.name());
                }
            }
        }
    }
}

/// All column counts with all group sizes, a number of planes each time.
fn sweep(planes: usize) {
    for cols in 1..=300 {
        for (i, group_size) in [0, 32, 64, 128, 256].into_iter().enumerate() {
            check(
                1 + (cols + 14 * i) % 70,
                cols,
                planes,
                group_size,
                (cols * planes) as u64 * 7919,
                Kind::Random,
            );
        }
    }
}

#[test]
fn one_plane_of_every_column_count_and_group_size() {
    sweep(1);
}

#[test]
fn two_planes_of_every_column_count_and_group_size() {
    sweep(2);
}

#[test]
fn three_planes_of_every_column_count_and_group_size() {
    sweep(3);
}

#[test]
fn amx_takes_many_tokens() {
    assert_eq!(
        [1, 4, 5, 64].map(|n| Isa::Amx.for_tokens(n).name()),
        ["avx512gfni", "avx512gfni", "amx", "amx"]
    );
    assert_eq!([1, 64].map(|n| Isa::Avx2.for_tokens(n)), [Isa::Avx2; 2]);
}

#[test]
fn extremes_do_not_overflow() {
    for group_size in [0, 32, 64, 128, 256] {
        let alike = [(1, 1.0), (1, -1.0), (-1, 1.0), (-1, -1.0)].map(|(t, x)| Kind::Alike(t, x));
        for kind in alike.into_iter().chain([1.0, -1.0].map(Kind::Pairs)) {
            check(17, 300, 1, group_size, 3, kind);
            check(16, 4096, 2, group_size, 4, kind);
            check(3, 20_000, 1, group_size, 5, kind);
        }
    }
}

proptest! {
    #[test]
    fn every_path_equals_the_oracle(
        rows in 1usize..70, cols in 1usize..700, planes in 1usize..4, seed in any::<u64>(),
        group_size in prop::sample::select(vec![0usize, 32, 64, 128, 256]),
    ) {
        check(rows, cols, planes, group_size, seed, Kind::Random);
    }
}

#[test]
fn activations_are_quantized_as_the_design_says() {
    let geometry = Geometry::new(1, 6, 1, 64);
    let x = Activations::quantize(&[127.0, 0.5, 1.5, -2.5, -127.0, 63.4], &geometry).unwrap();
    assert_eq!((x.scale, &x.q[..7]), (1.0, &[127, 0, 2, -2, -127, 63, 0][..]));
    let zero = Activations::quantize(&[0.0; 6], &geometry).unwrap();
    assert!(zero.scale == 0.0 && zero.q.iter().all(|&q| q == 0));
    let tiny = Activations::quantize(&[1e-45, 0.0, 0.0, 0.0, 0.0, 0.0], &geometry).unwrap();
    assert!(tiny.scale == 0.0 && tiny.q[0] == 0);
    assert!(Activations::quantize(&[0.0, f32::NAN, 0.0, 0.0, 0.0, 0.0], &geometry).is_err());
    assert!(Activations::quantize(&[0.0, 0.0, 0.0, 0.0, 0.0, f32::INFINITY], &geometry).is_err());
}

proptest! {
    #[test]
    fn quantized_activations_are_rounded_quotients(
        start in prop::collection::vec(prop_oneof![-1e-30f32..1e-30, -1.0f32..1.0, -1e30f32..1e30], 1..70),
        halves in prop::collection::vec(-254i32..254, 70), unit in prop_oneof![Just(1.0f32), Just(3e-39), 1e-3f32..1e3],
    ) {
        // Multiples of half a step are where a product with the inverse and a quotient may part.
        let near: Vec<f32> = halves.iter().map(|&h| h as f32 / 2.0 * unit).chain([127.0 * unit]).collect();
        for x in [start, near] {
            let geometry = Geometry::new(1, x.len(), 1, 0);
            let q = Activations::quantize(&x, &geometry).unwrap();
            let largest = x.iter().fold(0f32, |a, x| a.max(x.abs())) / 127.0;
            prop_assert_eq!(q.scale, largest);
            for (&q, &x) in q.q.iter().zip(&x) {
                let expected = if largest > 0.0 { (x / largest).round_ties_even() } else { 0.0 };
                prop_assert_eq!(q as f32, expected, "{} / {}", x, largest);
            }
        }
    }
}

#[test]
fn paths_are_chosen_by_name() {
    assert!(Isa::usable()[..2.min(Isa::usable().len())].contains(&choose(None).unwrap()));
    assert_eq!(choose(Some("generic")).unwrap(), Isa::Generic);
    assert!(choose(Some("sse9")).unwrap_err().to_string().contains("unknown"));
    for isa in Isa::ALL {
        if !isa.available() {
            assert!(choose(Some(isa.name())).unwrap_err().to_string().contains("cannot run"));
        }
    }
}
