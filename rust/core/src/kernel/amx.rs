//! AMX for many tokens: a product of 16 tokens with 16 rows over 64 inputs in one instruction.
//!
//! Four chunks of codes, taken out of their bytes, are 16 lines of 16 rows x 4 inputs, which is the form that
//! `tdpbsud` wants its second matrix in; the first is 16 tokens' activations as [`Batch`] lays them out. Sums of a
//! block are exact and go to memory, from where the vector unit multiplies them with the block's scales.

use std::arch::asm;
use std::arch::x86_64::*;
use std::sync::OnceLock;

use super::unpack512::{Affine, Unpack};
use super::Batch;
use crate::scratch::Scratch;
use crate::tiles::{Geometry, CHUNK_BYTES, TILE};

/// Tokens from which on this path is the faster one.
pub const FEWEST: usize = 5;

/// Tokens of one product.
pub const TOKENS: usize = 16;

/// Blocks whose products are under way at a time: none waits for another's.
const SIDE_BY_SIDE: usize = 4;

/// Steps from which on a block is long.
const LONG: usize = 8;

/// What `ldtilecfg` takes: palette, and for each of eight registers bytes of a line and lines.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    line_bytes: [u16; 16],
    lines: [u8; 16],
}

/// Sums of a product: [tokens, rows].
#[repr(C, align(64))]
struct Sums([[i32; TILE]; TOKENS]);

/// AMX-INT8 beside GFNI and AVX-512, and the system lets this process use its registers.
pub fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| Affine::available() && cpu_has_it() && system_allows_it())
}

fn cpu_has_it() -> bool {
    const TILE_AND_INT8: u32 = (1 << 24) | (1 << 25);
    const OSXSAVE: u32 = 1 << 27;
    /// Tile configuration and data, which the system saves for each thread.
    const STATE: u64 = (1 << 17) | (1 << 18);
    // The call is unsafe in older compilers only.
    #[allow(unused_unsafe)]
    // SAFETY: every x86-64 CPU has `cpuid`; leaf 7 is asked for where there is one.
    let (features, basic) = unsafe {
        if __cpuid(0).eax < 7 {
            return false;
        }
        (__cpuid_count(7, 0).edx, __cpuid(1).ecx)
    };
    if features & TILE_AND_INT8 != TILE_AND_INT8 || basic & OSXSAVE == 0 {
        return false;
    }
    let (low, high): (u32, u32);
    // SAFETY: OSXSAVE says that `xgetbv` may be used.
    unsafe { asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack)) };
    ((u64::from(high) << 32) | u64::from(low)) & STATE == STATE
}

/// Linux gives the registers' 8 KB to processes that ask.
#[cfg(target_os = "linux")]
fn system_allows_it() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XTILEDATA: libc::c_long = 18;
    // SAFETY: a request by two numbers; a system that does not know it answers with an error.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn system_allows_it() -> bool {
    false
}

/// Operations of a product: 16 tokens, 16 rows, 64 inputs.
pub const OPERATIONS: f64 = 2.0 * 16.0 * 16.0 * 64.0;

/// `count` times four products on registers.
pub fn multiply_loop(count: usize) {
    assert!(available());
    // SAFETY: the CPU was checked; only registers are used.
    unsafe {
        configure(TOKENS, 64);
        asm!(
            "tilezero tmm4",
            "tilezero tmm5",
            "2:",
            "tdpbsud tmm0, tmm4, tmm5",
            "tdpbsud tmm1, tmm4, tmm5",
            "tdpbsud tmm2, tmm4, tmm5",
            "tdpbsud tmm3, tmm4, tmm5",
            "sub {n}, 1",
            "ja 2b",
            "tilerelease",
            n = inout(reg) count.max(1) => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _, out("tmm5") _,
            options(nomem, nostack),
        );
    }
}

