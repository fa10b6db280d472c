//! Portable loops compiled for more than the least CPU of the architecture.

/// Run `body` compiled for AVX2 where the machine has it. `body` must be a closure whose loops are inlined;
/// results do not change, because Rust neither reorders nor contracts floating-point operations.
#[inline]
pub fn vectorized<R>(body: impl FnOnce() -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2,fma,f16c,bmi1,bmi2,lzcnt,popcnt")]
        fn avx2<R>(body: impl FnOnce() -> R) -> R {
            body()
        }
        if has_avx2() {
            // SAFETY: the features were just detected.
            return unsafe { avx2(body) };
        }
    }
    body()
}

/// Whether the loops of [`vectorized`] are compiled for AVX2 here.
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
