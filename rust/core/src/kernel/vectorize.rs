//! Portable loops compiled for more than the least CPU of the architecture.

/// Define a function that runs `$inner` (an `#[inline(always)]` function of the same signature) compiled for
/// AVX-512 or AVX2 where the machine has it and `TRITPRESS_ISA` does not ask for less. Results do not change:
/// Rust neither reorders nor contracts floating-point operations.
macro_rules! vectorized {
    ($(#[$doc:meta])* $vis:vis fn $name:ident$(<$of:ident: $is:path>)?($($arg:ident: $ty:ty),* $(,)?)
        $(-> $ret:ty)? = $inner:path;) => {
        $(#[$doc])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name$(<$of: $is>)?($($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[allow(clippy::too_many_arguments)]
                #[target_feature(enable = "avx2,fma,f16c,bmi1,bmi2,lzcnt,popcnt")]
                fn avx2$(<$of: $is>)?($($arg: $ty),*) $(-> $ret)? {
                    $inner($($arg),*)
                }
                #[allow(clippy::too_many_arguments)]
                #[target_feature(enable = "avx2,fma,f16c,bmi1,bmi2,lzcnt,popcnt")]
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
                fn avx512$(<$of: $is>)?($($arg: $ty),*) $(-> $ret)? {
                    $inner($($arg),*)
                }
                match $crate::kernel::level() {
                    // SAFETY: the level says that the features were detected.
                    $crate::kernel::Level::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    $crate::kernel::Level::Avx2 => return unsafe { avx2($($arg),*) },
                    $crate::kernel::Level::Portable => {}
                }
            }
            $inner($($arg),*)
        }
    };
}

pub(crate) use vectorized;

/// What loops defined with [`vectorized`] are compiled for.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Portable,
    Avx2,
    Avx512,
}

/// The level of this process: the best that the machine and the chosen path allow.
#[cfg(target_arch = "x86_64")]
#[inline]
pub fn level() -> Level {
    static LEVEL: std::sync::OnceLock<Level> = std::sync::OnceLock::new();
    *crate::known::known(&LEVEL, || {
        let machine = match has_avx2() {
            true if has_avx512() => Level::Avx512,
            true => Level::Avx2,
            false => Level::Portable,
        };
        let path = match super::isa() {
            Ok(super::Isa::Amx | super::Isa::Avx512Gfni | super::Isa::Avx512Vnni) => Level::Avx512,
            Ok(super::Isa::AvxVnni | super::Isa::Avx2) => Level::Avx2,
            _ => Level::Portable,
        };
        machine.min(path)
    })
}

#[cfg(target_arch = "x86_64")]
fn has_avx512() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
}

/// Whether the CPU has AVX2 and what came with it.
#[cfg(target_arch = "x86_64")]
#[inline]
pub fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c")
        && is_x86_feature_detected!("bmi1")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("lzcnt")
        && is_x86_feature_detected!("popcnt")
}