/// Registers 0 to 3 are sums [tokens, 16], 4 and 6 activations [tokens, step], 5 and 7 codes [step / 4, 16 x 4].
///
/// # Safety
/// AMX-INT8.
unsafe fn configure(tokens: usize, step: usize) {
    let mut shapes =
        Shapes { palette: 1, start_row: 0, reserved: [0; 14], line_bytes: [0; 16], lines: [0; 16] };
    for (registers, bytes, lines) in
        [(&[0, 1, 2, 3][..], 64, tokens), (&[4, 6], step, tokens), (&[5, 7], 64, step / 4)]
    {
        for &register in registers {
            (shapes.line_bytes[register], shapes.lines[register]) = (bytes as u16, lines as u8);
        }
    }
    // SAFETY: a valid configuration of palette 1.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &shapes, options(readonly, nostack)) };
}

/// Some tiles with every token; `out` is [tiles, n, 16].
pub fn matmul(tiles: &[u8], geometry: &Geometry, x: &Batch, out: &mut [f32]) {
    let size = geometry.tile_bytes();
    let count = tiles.len() / size;
    assert!(available() && out.len() == count * x.n * TILE);
    assert!(x.q.len() >= geometry.padded_cols() * x.n + Batch::SPARE && x.offsets.len() >= geometry.groups * x.n);
    let many = Many::new(geometry, x);
    let (lines, blocks) = (geometry.padded_cols() / 4 * geometry.planes, geometry.groups * geometry.planes);
    // One line more, so that they can start at a multiple of 64 bytes.
    let mut codes = Scratch::<[u32; 16]>::new(lines + 1);
    let mut scales = Scratch::<[f32; 16]>::new(blocks);
    let spare = codes.as_ptr().cast::<u8>().align_offset(64);
    // SAFETY: the CPU was checked; the lengths above cover tiles, batch and output; `codes` and `scales` hold what a
    // tile unpacks to.
    unsafe {
        let codes = codes.as_mut_ptr().cast::<u8>().add(spare);
        configure(many.tokens, x.step);
        for (tile, out) in tiles.chunks_exact(size).zip(out.chunks_exact_mut(x.n * TILE)) {
            unpack(tile, geometry, codes, scales.as_mut_ptr());
            many.times(codes, scales.as_ptr(), out.as_mut_ptr());
        }
        asm!("tilerelease", options(nostack));
    }
}

/// Codes of a tile as lines [padded_cols * planes / 4] of 64 bytes, and the blocks' scales in float32.
///
/// # Safety
/// AVX-512 BW and GFNI; a whole tile; `codes` (aligned) and `scales` have room.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn unpack(tile: &[u8], geometry: &Geometry, mut codes: *mut u8, mut scales: *mut [f32; 16]) {
    let code_bytes = geometry.code_bytes();
    for block in tile.chunks_exact(geometry.block_bytes()) {
        let (packed, halves) = block.split_at(code_bytes);
        // SAFETY: the caller's promise; scales are 32 bytes.
        unsafe {
            for chunk in packed.chunks_exact(CHUNK_BYTES) {
                for line in Affine::plain(_mm512_loadu_si512(chunk.as_ptr().cast())) {
                    _mm512_store_si512(codes.cast(), line);
                    codes = codes.add(64);
                }
            }
            let values = _mm512_cvtph_ps(_mm256_loadu_si256(halves.as_ptr().cast()));
            _mm512_storeu_ps(scales.cast(), values);
            scales = scales.add(1);
        }
    }
}

/// All tokens, at most 16 at a time and as even as can be.
struct Many<'a> {
    geometry: &'a Geometry,
    x: &'a Batch,
    tokens: usize,
}

impl<'a> Many<'a> {
    fn new(geometry: &'a Geometry, x: &'a Batch) -> Self {
        Many { geometry, x, tokens: x.n.div_ceil(x.n.div_ceil(TOKENS)) }
    }

