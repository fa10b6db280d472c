//! What is asked of the system's memory.

/// Bytes of a large page where they are usual.
#[cfg(target_os = "linux")]
const LARGE_PAGE: usize = 2 << 20;

/// Ask for large pages under the whole ones in `values`, which nobody has touched yet: fewer misses of the address
/// cache and fewer page faults. A wish, which the system may leave unheard.
fn prefer_large_pages<T>(values: &[T]) {
    #[cfg(target_os = "linux")]
    {
        let start = values.as_ptr() as usize;
        let first = start.next_multiple_of(LARGE_PAGE);
        let end = (start + size_of_val(values)) / LARGE_PAGE * LARGE_PAGE;
        if end > first {
            // SAFETY: the range lies inside an allocation, and the advice changes no content.
            unsafe { libc::madvise(first as *mut libc::c_void, end - first, libc::MADV_HUGEPAGE) };
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = values;
}

/// `len` zeros, on large pages where there are enough of them.
pub fn zeros<T: Copy + Default>(len: usize) -> Vec<T> {
    let out = vec![T::default(); len];
    prefer_large_pages(&out);
    out
}

/// Hint that the line at an address will be wanted soon.
#[inline(always)]
pub fn ask_for<T>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, harmless for any address; SSE is part of the architecture.
    unsafe {
        use std::arch::x86_64::{_mm_prefetch, _MM_HINT_T0};
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}
