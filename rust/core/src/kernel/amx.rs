//! AMX for many tokens: a product of 16 tokens with 16 rows over 64 inputs in one instruction.
//!
//! Four chunks of codes, taken out of their bytes, are 16 lines of 16 rows x 4 inputs, which is the form that
//! `tdpbsud` wants its second matrix in; the first is 16 tokens' activations as [`Batch`] lays them out. Sums of a
//! block are exact and go to memory, from where the vector unit multiplies them with the block's scales.

use std::arch::asm;
use std::arch::x86_64::*;
use std::sync::OnceLock;

use super::unpack512::{Affine, Unpack};
use super::{starts, Batch};
use crate::known::known;
use crate::scratch::{Line, Scratch};
use crate::tiles::{Geometry, CHUNK, CHUNK_BYTES, TILE};

/// Tokens of one product.
pub const TOKENS: usize = 16;

/// Steps whose codes are unpacked at a time: 4 KB of each tile. Twice that was slower: sums,
/// totals and activations share the first-level cache with them.
const SPAN: usize = 4;

/// Tiles that share what is loaded of the activations.
const PAIR: usize = 2;

/// Runs whose sums are in memory at a time: products are begun one run before sums are used, so that the matrix unit
/// and the vector unit both have work.
const UNDER_WAY: usize = 2;

/// What `ldtilecfg` takes: palette, and for each of eight registers bytes of a line and lines.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    line_bytes: [u16; 16],
    lines: [u8; 16],
}

impl Shapes {
    const NONE: Shapes =
        Shapes { palette: 1, start_row: 0, reserved: [0; 14], line_bytes: [0; 16], lines: [0; 16] };
}

/// Sums of a product: [tokens, rows].
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Sums([[i32; TILE]; TOKENS]);

/// Codes of a span of one tile.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Codes([[u8; 1024]; SPAN]);

/// Steps of one block (a group of one plane) in a row, within a span.
#[derive(Clone, Copy, Default)]
struct Run {
    /// Its activations in the batch, and its codes in the span, in steps.
    at: usize,
    code: usize,
    steps: usize,
    group: usize,
    /// It begins its block.
    first: bool,
    /// It ends its block: sums are multiplied with the scales.
    last: bool,
}

/// AMX-INT8 beside GFNI and AVX-512, and the system lets this process use its registers.
pub fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *known(&AVAILABLE, || Affine::available() && cpu_has_it() && system_allows_it())
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
        let mut all = Shapes::NONE;
        all.line_bytes[..8].fill(64);
        all.lines[..8].fill(16);
        load(&all);
        asm!(
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

/// Registers 0 and 1 are sums [tokens, 16], 2 activations [tokens, step], 3 and 4 codes [step / 4, 16 x 4].
///
/// # Safety
/// AMX-INT8.
unsafe fn configure(tokens: usize, step: usize) {
    let mut shapes = Shapes::NONE;
    for (registers, bytes, lines) in
        [(&[0, 1][..], 64, tokens), (&[2], step, tokens), (&[3, 4], 64, step / 4)]
    {
        for &register in registers {
            (shapes.line_bytes[register], shapes.lines[register]) = (bytes as u16, lines as u8);
        }
    }
    // SAFETY: the caller's promise.
    unsafe { load(&shapes) };
}

/// # Safety
/// AMX.
unsafe fn load(shapes: &Shapes) {
    // SAFETY: a configuration of palette 1.
    unsafe { asm!("ldtilecfg [{}]", in(reg) shapes, options(readonly, nostack)) };
}

/// Some tiles with every token; `out` is [tiles, n, 16].
pub fn matmul(tiles: &[u8], geometry: &Geometry, x: &Batch, out: &mut [f32]) {
    let size = geometry.tile_bytes();
    let count = tiles.len() / size;
    assert!(available() && out.len() == count * x.n * TILE);
    assert!(x.q.len() >= geometry.padded_cols() * x.n + Batch::SPARE);
    assert!(x.offsets.len() >= geometry.groups * x.n + Batch::SPARE_TOKENS);
    // As even as can be: 20 tokens are 10 and 10.
    let tokens = x.n.div_ceil(x.n.div_ceil(TOKENS));
    let held = PAIR * x.n.next_multiple_of(TOKENS);
    let mut totals = Scratch::<Line>::new(held);
    let mut carried = Scratch::<Line>::new(held);
    // SAFETY: the CPU was checked; the lengths above cover tiles, batch and output.
    unsafe {
        configure(tokens, x.step);
        for (pair, out) in tiles.chunks(PAIR * size).zip(out.chunks_mut(PAIR * x.n * TILE)) {
            totals.fill(Line::default());
            let (totals, carried) = (totals.as_mut_ptr(), carried.as_mut_ptr());
            Many { geometry, x, tokens, held: held / PAIR, totals, carried }.pair(pair, out);
        }
        asm!("tilerelease", options(nostack));
    }
}

/// Two tiles, or one that stands in for both, with all tokens.
struct Many<'a> {
    geometry: &'a Geometry,
    x: &'a Batch,
    /// Tokens at a time.
    tokens: usize,
    /// [tiles, held] lines: products so far, and sums of blocks that a span does not end.
    held: usize,
    totals: *mut Line,
    carried: *mut Line,
}

