//! A packed matrix in memory and its products.

use crate::error::{Error, Result};
use crate::kernel::trits::{self, Encoding, TritTiles};
use crate::kernel::{self, Activations, Batch, Isa, Reading, TILES};
use crate::memory;
use crate::packing::{row_bytes, Canonical};
use crate::pool;
use crate::scratch::Scratch;
use crate::tiles::{Geometry, Tiles, TILE};

/// How codes are kept in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Four codes a byte.
    TwoBit,
    /// Five codes a byte, for matrices larger than the cache where memory is the limit.
    OnePointSixBit,
}

impl Format {
    pub fn parse(name: &str) -> Result<Self> {
        match name {
            "2bit" => Ok(Format::TwoBit),
            "1.6bit" => Ok(Format::OnePointSixBit),
            _ => Err(Error::option(format!("format must be '2bit' or '1.6bit', not '{name}'"))),
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Format::TwoBit => "2bit",
            Format::OnePointSixBit => "1.6bit",
        }
    }
}

/// A ternary matrix [rows, cols] of one or more planes, laid out for the kernels.
pub struct PackedMatrix {
    codes: Codes,
    isa: Isa,
}

enum Codes {
    Two(Tiles),
    Five(TritTiles),
}

impl PackedMatrix {
    /// Errors: whole rows too long for sums in 32 bits, no memory, an unusable setting in the environment.
    pub fn new(from: &Canonical<'_>, format: Format, threads: usize) -> Result<Self> {
        if from.group_size == 0 && from.cols > LONGEST {
            return Err(Error::shape(format!(
                "rows of {} inputs with one scale are too long for exact sums ({LONGEST} at most): use groups",
                from.cols
            )));
        }
        let isa = kernel::isa()?;
        Reading::told()?;
        let tiles = Tiles::pack(from, threads)?;
        let codes = match format {
            Format::TwoBit => Codes::Two(tiles),
            Format::OnePointSixBit => Codes::Five(TritTiles::pack(&tiles, Encoding::of(isa), threads)?),
        };
        Ok(PackedMatrix { codes, isa })
    }

    pub fn geometry(&self) -> &Geometry {
        match &self.codes {
            Codes::Two(tiles) => &tiles.geometry,
            Codes::Five(trits) => &trits.layout.geometry,
        }
    }

    pub fn format(&self) -> Format {
        match &self.codes {
            Codes::Two(_) => Format::TwoBit,
            Codes::Five(_) => Format::OnePointSixBit,
        }
    }

    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The path that `n` tokens at once take.
    pub fn isa_for(&self, n: usize) -> Isa {
        self.isa.for_tokens(if self.one_by_one(n) { 1 } else { n })
    }

    /// Bytes held for codes and scales.
    pub fn bytes(&self) -> usize {
        self.as_bytes().len()
    }

    /// The tiles as they lie in memory, [`bytes`](Self::bytes) long.
    pub fn as_bytes(&self) -> &[u8] {
        match &self.codes {
            Codes::Two(tiles) => tiles.bytes.as_slice(),
            Codes::Five(trits) => trits.bytes.as_slice(),
        }
    }

    /// Codes in the canonical layout [planes, rows, ceil(cols / 4)].
    pub fn codes(&self, threads: usize) -> Result<Vec<u8>> {
        self.in_two_bits(threads, |tiles| tiles.codes(threads))
    }

    /// Scales in the canonical layout, fp16 bits [planes, rows, groups].
    pub fn scales(&self, threads: usize) -> Result<Vec<u16>> {
        self.in_two_bits(threads, |tiles| tiles.scales(threads))
    }

    /// What `take` finds in the tiles, written out for it where they hold five codes a byte.
    fn in_two_bits<R>(&self, threads: usize, take: impl FnOnce(&Tiles) -> Result<R>) -> Result<R> {
        match &self.codes {
            Codes::Two(tiles) => take(tiles),
            Codes::Five(trits) => take(&trits.expand(threads)?),
        }
    }

