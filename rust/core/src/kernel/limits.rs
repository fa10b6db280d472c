//! What this machine can do at most: the floors that the kernels are measured against.

use std::hint::black_box;
use std::time::{Duration, Instant};

use super::{vectorized, Activations, Isa};
use crate::error::Result;
use crate::memory::ask_for;
use crate::pool;
use crate::tiles::{Aligned, Geometry, TILE};

/// Measured limits with a number of threads.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Reading from memory.
    pub memory: Read,
    /// Reading what was just read, half of the last-level cache but 16 MB at most.
    pub cache: Read,
    /// Unpacking and multiplying one token, 10^9 operations a second (a product and a sum are two): on registers,
    /// by the path itself on one tile where it is NEON or without vectors.
    pub unpack_gop_s: f64,
    /// Multiplying and accumulating alone, without unpacking: the limit for many tokens.
    pub multiply_gop_s: f64,
    /// The same of the matrix unit, where the path has one.
    pub matrix_gop_s: Option<f64>,
}

/// The best of several ways to read.
#[derive(Clone, Copy, Debug)]
pub struct Read {
    /// 10^9 bytes a second.
    pub gb_s: f64,
    /// Places read in turn by each thread.
    pub streams: usize,
    /// Bytes between what is read and what is asked for.
    pub ahead: usize,
}

/// Measure for about a second. `isa` is the path whose instructions are timed. Errors: no memory (256 MB).
pub fn measure(isa: Isa, threads: usize) -> Result<Limits> {
    Ok(Limits {
        memory: bandwidth(256 << 20, threads, 3)?,
        cache: read_again((last_level_cache() / 2).clamp(2 << 20, 16 << 20), threads)?,
        unpack_gop_s: rate(threads, |time| unpack_rate(isa, time)),
        multiply_gop_s: rate(threads, |time| multiply_rate(isa, time)),
        matrix_gop_s: has_matrix_unit(isa).then(|| rate(threads, matrix_rate)),
    })
}

/// Bytes of the last-level cache as Linux tells them; 32 MB where nothing does.
fn last_level_cache() -> usize {
    let told = std::fs::read_to_string("/sys/devices/system/cpu/cpu0/cache/index3/size").ok();
    let kilobytes = told.and_then(|told| told.trim().strip_suffix('K')?.parse::<usize>().ok());
    kilobytes.map_or(32 << 20, |kilobytes| kilobytes << 10)
}

/// When `bytes` are read again and again: what the caches that they fit in give.
pub fn read_again(bytes: usize, threads: usize) -> Result<Read> {
    bandwidth(bytes, threads, ((128 << 20) / bytes.max(1)).clamp(5, 200))
}

/// Reading `bytes`, each thread its part, in the best of several ways.
fn bandwidth(bytes: usize, threads: usize, rounds: usize) -> Result<Read> {
    let mut words = Aligned::zeroed(bytes)?;
    words.as_mut_slice().fill(1);
    let mut best = Read { gb_s: 0.0, streams: 1, ahead: 0 };
    for streams in [1, 2, 4, 8] {
        for ahead in [0, 1024, 2048, 4096] {
            for _ in 0..rounds + 1 {
                let start = Instant::now();
                read_once(words.as_slice(), threads, streams, ahead);
                let gb_s = bytes as f64 / start.elapsed().as_secs_f64() / 1e9;
                if gb_s > best.gb_s {
                    best = Read { gb_s, streams, ahead };
                }
            }
        }
    }
    Ok(best)
}

/// Read all bytes (but for less than 256 a stream), each thread its part, `streams` places of it in turn.
pub fn read_once(bytes: &[u8], threads: usize, streams: usize, ahead: usize) {
    let part = bytes.len() / threads;
    pool::run(threads, threads, |index| {
        black_box(read(&bytes[index * part..(index + 1) * part], streams.max(1), ahead));
    });
}

vectorized! {
    /// Read all bytes in `streams` places in turn, asking for those `ahead` of each.
    fn read(bytes: &[u8], streams: usize, ahead: usize) -> u8 = read_inlined;
}

