//! Returns freed memory from the allocator to the kernel. Without this, the process keeps it for
//! later allocations.
//!
//! This is the only file of the module that calls the C library.

#![allow(unsafe_code, reason = "the allocator is asked through the C library alone")]

/// Size from which an allocation gets a mapping of its own, and from which the free end of an arena
/// is returned. This is the initial value of glibc, which glibc raises up to 32 MiB (and the trim
/// threshold to twice that) when the first large block is freed:
/// <https://man7.org/linux/man-pages/man3/mallopt.3.html>.
#[cfg(target_env = "gnu")]
const THRESHOLD: i32 = 128 << 10;

/// Fixes the thresholds of the allocator, so that it returns freed memory instead of raising them
/// after the first model. Returns whether they are set.
///
/// Call this before any other thread runs. Without it, [`trim`] leaves the free end of every arena
/// but the first in the process; after some loads this is more than a small model. Has no effect
/// with another C library, and returns `false` there.
pub fn fix_thresholds() -> bool {
    #[cfg(target_env = "gnu")]
    {
        let set = |parameter| {
            // SAFETY: mallopt takes two numbers and no pointer. Both parameters accept any size
            // that malloc can have. JUSTIFICATION: neither the standard library nor nix has a safe
            // interface to it. The environment variables with the same effect would have to be set
            // by the parent process.
            unsafe { libc::mallopt(parameter, THRESHOLD) == 1 }
        };
        set(libc::M_MMAP_THRESHOLD) && set(libc::M_TRIM_THRESHOLD)
    }
    #[cfg(not(target_env = "gnu"))]
    {
        false
    }
}

/// Returns unused pages of the allocator to the kernel. Reports whether there were any.
///
/// This is needed after weights were dropped. glibc keeps blocks below its thresholds, and all free
/// memory below a used block at the top of an arena
/// (<https://man7.org/linux/man-pages/man3/malloc_trim.3.html>). The call walks every arena under
/// its lock. With a large heap it takes milliseconds, in which other threads wait to allocate. Call
/// it on a thread that may block, once after everything was dropped. Has no effect with another C
/// library, and returns `false` there.
pub fn trim() -> bool {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: malloc_trim takes a number and no pointer, is thread-safe (MT-Safe), and does not
        // change allocated memory. JUSTIFICATION: neither the standard library nor nix has a safe
        // interface to it.
        unsafe { libc::malloc_trim(0) == 1 }
    }
    #[cfg(not(target_env = "gnu"))]
    {
        false
    }
}

#[cfg(all(test, target_env = "gnu"))]
mod tests {
    use super::*;

    #[test]
    fn trim_releases_memory_below_used_block() {
        // Blocks too small for a mapping of their own stay in the arena when they are freed, here
        // below a block in use.
        let mut blocks: Vec<Vec<u8>> = (0..1024).map(|_| vec![1; 32 << 10]).collect();
        let last = blocks.pop();
        drop(blocks);
        assert!(trim());
        assert_eq!(last.map(|block| block.len()), Some(32 << 10));
    }
}