    /// float32 [rows, cols], the sum over planes.
    pub fn dequantize(&self, threads: usize) -> Result<Vec<f32>> {
        let g = self.geometry();
        let (codes, scales) =
            self.in_two_bits(threads, |tiles| Ok((tiles.codes(threads)?, tiles.scales(threads)?)))?;
        debug_assert_eq!(codes.len(), g.planes * g.rows * row_bytes(g.cols));
        let matrix = Canonical {
            codes: &codes,
            scales: &scales,
            planes: g.planes,
            rows: g.rows,
            cols: g.cols,
            group_size: g.group_size,
        };
        matrix.dequantize(threads)
    }

    /// float32 [cols] -> float32 [rows]. Errors: wrong length, NaN or infinity in `x`.
    pub fn matvec(&self, x: &[f32], threads: usize) -> Result<Vec<f32>> {
        self.matmul(x, 1, threads)
    }

    /// float32 [n, cols] -> float32 [n, rows]; every row of the result equals `matvec` of that row of `x`.
    pub fn matmul(&self, x: &[f32], n: usize, threads: usize) -> Result<Vec<f32>> {
        let g = self.geometry();
        if n.checked_mul(g.cols) != Some(x.len()) {
            return Err(Error::shape(format!("x has {} values, not {n} rows of {}", x.len(), g.cols)));
        }
        let mut tokens = Vec::new();
        tokens.resize_with(n, || Err(Error::Data(String::new())));
        let worth = (16_384 / g.cols.max(1)).max(1);
        pool::chunks_mut(&mut tokens, worth, threads, |index, chunk| {
            for (i, token) in chunk.iter_mut().enumerate() {
                let row = index * worth + i;
                *token = Activations::quantize(&x[row * g.cols..(row + 1) * g.cols], g);
            }
        });
        let tokens = tokens
            .into_iter()
            .enumerate()
            .map(|(i, token)| match token {
                Err(Error::Data(m)) if n > 1 => Err(Error::Data(format!("row {i} of x: {m}"))),
                other => other,
            })
            .collect::<Result<Vec<_>>>()?;
        if g.rows == 0 || n == 0 || g.cols == 0 {
            return memory::zeros(memory::area(n, g.rows)?);
        }
        let size = self.bytes() / g.tiles;
        let reading = Reading::of(self.isa, self.bytes());
        if n == 1 {
            let mut out = memory::zeros(g.rows)?;
            let threads = threads.min((self.bytes() / WORTH).max(1));
            let block = tiles_per_item(g.tiles, size, threads, reading.streams);
            pool::chunks_mut(&mut out, TILE * block, threads, |index, out| {
                self.matvec_tiles(index * block, &tokens[0], out, reading);
            });
            return Ok(out);
        }
        if self.one_by_one(n) {
            // Each few tiles come from memory once and are in a cache for the tokens after the first.
            return pool::by_columns(n, g.rows, TILES * TILE, threads, |part, columns| {
                let first = TILES * part;
                let mut row = [0f32; TILES * TILE];
                let row = &mut row[..(TILES * TILE).min(g.rows - first * TILE)];
                for token in &tokens {
                    self.matvec_tiles(first, token, row, reading);
                    columns.push(row);
                }
            });
        }
        let ahead = match &self.codes {
            Codes::Two(_) => reading.ahead,
            Codes::Five(_) => 0, // what is read then has just been written
        };
        // As even as can be, so that none is left with so few tokens that it takes another path.
        let most = n.div_ceil(n.div_ceil(TOKENS));
        let batches: Vec<Batch> =
            tokens.chunks(most).map(|tokens| Batch::new(tokens, g, threads, ahead)).collect();
        // Some tiles at a time, for the paths that share broadcasts of activations among them.
        pool::by_columns(n, g.rows, TILES * TILE, threads, |part, columns| {
            let first = TILES * part;
            let count = TILES.min(g.tiles - first);
            let rows = (TILES * TILE).min(g.rows - first * TILE);
            let mut expanded = Scratch::<u8>::new(0);
            let bytes = match &self.codes {
                Codes::Two(tiles) => &tiles.bytes.as_slice()[first * size..(first + count) * size],
                Codes::Five(trits) => {
                    expanded.resize(count * g.tile_bytes());
                    for (tile, out) in expanded.chunks_exact_mut(g.tile_bytes()).enumerate() {
                        trits::expand_tile(&trits.layout, trits.tile(first + tile), out);
                    }
                    &expanded
                }
            };
            let mut products = Scratch::<f32>::new(count * TILE * most);
            for batch in &batches {
                let products = &mut products[..count * TILE * batch.n];
                kernel::matmul(self.isa, bytes, g, batch, products);
                for token in 0..batch.n {
                    let mut row = [0f32; TILES * TILE];
                    for (tile, to) in row.chunks_exact_mut(TILE).take(count).enumerate() {
                        to.copy_from_slice(&products[(tile * batch.n + token) * TILE..][..TILE]);
                    }
                    columns.push(&row[..rows]);
                }
            }
        })
    }