#[inline(always)]
fn read_inlined(bytes: &[u8], streams: usize, ahead: usize) -> u8 {
    const LANES: usize = 256;
    let length = bytes.len() / streams / LANES;
    let mut lanes = [0u8; LANES];
    for at in 0..length {
        for stream in 0..streams {
            let from = &bytes[(stream * length + at) * LANES..][..LANES];
            if ahead > 0 {
                for line in 0..LANES / 64 {
                    ask_for(from.as_ptr().wrapping_add(ahead + 64 * line));
                }
            }
            for (lane, &byte) in lanes.iter_mut().zip(from) {
                *lane |= byte;
            }
        }
    }
    lanes.iter().fold(0, |a, b| a | b)
}

/// Sum over the threads of what each reaches while all run.
fn rate(threads: usize, body: impl Fn(Duration) -> f64 + Sync) -> f64 {
    let mut rates = vec![0f64; threads];
    pool::chunks_mut(&mut rates, 1, threads, |_, rate| rate[0] = body(Duration::from_millis(60)));
    rates.iter().sum()
}

/// Repeat `body` (`operations` each time) for `time`; the best rate of a repeat, in 10^9 a second.
fn best_rate(operations: f64, time: Duration, mut body: impl FnMut()) -> f64 {
    let start = Instant::now();
    let mut best = f64::MAX;
    while start.elapsed() < time {
        let one = Instant::now();
        body();
        best = best.min(one.elapsed().as_secs_f64());
    }
    operations / best / 1e9
}

/// The rate of a loop on registers of a path, `operations` each turn.
#[cfg(target_arch = "x86_64")]
fn loop_rate(isa: Isa, operations: f64, time: Duration, body: unsafe fn(usize)) -> f64 {
    assert!(isa.available());
    // SAFETY: the CPU was just checked.
    best_rate(20_000.0 * operations, time, || unsafe { body(20_000) })
}