    /// One tile, unpacked, with all tokens.
    ///
    /// # Safety
    /// See [`matmul`]; the registers are configured.
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn times(&self, codes: *const u8, scales: *const [f32; 16], out: *mut f32) {
        let n = self.x.n;
        for first in (0..n).step_by(self.tokens) {
            // SAFETY: the caller's promise; tokens from `first` on.
            unsafe {
                let count = self.tokens.min(n - first);
                let y = out.add(first * TILE);
                match count {
                    1..=4 => self.some_tokens::<4>(codes, scales, y, first, count),
                    5..=8 => self.some_tokens::<8>(codes, scales, y, first, count),
                    _ => self.some_tokens::<16>(codes, scales, y, first, count),
                }
            }
        }
    }

    /// `count` tokens from `first` on, at most `T`.
    ///
    /// # Safety
    /// See [`Many::times`].
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn some_tokens<const T: usize>(
        &self,
        codes: *const u8,
        scales: *const [f32; 16],
        y: *mut f32,
        first: usize,
        count: usize,
    ) {
        let (g, n, step) = (self.geometry, self.x.n, self.x.step);
        let per_block = g.width / step;
        let blocks = g.groups * g.planes;
        let block_codes = per_block * step / 4 * 64;
        let mut totals = [_mm512_setzero_ps(); T];
        let mut sums = [const { Sums([[0; TILE]; TOKENS]) }; SIDE_BY_SIDE];
        // SAFETY: the caller's promise; blocks stay below those of the tile. Offsets of tokens beyond the last
        // are read from the spare ones.
        unsafe {
            let q = self.x.q.as_ptr().add(first * step);
            let mut block = 0;
            while block < blocks && per_block >= LONG {
                let group = block / g.planes;
                let (q, codes) = (q.add(group * per_block * n * step), codes.add(block * block_codes));
                let even = per_block / SIDE_BY_SIDE * SIDE_BY_SIDE;
                long_product(q, n * step, step, codes, even, &mut sums);
                let mut exact: [__m512i; T] = std::array::from_fn(|t| {
                    let [a, b, c, d] = &sums;
                    let [a, b, c, d] = [a, b, c, d].map(|s| _mm512_load_si512(s.0[t].as_ptr().cast()));
                    _mm512_add_epi32(_mm512_add_epi32(a, b), _mm512_add_epi32(c, d))
                });
                if even < per_block {
                    let (q, codes) = (q.add(even * n * step), codes.add(even * step * 16));
                    product(q, n * step, step, codes, per_block - even, &mut sums[0]);
                    for (exact, more) in exact.iter_mut().zip(&sums[0].0) {
                        *exact = _mm512_add_epi32(*exact, _mm512_load_si512(more.as_ptr().cast()));
                    }
                }
                let offsets = self.x.offsets.as_ptr().add(group * n + first);
                add_scaled(&mut totals, exact, scales.add(block), offsets);
                block += 1;
            }
            while block < blocks {
                let some = SIDE_BY_SIDE.min(blocks - block);
                for (i, sums) in sums.iter_mut().enumerate().take(some) {
                    let group = (block + i) / g.planes;
                    let q = q.add(group * per_block * n * step);
                    product(q, n * step, step, codes.add((block + i) * block_codes), per_block, sums);
                }
                for (i, sums) in sums.iter().enumerate().take(some) {
                    let exact = std::array::from_fn(|t| _mm512_load_si512(sums.0[t].as_ptr().cast()));
                    let offsets = self.x.offsets.as_ptr().add((block + i) / g.planes * n + first);
                    add_scaled(&mut totals, exact, scales.add(block + i), offsets);
                }
                block += some;
            }
            for (t, &total) in totals.iter().enumerate().take(count) {
                let scale = _mm512_set1_ps(self.x.scales[first + t]);
                _mm512_storeu_ps(y.add(t * TILE), _mm512_mul_ps(total, scale));
            }
        }
    }
}