    /// Whether `n` tokens are multiplied one after the other: writing out the four codes of a byte takes the time of
    /// some products of one token with five.
    fn one_by_one(&self, n: usize) -> bool {
        matches!(self.codes, Codes::Five(_)) && n <= FEW
    }

    /// Products of the tiles from `first` on that cover `out`, whose last tile may be cut short.
    fn matvec_tiles(&self, first: usize, x: &Activations, out: &mut [f32], reading: Reading) {
        let size = self.bytes() / self.geometry().tiles;
        let whole = out.len() / TILE;
        let (even, rest) = out.split_at_mut(whole * TILE);
        self.matvec_whole(first * size..(first + whole) * size, x, even, reading);
        if !rest.is_empty() {
            let mut last = [0f32; TILE];
            self.matvec_whole((first + whole) * size..(first + whole + 1) * size, x, &mut last, reading);
            rest.copy_from_slice(&last[..rest.len()]);
        }
    }

    fn matvec_whole(
        &self,
        bytes: std::ops::Range<usize>,
        x: &Activations,
        out: &mut [f32],
        reading: Reading,
    ) {
        match &self.codes {
            Codes::Two(tiles) => {
                kernel::matvec(self.isa, &tiles.bytes.as_slice()[bytes], &tiles.geometry, x, out, reading);
            }
            Codes::Five(trits) => {
                trits::matvec(self.isa, &trits.bytes.as_slice()[bytes], &trits.layout, x, out, reading);
            }
        }
    }
}

/// Inputs of a whole-row group at most: the sum of so many products of codes 0 to 2 and activations within +-127
/// is below 2^31.
const LONGEST: usize = i32::MAX as usize / (2 * 127);

/// Tokens of the 1.6-bit format up to which none are multiplied together.
const FEW: usize = 5;

/// Tokens that are multiplied with a tile at a time: their sums stay in the first-level cache.
const TOKENS: usize = 64;

/// Bytes of a matrix for each thread at least: what is less takes one token no longer than to wake another thread.
const WORTH: usize = 1 << 16;