impl Many<'_> {
    /// # Safety
    /// AMX-INT8, configured; whole tiles, `out` [tiles, n, 16].
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn pair(&self, tiles: &[u8], out: &mut [f32]) {
        let (g, step) = (self.geometry, self.x.step);
        let mut p: [*const u8; PAIR] = starts(tiles, g.tile_bytes());
        let per_block = g.width / step;
        let total = g.groups * g.planes * per_block;
        let mut codes = [const { Codes([[0; 1024]; SPAN]) }; PAIR];
        let mut sums = [const { [const { Sums([[0; TILE]; TOKENS]) }; PAIR] }; UNDER_WAY];
        let mut scales = [[_mm512_setzero_ps(); PAIR]; SPAN];
        let mut runs = [Run::default(); SPAN];
        let mut next = 0;
        // SAFETY: each p walks over its tile, `total` steps long.
        unsafe {
            while next < total {
                let (mut count, mut code) = (0, 0);
                while code < SPAN && next < total {
                    let (block, first) = (next / per_block, next % per_block);
                    let steps = (per_block - first).min(SPAN - code);
                    let group = block / g.planes;
                    let last = first + steps == per_block;
                    runs[count] =
                        Run { at: group * per_block + first, code, steps, group, first: first == 0, last };
                    for ((p, codes), tile) in p.iter_mut().zip(&mut codes).zip(0..) {
                        for codes in &mut codes.0[code..code + steps] {
                            *p = unpack(*p, step, codes, self.x.ahead);
                        }
                        if last {
                            scales[count][tile] = _mm512_cvtph_ps(_mm256_loadu_si256(p.cast()));
                            *p = p.add(2 * TILE);
                        }
                    }
                    (next, code, count) = (next + steps, code + steps, count + 1);
                }
                for first in (0..self.x.n).step_by(self.tokens) {
                    self.span(&codes, &scales, &runs[..count], first, &mut sums);
                }
            }
            for (at, out) in out.chunks_exact_mut(TILE).enumerate() {
                let (tile, token) = (at / self.x.n, at % self.x.n);
                let total = _mm512_load_ps(self.totals.add(tile * self.held + token).cast());
                _mm512_storeu_ps(
                    out.as_mut_ptr(),
                    _mm512_mul_ps(total, _mm512_set1_ps(self.x.scales[token])),
                );
            }
        }
    }

    /// Add a span's runs for the tokens from `first` on.
    ///
    /// # Safety
    /// See [`Many::pair`]; at most [`SPAN`] runs, at least one.
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn span(
        &self,
        codes: &[Codes; PAIR],
        scales: &[[__m512; PAIR]; SPAN],
        runs: &[Run],
        first: usize,
        sums: &mut [[Sums; PAIR]; UNDER_WAY],
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            for ahead in 0..runs.len() + UNDER_WAY / 2 {
                if let Some(run) = runs.get(ahead) {
                    self.begin(codes, run, first, &mut sums[ahead % UNDER_WAY]);
                }
                if let Some(index) = ahead.checked_sub(UNDER_WAY / 2) {
                    self.end(&scales[index], &runs[index], first, &sums[index % UNDER_WAY]);
                }
            }
        }
    }

    /// The products of a run: sums of each tile.
    ///
    /// # Safety
    /// See [`Many::span`].
    #[inline]
    unsafe fn begin(&self, codes: &[Codes; PAIR], run: &Run, first: usize, sums: &mut [Sums; PAIR]) {
        let (n, step) = (self.x.n, self.x.step);
        // SAFETY: the caller's promise; the batch has the steps of all groups.
        unsafe {
            let q = self.x.q.as_ptr().add((run.at * n + first) * step);
            let codes = codes.each_ref().map(|codes| codes.0[run.code..].as_ptr());
            products(q, n * step, step, codes, run.steps, sums);
        }
    }

    /// Take a run's sums: into the totals where its block ends, else they are kept for the next run.
    ///
    /// # Safety
    /// See [`Many::span`].
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn end(&self, scales: &[__m512; PAIR], run: &Run, first: usize, sums: &[Sums; PAIR]) {
        // SAFETY: lines of tokens below `held`, offsets of spare ones.
        unsafe {
            let offsets = self.x.offsets.as_ptr().add(run.group * self.x.n + first);
            for tile in 0..PAIR {
                let at = tile * self.held + first;
                let (totals, carried) = (self.totals.add(at), self.carried.add(at));
                for t in 0..self.tokens {
                    let sum = _mm512_load_si512(sums[tile].0[t].as_ptr().cast());
                    let begun = match run.first {
                        true => _mm512_set1_epi32(*offsets.add(t)),
                        false => _mm512_load_si512(carried.add(t).cast()),
                    };
                    let sum = _mm512_add_epi32(sum, begun);
                    match run.last {
                        true => {
                            let total = _mm512_load_ps(totals.add(t).cast());
                            let total = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scales[tile], total);
                            _mm512_store_ps(totals.add(t).cast(), total);
                        }
                        false => _mm512_store_si512(carried.add(t).cast(), sum),
                    }
                }
            }
        }
    }
}

