//! Giving back what the allocator keeps: memory that was freed stays with the process until it is asked for.
//!
//! The one file of this room that calls the C library.

#![allow(unsafe_code, reason = "the allocator is asked through the C library alone")]

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