/// Tiles that a thread claims at a time: enough work to be worth it and some tiles for each stream that it reads,
/// few enough to share the end of the loop.
fn tiles_per_item(tiles: usize, tile_bytes: usize, threads: usize, streams: usize) -> usize {
    if threads == 1 {
        return tiles.max(1);
    }
    let least = (32_768 / tile_bytes.max(1)).max(1);
    // At least four turns a thread where that is no less, so that one that loses its core holds back little.
    let fair = tiles / (4 * threads);
    let item = fair.clamp(least, least.max(4 * streams)).min(tiles.div_ceil(threads)).max(1);
    if item > streams {
        return item / streams * streams;
    }
    item
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ternary::{ternarize, Options, Weights};

    #[test]
    fn products_are_near_those_of_the_dequantized_matrix() {
        let (rows, cols, n) = (37, 201, 3);
        let w: Vec<f32> = (0..rows * cols).map(|i| ((i * 7919 % 1009) as f32 - 504.0) / 300.0).collect();
        let x: Vec<f32> = (0..n * cols).map(|i| ((i * 104729 % 997) as f32 - 498.0) / 100.0).collect();
        for (planes, group_size) in [(1, 64), (2, 32), (3, 0)] {
            let options = Options { planes, group_size, ..Options::default() };
            let t = ternarize(Weights::F32(&w), (rows, cols), None, &options, 1).unwrap();
            let canonical = Canonical::new(&t.codes, &t.scales, planes, (rows, cols), group_size, 1).unwrap();
            let matrix = PackedMatrix::new(&canonical, Format::TwoBit, 2).unwrap();
            let five = PackedMatrix::new(&canonical, Format::OnePointSixBit, 2).unwrap();
            assert_eq!(five.codes(2).unwrap(), t.codes);
            assert_eq!(five.scales(2).unwrap(), t.scales);
            assert_eq!(five.matmul(&x, n, 2).unwrap(), matrix.matmul(&x, n, 2).unwrap());
            assert_eq!(five.matvec(&x[..cols], 2).unwrap(), matrix.matvec(&x[..cols], 1).unwrap());
            assert_eq!(matrix.codes(1).unwrap(), t.codes);
            assert_eq!(matrix.scales(1).unwrap(), t.scales);
            let d = matrix.dequantize(2).unwrap();
            assert_eq!(d, canonical.dequantize(1).unwrap());
            let y = matrix.matmul(&x, n, 2).unwrap();
            for i in 0..n {
                let x = &x[i * cols..(i + 1) * cols];
                let one = matrix.matvec(x, 1).unwrap();
                assert_eq!(one, y[i * rows..(i + 1) * rows]);
                let largest = x.iter().fold(0f32, |a, b| a.max(b.abs())) as f64;
                for (row, &y) in one.iter().enumerate() {
                    let d = &d[row * cols..(row + 1) * cols];
                    let exact: f64 = d.iter().zip(x).map(|(&d, &x)| d as f64 * x as f64).sum();
                    let bound: f64 = d.iter().map(|d| d.abs() as f64).sum::<f64>() * largest / 254.0 * 1.001;
                    assert!((y as f64 - exact).abs() <= bound + 1e-3, "{y} against {exact}");
                }
            }
        }
    }

    #[test]
    fn more_tokens_than_are_multiplied_at_a_time_equal_the_products_one_by_one() {
        let (rows, cols) = (70, 100);
        let w: Vec<f32> = (0..rows * cols).map(|i| ((i * 7919 % 1009) as f32 - 504.0) / 300.0).collect();
        let x: Vec<f32> = (0..129 * cols).map(|i| ((i * 104729 % 997) as f32 - 498.0) / 100.0).collect();
        for group_size in [0, 32, 64] {
            let options = Options { group_size, ..Options::default() };
            let t = ternarize(Weights::F32(&w), (rows, cols), None, &options, 1).unwrap();
            let canonical = Canonical::new(&t.codes, &t.scales, 1, (rows, cols), group_size, 1).unwrap();
            for format in [Format::TwoBit, Format::OnePointSixBit] {
                let matrix = PackedMatrix::new(&canonical, format, 1).unwrap();
                let singles: Vec<f32> = x.chunks(cols).flat_map(|x| matrix.matvec(x, 1).unwrap()).collect();
                for n in [64, 65, 68, 128, 129] {
                    let many = matrix.matmul(&x[..n * cols], n, 2).unwrap();
                    assert_eq!(many, singles[..n * rows], "{n} tokens, groups of {group_size}");
                }
            }
        }
    }

    #[test]
    fn empty_shapes() {
        for ((rows, cols), group_size) in [(0, 5), (5, 0), (0, 0)].into_iter().flat_map(|s| [(s, 0), (s, 64)])
        {
            let scales = vec![0u16; rows * crate::packing::groups_of(cols, group_size)];
            let codes = vec![0x55u8; rows * row_bytes(cols)];
            let canonical = Canonical::new(&codes, &scales, 1, (rows, cols), group_size, 1).unwrap();
            for format in [Format::TwoBit, Format::OnePointSixBit] {
                let matrix = PackedMatrix::new(&canonical, format, 1).unwrap();
                assert_eq!(matrix.matvec(&vec![1.0; cols], 1).unwrap(), vec![0.0; rows]);
                assert!(matrix.matvec(&vec![1.0; cols + 1], 1).is_err());
                assert_eq!(
                    (matrix.codes(2).unwrap(), matrix.scales(2).unwrap()),
                    (codes.clone(), scales.clone())
                );
                assert_eq!(matrix.dequantize(2).unwrap(), vec![0.0; rows * cols]);
            }
        }
    }
}
