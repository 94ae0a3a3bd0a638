//! An allocator that counts, for each thread by itself, so that tests side by side do not disturb each other.

#![allow(unsafe_code)] // An allocator is unsafe to implement; nothing else in this package is.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

/// The system's allocator, counted. A binary that measures installs it:
///
/// ```
/// use bartizan_tests::alloc::{Counting, allocations};
///
/// #[global_allocator]
/// static ALLOCATOR: Counting = Counting;
///
/// let (_, counted) = allocations(|| vec![0_u8; 100]);
/// assert_eq!((counted.allocated, counted.freed, counted.live), (1, 0, 100));
///
/// // What other threads do is theirs.
/// let (go, gone) = (std::sync::Barrier::new(2), std::sync::Barrier::new(2));
/// std::thread::scope(|scope| {
///     scope.spawn(|| {
///         go.wait();
///         drop(vec![0_u8; 100]);
///         gone.wait();
///     });
///     let (_, counted) = allocations(|| (go.wait(), gone.wait()));
///     assert_eq!(counted.allocated, 0);
/// });
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Counting;

/// What one thread allocated and freed.
///
/// What is allocated on one thread and freed on another makes `live` go up here and down there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Allocations, reallocations included.
    pub allocated: u64,
    /// Frees.
    pub freed: u64,
    /// Bytes allocated less bytes freed.
    pub live: i64,
}

thread_local! {
    // Constant and without a destructor, so that reading it neither allocates nor fails while a thread ends.
    static COUNTED: Cell<Counted> = const { Cell::new(Counted { allocated: 0, freed: 0, live: 0 }) };
}

/// What this thread has allocated and freed since it began. All zero unless [`Counting`] is the global allocator.
pub fn counted() -> Counted {
    COUNTED.get()
}

/// Runs `f` and says what this thread allocated and freed meanwhile.
pub fn allocations<T>(f: impl FnOnce() -> T) -> (T, Counted) {
    let before = counted();
    let result = f();
    let after = counted();
    let during = Counted {
        allocated: after.allocated - before.allocated,
        freed: after.freed - before.freed,
        live: after.live - before.live,
    };
    (result, during)
}

fn count(allocated: u64, freed: u64, grown: i64) {
    let was = COUNTED.get();
    COUNTED.set(Counted {
        allocated: was.allocated + allocated,
        freed: was.freed + freed,
        live: was.live + grown,
    });
}

#[expect(clippy::cast_possible_wrap, reason = "a Layout is at most isize::MAX bytes")]
fn bytes(size: usize) -> i64 {
    size as i64
}

// SAFETY: every method hands its arguments on to `System` as they are and returns what it returns; counting neither
// allocates nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(1, 0, bytes(layout.size()));
        // SAFETY: the caller keeps `GlobalAlloc::alloc`'s contract, which is `System`'s too.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(1, 0, bytes(layout.size()));
        // SAFETY: as in `alloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(0, 1, -bytes(layout.size()));
        // SAFETY: `pointer` came from `System` with this layout, since all of ours do.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count(1, 1, bytes(new_size) - bytes(layout.size()));
        // SAFETY: as in `dealloc`; the caller vouches for `new_size`.
        unsafe { System.realloc(pointer, layout, new_size) }
    }
}
