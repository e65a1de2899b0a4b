//! Giving back what the allocator keeps: memory that was freed stays with the process until it is asked for.
//!
//! The one file of this room that calls the C library.

#![allow(unsafe_code, reason = "the allocator is asked through the C library alone")]

/// From this size on an allocation is a mapping of its own, and a free end of an arena is given back. The default of
/// glibc, which it raises to 32 MiB and twice that with the first large block that is freed:
/// <https://man7.org/linux/man-pages/man3/mallopt.3.html>.
#[cfg(target_env = "gnu")]
const THRESHOLD: i32 = 128 << 10;

/// Has the allocator give back what is freed, instead of learning from the first model that large blocks come and go.
/// Says whether it does.
///
/// To be called before any other thread runs. Without it [`trim`] leaves the free end of every arena but the first
/// with the process: after some loads that is more than a small model. With another C library it does nothing and says
/// so with `false`.
pub fn give_back_large_blocks() -> bool {
    #[cfg(target_env = "gnu")]
    {
        let set = |parameter| {
            // SAFETY: mallopt takes two numbers and no pointer; both parameters may be any size that malloc can have.
            // JUSTIFICATION: no safe interface to it exists in the standard library or in nix; the environment variables
            // that do the same would have to be set by who starts the process.
            unsafe { libc::mallopt(parameter, THRESHOLD) == 1 }
        };
        set(libc::M_MMAP_THRESHOLD) && set(libc::M_TRIM_THRESHOLD)
    }
    #[cfg(not(target_env = "gnu"))]
    {
        false
    }
}

/// Gives the pages that the allocator holds without use back to the kernel. Says whether there were any.
///
/// Needed after weights were dropped: glibc keeps blocks below its thresholds, and whatever lies below a block in use
/// at the top of an arena, <https://man7.org/linux/man-pages/man3/malloc_trim.3.html>. It walks every arena under its
/// lock: milliseconds with a large heap, in which other threads wait to allocate. It belongs on a thread that may
/// block, once after everything was dropped. With another C library it does nothing and says so with `false`.
pub fn trim() -> bool {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: malloc_trim takes a number and no pointer, is thread-safe (MT-Safe), and changes nothing that is
        // allocated. JUSTIFICATION: no safe interface to it exists in the standard library or in nix.
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
    fn what_was_freed_below_a_block_in_use_is_given_back() {
        // Blocks too small for a mapping of their own stay in the arena when they are freed, below one in use.
        let mut blocks: Vec<Vec<u8>> = (0..1024).map(|_| vec![1; 32 << 10]).collect();
        let last = blocks.pop();
        drop(blocks);
        assert!(trim());
        assert_eq!(last.map(|block| block.len()), Some(32 << 10));
    }
}
