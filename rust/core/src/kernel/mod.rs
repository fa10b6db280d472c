//! Products of packed tiles with int8 activations: one path chosen per process.
//!
//! Every path computes the same: exact int32 sums of (T + 1) * q less the sum of q inside a group and plane,
//! then for each row one fused multiply-add with the group's scale per group and plane, in that order, and at
//! the end one product with the activations' scale. Paths agree bit for bit.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2_many;
#[cfg(target_arch = "x86_64")]
mod avx2_one;
#[cfg(target_arch = "x86_64")]
pub mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512_many;
#[cfg(target_arch = "x86_64")]
mod avx512_one;
#[cfg(target_arch = "x86_64")]
mod dot256;
pub mod generic;
mod halves;
pub mod lay;
pub mod limits;
pub mod naive;
#[cfg(target_arch = "aarch64")]
pub mod neon;
pub mod reading;
pub mod trits;
#[cfg(target_arch = "x86_64")]
mod trits_avx2;
#[cfg(target_arch = "x86_64")]
mod trits_avx512;
#[cfg(target_arch = "x86_64")]
mod trits_vbmi;
#[cfg(target_arch = "x86_64")]
mod unpack512;
mod vectorize;

use std::sync::OnceLock;

pub(crate) use halves::widen_halves;
pub use reading::Reading;
pub(crate) use vectorize::vectorized;
#[cfg(target_arch = "x86_64")]
pub(crate) use vectorize::{level, Level};

#[cfg(target_arch = "x86_64")]
use dot256::{Dot, Maddubs, Vnni};
#[cfg(target_arch = "x86_64")]
use unpack512::{Affine, Mask, Unpack};

use crate::error::{Error, Result};
use crate::known::known;
use crate::pool;
use crate::scratch::Scratch;
use crate::tiles::{Geometry, TILE};

/// An instruction set that a path is written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// AMX-INT8 for many tokens, beside GFNI and AVX-512 for few.
    Amx,
    /// GFNI beside AVX-512 F, BW and VNNI.
    Avx512Gfni,
    /// AVX-512 F, BW and VNNI.
    Avx512Vnni,
    /// AVX-VNNI beside AVX2.
    AvxVnni,
    /// AVX2, FMA and F16C.
    Avx2,
    /// NEON with dot products (tested under emulation, never timed).
    Neon,
    /// Portable.
    Generic,
}

impl Isa {
    /// Best first.
    pub const ALL: [Isa; 7] =
        [Isa::Amx, Isa::Avx512Gfni, Isa::Avx512Vnni, Isa::AvxVnni, Isa::Avx2, Isa::Neon, Isa::Generic];

