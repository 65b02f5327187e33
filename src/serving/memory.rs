//! Memory that was freed.

/// Gives memory that was freed back to the system. glibc keeps what each thread has freed for that thread: without this, a
/// server that judged 1,600 photographs of 256x256 grew from 170 to 620 MiB, and with it it stays below 200.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub(super) fn give_back() {
    // SAFETY: the call takes the locks of the allocator, and touches only memory that nobody has.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Does nothing: other allocators give memory back by themselves.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(super) fn give_back() {}
