//! Signals of the operating system: those sent to this program, and those it sends to others.

/// Handles a signal by doing nothing.
extern "C" fn nothing(_: libc::c_int) {}

/// Lets a write beyond the limit on file sizes (`ulimit -f`) fail with an error that names the file. By default the
/// system ends the process without a message.
pub fn outlive_file_size_limit() {
    // A handler is used instead of `SIG_IGN`, because programs that this one starts would inherit `SIG_IGN`.
    let handler = nothing as extern "C" fn(libc::c_int) as libc::sighandler_t;
    // SAFETY: the handler does nothing, so it may interrupt anything.
    unsafe {
        libc::signal(libc::SIGXFSZ, handler);
    }
}

/// Returns true if the program was started so that it outlives its terminal, as `nohup` does.
pub fn ignores_hangup() -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: without a new action the call only fills in the current one, which is plain data that zeros are valid
    // for.
    unsafe {
        libc::sigaction(libc::SIGHUP, std::ptr::null(), action.as_mut_ptr()) == 0
            && action.assume_init().sa_sigaction == libc::SIG_IGN
    }
}

/// Asks a process to end that this one has started and not yet waited for.
pub fn ask_to_end(child: &std::process::Child) {
    let Ok(pid) = libc::pid_t::try_from(child.id()) else { return };
    // SAFETY: the number is that of a child that was not waited for, so the system has given it to no other process.
    unsafe {
        libc::kill(pid, libc::SIGTERM);
    }
}
