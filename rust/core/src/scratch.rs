//! Buffers that a thread uses again and again: fresh memory costs a page fault every 4 KB.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

/// Buffers above this size (in elements) are given back to the system.
const KEEP: usize = 1 << 22;

pub trait Recycled: Copy + Default + 'static {
    fn stash<R>(body: impl FnOnce(&RefCell<Vec<Vec<Self>>>) -> R) -> R;
}

macro_rules! recycled {
    ($($type:ty),*) => {$(
        impl Recycled for $type {
            fn stash<R>(body: impl FnOnce(&RefCell<Vec<Vec<Self>>>) -> R) -> R {
                thread_local!(static STASH: RefCell<Vec<Vec<$type>>> = const { RefCell::new(Vec::new()) });
                STASH.with(body)
            }
        }
    )*};
}

recycled!(u8, i8, u16, f32, Line, [f32; 16], [u32; 16]);

/// 64 bytes at a multiple of 64: a vector that lies across two cache lines takes twice the time.
#[derive(Clone, Copy, Default)]
#[repr(align(64))]
pub struct Line(pub [u32; 16]);

/// A buffer of the thread's, put back when dropped.
pub struct Scratch<T: Recycled>(Vec<T>);

impl<T: Recycled> Scratch<T> {
    /// `len` elements that hold anything.
    pub fn new(len: usize) -> Self {
        let mut buffer = T::stash(|stash| stash.borrow_mut().pop()).unwrap_or_default();
        buffer.resize(len, T::default());
        Scratch(buffer)
    }

    /// `len` elements, of which those that were not there are zero.
    pub fn resize(&mut self, len: usize) {
        self.0.resize(len, T::default());
    }
}

impl<T: Recycled> Drop for Scratch<T> {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.0);
        if buffer.capacity() <= KEEP {
            T::stash(|stash| stash.borrow_mut().push(buffer));
        }
    }
}

impl<T: Recycled> Deref for Scratch<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T: Recycled> DerefMut for Scratch<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.0
    }
}

/// int8 values that start at a multiple of 64 bytes.
pub struct AlignedBytes(Scratch<Line>, usize);

impl AlignedBytes {
    /// `len` values that hold anything.
    pub fn new(len: usize) -> Self {
        AlignedBytes(Scratch::new(len.div_ceil(size_of::<Line>())), len)
    }
}

impl Deref for AlignedBytes {
    type Target = [i8];
    fn deref(&self) -> &[i8] {
        // SAFETY: the lines are bytes without gaps, at least as many as `len`.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), self.1) }
    }
}

impl DerefMut for AlignedBytes {
    fn deref_mut(&mut self) -> &mut [i8] {
        // SAFETY: as above, and any byte is a value.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.1) }
    }
}
