//! What is asked of the system's memory.

use std::alloc::{alloc_zeroed, Layout};
use std::fmt;

use crate::error::{Error, Result};

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

/// A type whose zero is all bits zero.
///
/// # Safety
/// All bits zero are a value.
pub unsafe trait Zero: Copy {}

// SAFETY: numbers, and false.
unsafe impl Zero for u8 {}
// SAFETY: as above.
unsafe impl Zero for i8 {}
// SAFETY: as above.
unsafe impl Zero for u16 {}
// SAFETY: as above.
unsafe impl Zero for f32 {}
// SAFETY: as above.
unsafe impl Zero for bool {}

/// The error of `count` elements of `size` bytes that are not to be had.
fn missing(count: impl fmt::Display, size: usize) -> Error {
    Error::Memory(format!("there is no memory for {count} values of {size} bytes"))
}

/// rows x cols, where an array of so many could be. Errors: more than any memory has.
pub fn area(rows: usize, cols: usize) -> Result<usize> {
    rows.checked_mul(cols).ok_or_else(|| missing(format_args!("{rows} x {cols}"), 1))
}

/// An empty vector with room for `len` elements. Errors: no memory for them.
pub fn room<T>(len: usize) -> Result<Vec<T>> {
    let mut out = Vec::new();
    out.try_reserve_exact(len).map_err(|_| missing(len, size_of::<T>()))?;
    Ok(out)
}

/// `len` zeros, on large pages where there are enough of them. Errors: no memory for them.
pub fn zeros<T: Zero>(len: usize) -> Result<Vec<T>> {
    let layout = Layout::array::<T>(len).map_err(|_| missing(len, size_of::<T>()))?;
    if layout.size() == 0 {
        return Ok(Vec::new());
    }
    // SAFETY: the layout has a size; what the allocator gives for it, zeroed, is `len` values of T.
    let out = unsafe {
        let start = alloc_zeroed(layout).cast::<T>();
        if start.is_null() {
            return Err(missing(len, size_of::<T>()));
        }
        Vec::from_raw_parts(start, len, len)
    };
    prefer_large_pages(&out);
    Ok(out)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_is_not_there_is_an_error() {
        assert_eq!(zeros::<u16>(3).unwrap(), [0; 3]);
        assert!(zeros::<f32>(0).unwrap().is_empty());
        for len in [usize::MAX, isize::MAX as usize / 4] {
            let error = zeros::<f32>(len).unwrap_err();
            assert!(
                matches!(error, Error::Memory(_)) && error.to_string().contains(&len.to_string()),
                "{error}"
            );
            assert!(matches!(room::<f32>(len), Err(Error::Memory(_))));
        }
        assert_eq!(area(3, 4).unwrap(), 12);
        assert!(matches!(area(usize::MAX, 2), Err(Error::Memory(_))));
    }
}
