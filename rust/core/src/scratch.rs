//! Buffers that a thread uses again and again: fresh memory costs a page fault every 4 KB.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

/// Buffers above this size (in bytes) are given back to the system.
const KEEP: usize = 1 << 24;

/// 64 bytes at a multiple of 64: a vector that lies across two cache lines takes twice the time.
#[derive(Clone, Copy, Default)]
#[repr(align(64))]
pub struct Line(pub [u32; 16]);

/// A type of which any bytes are a value, and that fills lines without gaps.
///
/// # Safety
/// Every pattern of bits is a value, and a multiple of the size is 64.
pub unsafe trait Recycled: Copy + Default + 'static {
    fn stash<R>(body: impl FnOnce(&RefCell<Vec<Vec<Line>>>) -> R) -> R;
}

macro_rules! recycled {
    ($($type:ty),*) => {$(
        // SAFETY: numbers, and arrays of them, of a size that divides 64.
        unsafe impl Recycled for $type {
            fn stash<R>(body: impl FnOnce(&RefCell<Vec<Vec<Line>>>) -> R) -> R {
                thread_local!(static STASH: RefCell<Vec<Vec<Line>>> = const { RefCell::new(Vec::new()) });
                STASH.with(body)
            }
        }
    )*};
}

recycled!(u8, i8, u16, f32, Line, [f32; 16], [u32; 16]);

/// A buffer of the thread's, at a multiple of 64 bytes, put back when dropped.
pub struct Scratch<T: Recycled> {
    lines: Vec<Line>,
    len: usize,
    of: PhantomData<T>,
}

impl<T: Recycled> Scratch<T> {
    /// `len` elements that hold anything.
    pub fn new(len: usize) -> Self {
        let lines = T::stash(|stash| stash.borrow_mut().pop()).unwrap_or_default();
        let mut scratch = Scratch { lines, len, of: PhantomData };
        scratch.provide();
        scratch
    }

    /// `len` elements, of which those that were not there are zero.
    pub fn resize(&mut self, len: usize) {
        let before = std::mem::replace(&mut self.len, len);
        self.provide();
        if before < len {
            self[before..].fill(T::default());
        }
    }

    /// Lines for all elements; never fewer than there were, so that a buffer is filled once.
    fn provide(&mut self) {
        let lines = self.len.div_ceil(size_of::<Line>() / size_of::<T>());
        if self.lines.len() < lines {
            self.lines.resize(lines, Line::default());
        }
    }
}

impl<T: Recycled> Drop for Scratch<T> {
    fn drop(&mut self) {
        let lines = std::mem::take(&mut self.lines);
        if lines.capacity() * size_of::<Line>() <= KEEP {
            T::stash(|stash| stash.borrow_mut().push(lines));
        }
    }
}

impl<T: Recycled> Deref for Scratch<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: there are lines for `len` elements, which fill them without gaps; any bytes are a value.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }
}

impl<T: Recycled> DerefMut for Scratch<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_grow_by_zeros() {
        for len in [0, 1, 15, 64, 1000] {
            let mut scratch = Scratch::<i8>::new(len);
            assert!(scratch.len() == len && scratch.as_ptr().addr().is_multiple_of(64));
            scratch.fill(7);
            scratch.resize(len + 100);
            assert!(scratch[..len].iter().all(|&x| x == 7) && scratch[len..].iter().all(|&x| x == 0));
            assert_eq!(scratch.len(), len + 100);
            drop(scratch);
            let mut again = Scratch::<i8>::new(3);
            again.resize(90);
            assert!(again[3..].iter().all(|&x| x == 0));
            assert!(Scratch::<[f32; 16]>::new(len).as_ptr().addr().is_multiple_of(64));
        }
    }
}