/// Add a block's sums of `T` tokens, each with its offset, times the 16 scales.
///
/// # Safety
/// AVX-512; 16 floats and `T` offsets can be read.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn add_scaled<const T: usize>(
    totals: &mut [__m512; T],
    exact: [__m512i; T],
    scales: *const [f32; 16],
    offsets: *const i32,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let scales = _mm512_loadu_ps(scales.cast());
        for (t, (total, exact)) in totals.iter_mut().zip(exact).enumerate() {
            let sum = _mm512_add_epi32(exact, _mm512_set1_epi32(*offsets.add(t)));
            *total = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scales, *total);
        }
    }
}

/// `sums` = activations at `q` (a line for each token, every `line` bytes; `steps` of them every `stride`) times
/// the codes at `codes`, `line` x 16 bytes a step.
///
/// # Safety
/// AMX-INT8, configured; all can be read and written.
#[inline(always)]
unsafe fn product(q: *const i8, stride: usize, line: usize, codes: *const u8, steps: usize, sums: &mut Sums) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "tilezero tmm0",
            "2:",
            "tileloadd tmm4, [{q} + {line} * 1]",
            "tileloadd tmm5, [{codes} + {row} * 1]",
            "tdpbsud tmm0, tmm4, tmm5",
            "add {q}, {stride}",
            "add {codes}, {per}",
            "sub {steps}, 1",
            "ja 2b",
            "tilestored [{sums} + {row} * 1], tmm0",
            q = inout(reg) q => _,
            codes = inout(reg) codes => _,
            steps = inout(reg) steps => _,
            stride = in(reg) stride,
            line = in(reg) line,
            per = in(reg) line * 16,
            row = in(reg) 64usize,
            sums = in(reg) sums,
            out("tmm0") _, out("tmm4") _, out("tmm5") _,
            options(nostack),
        );
    }
}

/// As [`product`] for a long block: four sums take the steps in turn, because a product on a sum waits for the one
/// before it for as long as three more take. The block's sums are those of all four.
///
/// # Safety
/// As [`product`]; `steps` is a multiple of four and not zero.
#[inline(always)]
unsafe fn long_product(
    q: *const i8,
    stride: usize,
    line: usize,
    codes: *const u8,
    steps: usize,
    sums: &mut [Sums; SIDE_BY_SIDE],
) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:",
            "tileloadd tmm4, [{q} + {line} * 1]",
            "tileloadd tmm5, [{codes} + {row} * 1]",
            "add {q}, {stride}",
            "add {codes}, {per}",
            "tdpbsud tmm0, tmm4, tmm5",
            "tileloadd tmm6, [{q} + {line} * 1]",
            "tileloadd tmm7, [{codes} + {row} * 1]",
            "add {q}, {stride}",
            "add {codes}, {per}",
            "tdpbsud tmm1, tmm6, tmm7",
            "tileloadd tmm4, [{q} + {line} * 1]",
            "tileloadd tmm5, [{codes} + {row} * 1]",
            "add {q}, {stride}",
            "add {codes}, {per}",
            "tdpbsud tmm2, tmm4, tmm5",
            "tileloadd tmm6, [{q} + {line} * 1]",
            "tileloadd tmm7, [{codes} + {row} * 1]",
            "add {q}, {stride}",
            "add {codes}, {per}",
            "tdpbsud tmm3, tmm6, tmm7",
            "sub {steps}, 4",
            "ja 2b",
            "tilestored [{sums} + {row} * 1], tmm0",
            "add {sums}, 1024",
            "tilestored [{sums} + {row} * 1], tmm1",
            "add {sums}, 1024",
            "tilestored [{sums} + {row} * 1], tmm2",
            "add {sums}, 1024",
            "tilestored [{sums} + {row} * 1], tmm3",
            q = inout(reg) q => _,
            codes = inout(reg) codes => _,
            steps = inout(reg) steps => _,
            stride = in(reg) stride,
            line = in(reg) line,
            per = in(reg) line * 16,
            row = in(reg) 64usize,
            sums = inout(reg) sums.as_mut_ptr() => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}
