//! How a path reads the tiles of one token's product: two numbers that differ from machine to machine and change
//! no result, chosen by measuring once in a process.

#[cfg(target_arch = "x86_64")]
use std::hint::black_box;
use std::sync::OnceLock;
#[cfg(target_arch = "x86_64")]
use std::time::{Duration, Instant};

use super::Isa;
#[cfg(target_arch = "x86_64")]
use super::{matvec, Activations};
use crate::error::{Error, Result};
use crate::known::known;
#[cfg(target_arch = "x86_64")]
use crate::tiles::{Aligned, Geometry, TILE};

/// How tiles are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Far-apart tiles that are read side by side: 1, 2 or 4.
    pub streams: usize,
    /// Bytes between what is read and what is asked for ahead; 0 leaves that to the machine.
    pub ahead: usize,
}

/// Lines further ahead than this are gone from the first-level cache when they are read.
const MOST_AHEAD: usize = 1 << 16;

/// Matrices below this many bytes may well be in a cache, where the choice matters little.
const LARGE: usize = 1 << 20;

impl Reading {
    /// What suits a path where nothing is known of the machine.
    pub fn usual(isa: Isa) -> Self {
        match isa {
            Isa::Amx | Isa::Avx512Gfni | Isa::Avx512Vnni => Reading { streams: 4, ahead: 1024 },
            Isa::AvxVnni | Isa::Avx2 => Reading { streams: 2, ahead: 0 },
            Isa::Neon | Isa::Generic => Reading { streams: 1, ahead: 0 },
        }
    }

    /// Call `each` with the numbers of tiles to read side by side, as far apart among `count` as can be, until all
    /// have been named: four or two at a time where that many are to be read so, the rest one by one.
    #[inline(always)]
    pub fn walk(self, count: usize, mut each: impl FnMut(&[usize])) {
        let mut done = 0;
        for streams in [4, 2, 1] {
            if streams <= self.streams.max(1) {
                let far = (count - done) / streams;
                for i in 0..far {
                    let at: [usize; 4] = std::array::from_fn(|s| done + s * far + i);
                    each(&at[..streams]);
                }
                done += streams * far;
            }
        }
    }

    #[cfg(any(test, target_arch = "x86_64"))]
    fn candidates(isa: Isa) -> Vec<Self> {
        let all = |streams: &[usize], aheads: &[usize]| {
            let of = |&streams: &usize| aheads.iter().map(move |&ahead| Reading { streams, ahead });
            streams.iter().flat_map(of).collect()
        };
        match isa {
            Isa::Amx | Isa::Avx512Gfni | Isa::Avx512Vnni => all(&[4, 2, 1], &[1024, 2048, 0]),
            Isa::AvxVnni | Isa::Avx2 => all(&[2, 4, 1], &[0, 768, 2048]),
            Isa::Neon | Isa::Generic => vec![Reading::usual(isa)],
        }
    }

    /// What `TRITPRESS_STREAMS` and `TRITPRESS_AHEAD` say. Errors: what is no number, or one that no path can do.
    pub fn told() -> Result<[Option<usize>; 2]> {
        static TOLD: OnceLock<std::result::Result<[Option<usize>; 2], String>> = OnceLock::new();
        let read = |name: &str, good: fn(usize) -> bool, right: &str| match std::env::var(name) {
            Err(_) => Ok(None),
            Ok(text) if text.trim().is_empty() => Ok(None),
            Ok(text) => match text.trim().parse() {
                Ok(n) if good(n) => Ok(Some(n)),
                _ => Err(format!("{name} must be {right}, not '{text}'")),
            },
        };
        known(&TOLD, || {
            Ok([
                read("TRITPRESS_STREAMS", |n| [1, 2, 4].contains(&n), "1, 2 or 4")?,
                read("TRITPRESS_AHEAD", |n| n <= MOST_AHEAD, "a number of bytes up to 65536")?,
            ])
        })
        .clone()
        .map_err(Error::Option)
    }

    /// The reading of a matrix of `bytes`: what the environment says ([`Reading::told`]), else for large matrices
    /// the fastest from memory, measured when the first of them asks (20 ms).
    pub fn of(isa: Isa, bytes: usize) -> Self {
        static MEASURED: OnceLock<Reading> = OnceLock::new();
        let [streams, ahead] = Reading::told().unwrap_or_default();
        let mut reading = match (streams, ahead) {
            (None, _) | (_, None) if bytes >= LARGE => *known(&MEASURED, || measured(isa)),
            _ => Reading::usual(isa),
        };
        reading.streams = streams.unwrap_or(reading.streams);
        reading.ahead = ahead.unwrap_or(reading.ahead);
        reading
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn measured(isa: Isa) -> Reading {
    Reading::usual(isa)
}

/// The fastest candidate on tiles that are in no cache; the usual one unless another is a tenth
/// faster, so that what else runs on the machine seldom decides.
#[cfg(target_arch = "x86_64")]
fn measured(isa: Isa) -> Reading {
    const ROUNDS: usize = 8;
    /// Where others use the machine two rounds have to do.
    const ENOUGH: Duration = Duration::from_millis(40);
    let begin = Instant::now();
    let candidates = Reading::candidates(isa);
    let geometry = Geometry::new(32 * TILE, 4096, 1, 64);
    let size = geometry.tiles * geometry.tile_bytes();
    let x = Activations::quantize(&vec![1.0; geometry.cols], &geometry);
    let (Ok(x), Ok(mut tiles)) = (x, Aligned::zeroed(size * candidates.len())) else {
        return Reading::usual(isa);
    };
    // Written once, so that every page is one of its own.
    tiles.as_mut_slice().fill(0x55);
    let mut out = vec![0f32; geometry.tiles * TILE];
    let mut best = vec![f64::MAX; candidates.len()];
    for round in 0..ROUNDS {
        if round > 1 && begin.elapsed() > ENOUGH {
            break;
        }
        drop_from_caches(tiles.as_slice());
        for (i, &reading) in candidates.iter().enumerate() {
            let tiles = &tiles.as_slice()[i * size..][..size];
            let start = Instant::now();
            matvec(isa, black_box(tiles), &geometry, &x, &mut out, reading);
            best[i] = best[i].min(start.elapsed().as_secs_f64());
        }
    }
    let usual = candidates.iter().position(|&reading| reading == Reading::usual(isa)).unwrap_or(0);
    let fastest = (0..best.len()).fold(usual, |a, b| if best[b] < best[a] { b } else { a });
    candidates[if best[fastest] < 0.9 * best[usual] { fastest } else { usual }]
}

#[cfg(target_arch = "x86_64")]
fn drop_from_caches(bytes: &[u8]) {
    for line in bytes.chunks(64) {
        // SAFETY: the line is there; flushing changes no content. SSE2 is part of the architecture.
        unsafe { std::arch::x86_64::_mm_clflush(line.as_ptr()) };
    }
    // SAFETY: as above.
    unsafe { std::arch::x86_64::_mm_mfence() };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tile_is_read_once() {
        for streams in 0..6 {
            for count in 0..40 {
                let mut seen = vec![0; count];
                Reading { streams, ahead: 0 }.walk(count, |at| at.iter().for_each(|&i| seen[i] += 1));
                assert!(seen.iter().all(|&n| n == 1), "{streams} streams, {count} tiles: {seen:?}");
            }
        }
    }

    #[test]
    fn what_is_chosen_is_a_candidate() {
        for isa in Isa::usable() {
            assert!(Reading::candidates(isa).contains(&Reading::usual(isa)));
            assert!(Reading::candidates(isa).contains(&measured(isa)));
        }
    }
}