    pub fn name(self) -> &'static str {
        match self {
            Isa::Amx => "amx",
            Isa::Avx512Gfni => "avx512gfni",
            Isa::Avx512Vnni => "avx512vnni",
            Isa::AvxVnni => "avxvnni",
            Isa::Avx2 => "avx2",
            Isa::Neon => "neon",
            Isa::Generic => "generic",
        }
    }

    /// Whether this machine can run the path.
    pub fn available(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Amx => amx::available(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Gfni => Affine::available(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => Mask::available(),
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni => Vnni::available(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => Maddubs::available(),
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Amx | Isa::Avx512Gfni | Isa::Avx512Vnni | Isa::AvxVnni | Isa::Avx2 => false,
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => neon::available(),
            #[cfg(not(target_arch = "aarch64"))]
            Isa::Neon => false,
            Isa::Generic => true,
        }
    }

    /// The path that takes `n` tokens at once: AMX is for many.
    pub fn for_tokens(self, n: usize) -> Isa {
        match self {
            Isa::Amx if n < AMX_FEWEST => Isa::Avx512Gfni,
            other => other,
        }
    }

    /// The paths this machine can run, best first.
    pub fn usable() -> Vec<Isa> {
        Isa::ALL.into_iter().filter(|isa| isa.available()).collect()
    }
}

/// The path of this process: the best the machine has, or what `TRITPRESS_ISA` says.
/// Errors: an unknown name, or a path that this machine cannot run.
pub fn isa() -> Result<Isa> {
    static CHOSEN: OnceLock<std::result::Result<Isa, String>> = OnceLock::new();
    known(&CHOSEN, || choose(std::env::var("TRITPRESS_ISA").ok().as_deref()).map_err(|e| e.to_string()))
        .clone()
        .map_err(Error::Option)
}

fn choose(forced: Option<&str>) -> Result<Isa> {
    let usable = Isa::usable();
    let names = || usable.iter().map(|isa| isa.name()).collect::<Vec<_>>().join(", ");
    match forced.map(str::trim) {
        #[cfg(target_arch = "x86_64")]
        None | Some("") if usable[0] == Isa::Avx512Gfni && !limits::affine_costs_no_more() => {
            Ok(Isa::Avx512Vnni)
        }
        None | Some("") => Ok(usable[0]),
        Some(name) => match Isa::ALL.into_iter().find(|isa| isa.name() == name) {
            Some(isa) if usable.contains(&isa) => Ok(isa),
            Some(_) => Err(Error::option(format!(
                "TRITPRESS_ISA={name} asks for a path that this machine cannot run; it has {}",
                names()
            ))),
            None => {
                Err(Error::option(format!("TRITPRESS_ISA={name} is unknown; this machine has {}", names())))
            }
        },
    }
}

/// Tokens from which on AMX is faster than AVX-512.
const AMX_FEWEST: usize = 5;

/// One token's activations, quantized.
#[derive(Clone, Debug, PartialEq)]
pub struct Activations {
    /// int8 values, padded with 0 to the geometry's `padded_cols`.
    pub q: Vec<i8>,
    /// Minus the sum of each group: what the products of T + 1 start at.
    pub offsets: Vec<i32>,
    /// Their low halves, the high ones 0: where a row's two 16-bit sums start, of groups of up to 128 inputs.
    pub halves: Vec<i32>,
    pub scale: f32,
}

impl Activations {
    /// x_scale = max|x| / 127 in float32, q = clamp(round_half_even(x / x_scale), -127, 127); a zero vector has
    /// scale 0 and q = 0. Errors: NaN or infinity, with its position.
    pub fn quantize(x: &[f32], geometry: &Geometry) -> Result<Self> {
        vectorized! { fn quantize(x: &[f32], geometry: &Geometry) -> Result<Activations> = Activations::inlined; }
        quantize(x, geometry)
    }

    #[inline(always)]
    fn inlined(x: &[f32], geometry: &Geometry) -> Result<Self> {
        // Sizes as bits: for numbers of one sign the order is the same, and infinity and NaN come after all others.
        const LANES: usize = 64;
        let mut lanes = [0u32; LANES];
        let mut blocks = x.chunks_exact(LANES);
        for block in &mut blocks {
            for (lane, x) in lanes.iter_mut().zip(block) {
                *lane = (*lane).max(x.to_bits() & 0x7fff_ffff);
            }
        }
        for (lane, x) in lanes.iter_mut().zip(blocks.remainder()) {
            *lane = (*lane).max(x.to_bits() & 0x7fff_ffff);
        }
        let largest = f32::from_bits(lanes.iter().fold(0, |a, &b| a.max(b)));
        if !largest.is_finite() {
            let at = x.iter().position(|x| !x.is_finite()).unwrap_or(0);
            return Err(Error::data(format!(
                "the activation at position {at} is {}: it must be finite",
                x[at]
            )));
        }
        let scale = largest / 127.0;
        let mut q = vec![0i8; geometry.padded_cols()];
        if scale > 0.0 {
            // Adding 1.5 * 2^23 rounds half to even and leaves the whole number in the low bits: unlike a call to
            // round and a cast, which saturates, that is vectorized everywhere.
            const ROUND: f32 = 12_582_912.0;
            let round = |x: f32| (x + ROUND).to_bits().wrapping_sub(ROUND.to_bits()) as i32;
            let inverse = 1.0 / scale;
            let mut blocks = x.chunks_exact(LANES);
            for (q, x) in q.chunks_exact_mut(LANES).zip(&mut blocks) {
                // A product with the inverse is within 3e-5 of the quotient: the same whole number, unless a half
                // is near (or the inverse is infinite); then it is divided.
                let mut far = [0u32; 16];
                for (q, x) in q.chunks_exact_mut(16).zip(x.chunks_exact(16)) {
                    for i in 0..16 {
                        let near = x[i] * inverse;
                        let off = near - ((near + ROUND) - ROUND);
                        far[i] = far[i].max(off.to_bits() & 0x7fff_ffff);
                        q[i] = round(near).clamp(-127, 127) as i8;
                    }
                }
                if far.iter().fold(0, |a, &b| a.max(b)) > 0.4999f32.to_bits() {
                    for (q, &x) in q.iter_mut().zip(x) {
                        *q = round(x / scale).clamp(-127, 127) as i8;
                    }
                }
            }
            let rest = blocks.remainder();
            for (q, &x) in q[x.len() - rest.len()..].iter_mut().zip(rest) {
                *q = round(x / scale).clamp(-127, 127) as i8;
            }
        }
        let offsets: Vec<i32> = match geometry.width {
            0 => vec![0; geometry.groups],
            width => {
                q.chunks_exact(width).map(|group| -group.iter().map(|&v| v as i32).sum::<i32>()).collect()
            }
        };
        let halves = offsets.iter().map(|&offset| offset & 0xffff).collect();
        Ok(Activations { q, offsets, halves, scale })
    }
}

/// Products of whole tiles (`tiles` holds `out.len() / 16` of them) with one token, read as `reading` says.
pub fn matvec(
    isa: Isa,
    tiles: &[u8],
    geometry: &Geometry,
    x: &Activations,
    out: &mut [f32],
    #[cfg_attr(not(target_arch = "x86_64"), expect(unused_variables))] reading: Reading,
) {
    assert!(geometry.is_whole_steps());
    assert_eq!(out.len() % TILE, 0);
    assert_eq!(tiles.len(), out.len() / TILE * geometry.tile_bytes());
    assert_eq!(x.q.len(), geometry.padded_cols());
    assert_eq!(x.offsets.len(), geometry.groups);
    match isa.for_tokens(1) {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Gfni => avx512_one::matvec::<Affine>(tiles, geometry, x, out, reading),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni => avx512_one::matvec::<Mask>(tiles, geometry, x, out, reading),
        #[cfg(target_arch = "x86_64")]
        Isa::AvxVnni => avx2_one::matvec::<Vnni>(tiles, geometry, x, out, reading),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => avx2_one::matvec::<Maddubs>(tiles, geometry, x, out, reading),
        #[cfg(not(target_arch = "x86_64"))]
        Isa::Avx512Gfni | Isa::Avx512Vnni | Isa::AvxVnni | Isa::Avx2 => unreachable!("not available here"),
        Isa::Amx => unreachable!("takes many tokens"),
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => neon::matvec(tiles, geometry, x, out),
        #[cfg(not(target_arch = "aarch64"))]
        Isa::Neon => unreachable!("not available here"),
        Isa::Generic => generic::matvec(tiles, geometry, x, out),
    }
}

/// Several tokens' activations, laid out for [`matmul`].
pub struct Batch {
    pub n: usize,
    /// Inputs that a step of the kernels takes: 64, or a group of 32.
    pub step: usize,
    /// int8 [padded_cols / step, n, step], and [`Batch::SPARE`] more; starts at a multiple of 64.
    pub q: Scratch<i8>,
    /// [groups, n], and [`Batch::SPARE_TOKENS`] more.
    pub offsets: Vec<i32>,
    /// [groups, n], as [`Activations::halves`].
    pub halves: Vec<i32>,
    /// [n].
    pub scales: Vec<f32>,
    /// Bytes between the codes that are read and those asked for ahead, as in [`Reading`].
    pub ahead: usize,
}

impl Batch {
    /// Tokens beyond the last that a path may read.
    pub const SPARE_TOKENS: usize = 16;

    /// Their activations.
    pub const SPARE: usize = Self::SPARE_TOKENS * 64;

    pub fn new(tokens: &[Activations], geometry: &Geometry, threads: usize, ahead: usize) -> Self {
        let n = tokens.len();
        let step = geometry.width.clamp(1, 64);
        let worth = (65_536 / geometry.padded_cols().max(1)).max(1);
        let steps = geometry.padded_cols() / step;
        let mut q = Scratch::<i8>::new(steps * n * step + Self::SPARE);
        let (used, spare) = q.split_at_mut(steps * n * step);
        pool::columns_mut(used, n * step, worth * step, threads, |part, columns| {
            let tokens = &tokens[part * worth..n.min((part + 1) * worth)];
            for i in 0..steps {
                for token in tokens {
                    columns.push(&token.q[i * step..][..step]);
                }
            }
        });
        spare.fill(0);
        let mut offsets: Vec<i32> =
            (0..geometry.groups).flat_map(|g| tokens.iter().map(move |t| t.offsets[g])).collect();
        let halves = offsets.iter().map(|&offset| offset & 0xffff).collect();
        offsets.resize(offsets.len() + Self::SPARE_TOKENS, 0);
        Batch { n, step, q, offsets, halves, scales: tokens.iter().map(|t| t.scale).collect(), ahead }
    }
}

/// Tiles that [`matmul`] takes at most: the AVX-512 paths share every broadcast of activations among them. Measured
/// on registers and the first-level cache, products with a broadcast for each two of them reach 86 % of the
/// multipliers' peak, with one for each four 91 %.
pub const TILES: usize = 4;

/// Where each of `N` tiles of `size` bytes starts; the first stands in for those that are missing.
#[cfg(target_arch = "x86_64")]
fn starts<const N: usize>(tiles: &[u8], size: usize) -> [*const u8; N] {
    std::array::from_fn(|i| tiles.get(i * size..).filter(|rest| !rest.is_empty()).unwrap_or(tiles).as_ptr())
}

/// Products of one to [`TILES`] tiles with every token: `out` is [tiles, n, 16].
pub fn matmul(isa: Isa, tiles: &[u8], geometry: &Geometry, x: &Batch, out: &mut [f32]) {
    let size = geometry.tile_bytes();
    assert!(geometry.is_whole_steps());
    assert!(tiles.len().is_multiple_of(size) && (1..=TILES).contains(&(tiles.len() / size)));
    assert_eq!(out.len() * size, tiles.len() * x.n * TILE);
    assert_eq!(x.q.len(), geometry.padded_cols() * x.n + Batch::SPARE);
    assert_eq!(x.offsets.len(), geometry.groups * x.n + Batch::SPARE_TOKENS);
    assert_eq!((x.scales.len(), x.step), (x.n, geometry.width.clamp(1, 64)));
    assert_eq!(x.halves.len(), geometry.groups * x.n);
    match isa.for_tokens(x.n) {
        #[cfg(target_arch = "x86_64")]
        Isa::Amx => return amx::matmul(tiles, geometry, x, out),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Gfni => return avx512::matmul::<Affine>(tiles, geometry, x, out),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni => return avx512::matmul::<Mask>(tiles, geometry, x, out),
        _ => {}
    }
    for (tile, out) in tiles.chunks_exact(size).zip(out.chunks_exact_mut(x.n * TILE)) {
        one_tile(isa, tile, geometry, x, out);
    }
}

fn one_tile(isa: Isa, tile: &[u8], geometry: &Geometry, x: &Batch, out: &mut [f32]) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::AvxVnni => avx2_many::matmul::<Vnni>(tile, geometry, x, out),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => avx2_many::matmul::<Maddubs>(tile, geometry, x, out),
        Isa::Amx | Isa::Avx512Gfni | Isa::Avx512Vnni => unreachable!("takes all tiles at once"),
        #[cfg(not(target_arch = "x86_64"))]
        Isa::AvxVnni | Isa::Avx2 => unreachable!("not available here"),
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => neon::matmul(tile, geometry, x, out),
        #[cfg(not(target_arch = "aarch64"))]
        Isa::Neon => unreachable!("not available here"),
        Isa::Generic => generic::matmul(tile, geometry, x, out),
    }
}

#[cfg(test)]
mod tests;