/// Codes of a step of one tile as lines of 16 rows x 4 inputs; returns where the next step's are.
///
/// # Safety
/// AVX-512 BW and GFNI; `step` is 32 or 64, and `step * 4` bytes can be read.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn unpack(mut p: *const u8, step: usize, codes: &mut [u8; 1024], ahead: usize) -> *const u8 {
    // SAFETY: the caller's promise; 256 bytes for each 16 inputs are written, asking ahead is harmless.
    unsafe {
        for to in codes.chunks_exact_mut(4 * CHUNK_BYTES).take(step / CHUNK) {
            _mm_prefetch::<_MM_HINT_T0>(p.wrapping_add(ahead).cast());
            for (line, to) in
                Affine::plain(_mm512_loadu_si512(p.cast())).into_iter().zip(to.chunks_exact_mut(64))
            {
                _mm512_store_si512(to.as_mut_ptr().cast(), line);
            }
            p = p.add(CHUNK_BYTES);
        }
    }
    p
}

/// `sums` = activations at `q` (a line for each token, every `line` bytes; `steps` of them every `stride`) times the
/// codes of each tile, 1024 bytes a step.
///
/// # Safety
/// AMX-INT8, configured; all can be read.
#[inline(always)]
unsafe fn products(
    q: *const i8,
    stride: usize,
    line: usize,
    codes: [*const [u8; 1024]; PAIR],
    steps: usize,
    sums: &mut [Sums; PAIR],
) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "2:",
            "tileloadd tmm2, [{q} + {line} * 1]",
            "tileloadd tmm3, [{a} + {row} * 1]",
            "tdpbsud tmm0, tmm2, tmm3",
            "tileloadd tmm4, [{b} + {row} * 1]",
            "tdpbsud tmm1, tmm2, tmm4",
            "add {q}, {stride}",
            "add {a}, 1024",
            "add {b}, 1024",
            "sub {steps}, 1",
            "ja 2b",
            "tilestored [{sums} + {row} * 1], tmm0",
            "add {sums}, 1024",
            "tilestored [{sums} + {row} * 1], tmm1",
            q = inout(reg) q => _,
            a = inout(reg) codes[0] => _,
            b = inout(reg) codes[1] => _,
            steps = inout(reg) steps => _,
            stride = in(reg) stride,
            line = in(reg) line,
            row = in(reg) 64usize,
            sums = inout(reg) sums.as_mut_ptr() => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _,
            options(nostack),
        );
    }
}