fn unpack_rate(isa: Isa, time: Duration) -> f64 {
    match isa.for_tokens(1) {
        #[cfg(target_arch = "x86_64")]
        one @ Isa::Avx512Gfni => loop_rate(one, 512.0, time, loops::avx512_affine_loop),
        #[cfg(target_arch = "x86_64")]
        one @ Isa::Avx512Vnni => loop_rate(one, 512.0, time, loops::avx512_mask_loop),
        #[cfg(target_arch = "x86_64")]
        one @ Isa::AvxVnni => loop_rate(one, 512.0, time, loops::avx_vnni_unpack_loop),
        #[cfg(target_arch = "x86_64")]
        one @ Isa::Avx2 => loop_rate(one, 512.0, time, loops::avx2_unpack_loop),
        // Elsewhere the path itself, with one scale a row, on a tile that stays in the first-level cache: what is
        // measured against it shows what memory, groups and threads add, not how good the inner step is.
        _ => {
            let geometry = Geometry::new(TILE, 2048, 1, 0);
            let x = Activations::quantize(&[1.0; 2048], &geometry);
            let (Ok(x), Ok(tiles)) = (x, Aligned::zeroed(geometry.tile_bytes())) else { return 0.0 };
            let mut out = [0f32; TILE];
            best_rate(100.0 * 2.0 * (TILE * 2048) as f64, time, || {
                for _ in 0..100 {
                    super::matvec(
                        isa,
                        black_box(tiles.as_slice()),
                        &geometry,
                        &x,
                        &mut out,
                        super::Reading::usual(isa),
                    );
                }
            })
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn has_matrix_unit(isa: Isa) -> bool {
    isa == Isa::Amx && isa.available()
}

#[cfg(not(target_arch = "x86_64"))]
fn has_matrix_unit(_: Isa) -> bool {
    false
}

fn matrix_rate(time: Duration) -> f64 {
    #[cfg(target_arch = "x86_64")]
    return best_rate(4.0 * 5_000.0 * super::amx::OPERATIONS, time, || super::amx::multiply_loop(5_000));
    #[cfg(not(target_arch = "x86_64"))]
    unreachable!("no matrix unit here: {time:?}")
}

/// Whether taking codes out by GFNI is as fast beside `vpdpbusd` as by masks: it is where the two have ports of
/// their own. A tenth of a millisecond.
#[cfg(target_arch = "x86_64")]
pub fn affine_costs_no_more() -> bool {
    assert!(Isa::Avx512Gfni.available());
    let (mut affine, mut mask) = (f64::MAX, f64::MAX);
    let seconds = |body: &dyn Fn()| {
        let start = Instant::now();
        body();
        start.elapsed().as_secs_f64()
    };
    for _ in 0..8 {
        // SAFETY: the CPU was just checked.
        affine = affine.min(seconds(&|| unsafe { loops::avx512_affine_loop(1500) }));
        // SAFETY: as above.
        mask = mask.min(seconds(&|| unsafe { loops::avx512_mask_loop(1500) }));
    }
    affine <= 1.15 * mask
}

fn multiply_rate(isa: Isa, time: Duration) -> f64 {
    match isa.for_tokens(1) {
        #[cfg(target_arch = "x86_64")]
        one @ (Isa::Avx512Gfni | Isa::Avx512Vnni) => {
            loop_rate(one, 1536.0, time, loops::avx512_multiply_loop)
        }
        #[cfg(target_arch = "x86_64")]
        one @ Isa::AvxVnni => loop_rate(one, 640.0, time, loops::avx_vnni_multiply_loop),
        #[cfg(target_arch = "x86_64")]
        one @ Isa::Avx2 => loop_rate(one, 512.0, time, loops::avx2_multiply_loop),
        _ => unpack_rate(isa, time),
    }
}

/// The loops whose rates are the limits, on registers alone.
#[cfg(target_arch = "x86_64")]
mod loops {
    use std::arch::asm;

    /// The matvec's instructions on registers, `count` times (512 operations each): four times what takes codes
    /// out of `w` and a `vpdpbusd`. Twelve sums, so that none is waited for.
    macro_rules! unpack_loop {
        ($name:ident, $unpack:literal, $constant:literal) => {
            #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
            pub fn $name(count: usize) {
                // SAFETY: only registers are used; the caller checked the CPU.
                unsafe {
                    asm!(
                        "2:",
                        concat!($unpack, " {t0}, {w}, {w}", $constant), "vpdpbusd {a0}, {t0}, {w}",
                        concat!($unpack, " {t1}, {w}, {w}", $constant), "vpdpbusd {a1}, {t1}, {w}",
                        concat!($unpack, " {t2}, {w}, {w}", $constant), "vpdpbusd {a2}, {t2}, {w}",
                        concat!($unpack, " {t0}, {w}, {w}", $constant), "vpdpbusd {a3}, {t0}, {w}",
                        concat!($unpack, " {t0}, {w}, {w}", $constant), "vpdpbusd {a4}, {t0}, {w}",
                        concat!($unpack, " {t1}, {w}, {w}", $constant), "vpdpbusd {a5}, {t1}, {w}",
                        concat!($unpack, " {t2}, {w}, {w}", $constant), "vpdpbusd {a6}, {t2}, {w}",
                        concat!($unpack, " {t0}, {w}, {w}", $constant), "vpdpbusd {a7}, {t0}, {w}",
                        concat!($unpack, " {t0}, {w}, {w}", $constant), "vpdpbusd {a8}, {t0}, {w}",
                        concat!($unpack, " {t1}, {w}, {w}", $constant), "vpdpbusd {a9}, {t1}, {w}",
                        concat!($unpack, " {t2}, {w}, {w}", $constant), "vpdpbusd {b0}, {t2}, {w}",
                        concat!($unpack, " {t0}, {w}, {w}", $constant), "vpdpbusd {b1}, {t0}, {w}",
                        "sub {n}, 3",
                        "ja 2b",
                        n = inout(reg) count.max(3).next_multiple_of(3) => _,
                        w = out(zmm_reg) _,
                        t0 = out(zmm_reg) _, t1 = out(zmm_reg) _, t2 = out(zmm_reg) _,
                        a0 = out(zmm_reg) _, a1 = out(zmm_reg) _, a2 = out(zmm_reg) _, a3 = out(zmm_reg) _,
                        a4 = out(zmm_reg) _, a5 = out(zmm_reg) _, a6 = out(zmm_reg) _, a7 = out(zmm_reg) _,
                        a8 = out(zmm_reg) _, a9 = out(zmm_reg) _, b0 = out(zmm_reg) _, b1 = out(zmm_reg) _,
                        options(nomem, nostack),
                    );
                }
            }
        };
    }

    unpack_loop!(avx512_mask_loop, "vpandd", "");
    unpack_loop!(avx512_affine_loop, "vgf2p8affineqb", ", 0");

    /// `count` times twelve `vpdpbusd` (1536 operations) on registers.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    pub fn avx512_multiply_loop(count: usize) {
        // SAFETY: only registers are used; the caller checked the CPU.
        unsafe {
            asm!(
                "2:",
                "vpdpbusd {a0}, {w}, {w}", "vpdpbusd {a1}, {w}, {w}", "vpdpbusd {a2}, {w}, {w}", "vpdpbusd {a3}, {w}, {w}",
                "vpdpbusd {a4}, {w}, {w}", "vpdpbusd {a5}, {w}, {w}", "vpdpbusd {a6}, {w}, {w}", "vpdpbusd {a7}, {w}, {w}",
                "vpdpbusd {a8}, {w}, {w}", "vpdpbusd {a9}, {w}, {w}", "vpdpbusd {b0}, {w}, {w}", "vpdpbusd {b1}, {w}, {w}",
                "sub {n}, 1",
                "ja 2b",
                n = inout(reg) count.max(1) => _,
                w = out(zmm_reg) _,
                a0 = out(zmm_reg) _, a1 = out(zmm_reg) _, a2 = out(zmm_reg) _, a3 = out(zmm_reg) _,
                a4 = out(zmm_reg) _, a5 = out(zmm_reg) _, a6 = out(zmm_reg) _, a7 = out(zmm_reg) _,
                a8 = out(zmm_reg) _, a9 = out(zmm_reg) _, b0 = out(zmm_reg) _, b1 = out(zmm_reg) _,
                options(nomem, nostack),
            );
        }
    }

    /// What the 256-bit paths do with a chunk (64 bytes, 512 operations), `count` times on registers: a shift and
    /// four masks for each half, products and sums by `$add` of a sum, codes and activations.
    macro_rules! unpack_loop_256 {
        ($name:ident, $add:ident) => {
            #[target_feature(enable = "avx2")]
            pub fn $name(count: usize) {
                // SAFETY: only registers are used; the caller checked the CPU.
                unsafe {
                    asm!(
                        "2:",
                        "vpsrlw {p}, {w}, 4", "vpsrlw {q}, {w}, 4",
                        "vpand {m}, {w}, {m0}", "vpand {n}, {w}, {m0}", $add!("a0", "a1"),
                        "vpand {m}, {w}, {m1}", "vpand {n}, {w}, {m1}", $add!("b0", "b1"),
                        "vpand {m}, {p}, {m0}", "vpand {n}, {q}, {m0}", $add!("c0", "c1"),
                        "vpand {m}, {p}, {m1}", "vpand {n}, {q}, {m1}", $add!("d0", "d1"),
                        "sub {count}, 1",
                        "ja 2b",
                        count = inout(reg) count.max(1) => _,
                        w = out(ymm_reg) _, m0 = out(ymm_reg) _, m1 = out(ymm_reg) _,
                        m = out(ymm_reg) _, n = out(ymm_reg) _, p = out(ymm_reg) _, q = out(ymm_reg) _,
                        a0 = out(ymm_reg) _, a1 = out(ymm_reg) _, b0 = out(ymm_reg) _, b1 = out(ymm_reg) _,
                        c0 = out(ymm_reg) _, c1 = out(ymm_reg) _, d0 = out(ymm_reg) _, d1 = out(ymm_reg) _,
                        options(nomem, nostack),
                    );
                }
            }
        };
    }

    macro_rules! maddubs {
        ($s:literal, $t:literal) => {
            concat!(
                "vpmaddubsw {m}, {m}, {w}\nvpmaddubsw {n}, {n}, {w}\n",
                "vpaddw {",
                $s,
                "}, {",
                $s,
                "}, {m}\nvpaddw {",
                $t,
                "}, {",
                $t,
                "}, {n}",
            )
        };
    }
    macro_rules! dpbusd {
        ($s:literal, $t:literal) => {
            concat!("{{vex}} vpdpbusd {", $s, "}, {m}, {w}\n{{vex}} vpdpbusd {", $t, "}, {n}, {w}")
        };
    }
    unpack_loop_256!(avx2_unpack_loop, maddubs);
    unpack_loop_256!(avx_vnni_unpack_loop, dpbusd);

    /// `count` times ten 256-bit `vpdpbusd` (640 operations) on registers.
    #[target_feature(enable = "avx2")]
    pub fn avx_vnni_multiply_loop(count: usize) {
        // SAFETY: only registers are used; the caller checked the CPU.
        unsafe {
            asm!(
                "2:",
                "{{vex}} vpdpbusd {a0}, {w}, {x}", "{{vex}} vpdpbusd {a1}, {w}, {x}",
                "{{vex}} vpdpbusd {a2}, {w}, {x}", "{{vex}} vpdpbusd {a3}, {w}, {x}",
                "{{vex}} vpdpbusd {a4}, {w}, {x}", "{{vex}} vpdpbusd {a5}, {w}, {x}",
                "{{vex}} vpdpbusd {a6}, {w}, {x}", "{{vex}} vpdpbusd {a7}, {w}, {x}",
                "{{vex}} vpdpbusd {a8}, {w}, {x}", "{{vex}} vpdpbusd {a9}, {w}, {x}",
                "sub {n}, 1",
                "ja 2b",
                n = inout(reg) count.max(1) => _,
                w = out(ymm_reg) _, x = out(ymm_reg) _,
                a0 = out(ymm_reg) _, a1 = out(ymm_reg) _, a2 = out(ymm_reg) _, a3 = out(ymm_reg) _,
                a4 = out(ymm_reg) _, a5 = out(ymm_reg) _, a6 = out(ymm_reg) _, a7 = out(ymm_reg) _,
                a8 = out(ymm_reg) _, a9 = out(ymm_reg) _,
                options(nomem, nostack),
            );
        }
    }

    /// `count` times eight `vpmaddubsw` and eight `vpaddw` (512 operations) on registers.
    #[target_feature(enable = "avx2")]
    pub fn avx2_multiply_loop(count: usize) {
        // SAFETY: only registers are used.
        unsafe {
            asm!(
                "2:",
                "vpmaddubsw {t0}, {w}, {x}", "vpaddw {a0}, {a0}, {t0}",
                "vpmaddubsw {t1}, {w}, {x}", "vpaddw {a1}, {a1}, {t1}",
                "vpmaddubsw {t2}, {w}, {x}", "vpaddw {a2}, {a2}, {t2}",
                "vpmaddubsw {t3}, {w}, {x}", "vpaddw {a3}, {a3}, {t3}",
                "vpmaddubsw {t0}, {w}, {x}", "vpaddw {a4}, {a4}, {t0}",
                "vpmaddubsw {t1}, {w}, {x}", "vpaddw {a5}, {a5}, {t1}",
                "vpmaddubsw {t2}, {w}, {x}", "vpaddw {a6}, {a6}, {t2}",
                "vpmaddubsw {t3}, {w}, {x}", "vpaddw {a7}, {a7}, {t3}",
                "sub {n}, 1",
                "ja 2b",
                n = inout(reg) count.max(1) => _,
                w = out(ymm_reg) _, x = out(ymm_reg) _,
                t0 = out(ymm_reg) _, t1 = out(ymm_reg) _, t2 = out(ymm_reg) _, t3 = out(ymm_reg) _,
                a0 = out(ymm_reg) _, a1 = out(ymm_reg) _, a2 = out(ymm_reg) _, a3 = out(ymm_reg) _,
                a4 = out(ymm_reg) _, a5 = out(ymm_reg) _, a6 = out(ymm_reg) _, a7 = out(ymm_reg) _,
                options(nomem, nostack),
            );
        }
    }
}
