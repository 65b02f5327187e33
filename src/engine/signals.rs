//! Signals of the operating system: what it sends to this program, and what this one sends to others.

/// The handler of a signal that is to interrupt nothing.
extern "C" fn nothing(_: libc::c_int) {}

/// Lets a write beyond the limit on files' sizes (`ulimit -f`) fail with an error that names the file. By default the system ends
/// the process without a word.
pub fn outlive_file_size_limit() {
    // A handler, and not `SIG_IGN`, which the programs that this one starts would inherit.
    let handler = nothing as extern "C" fn(libc::c_int) as libc::sighandler_t;
    // SAFETY: the handler does nothing, so it may interrupt anything.
    unsafe {
        libc::signal(libc::SIGXFSZ, handler);
    }
}

/// Whether whoever started this program wants it to outlive its terminal, as `nohup` does.
pub fn ignores_hangup() -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: without a new action the call only fills in the current one, which is plain data that zeros are valid for.
    unsafe {
        libc::sigaction(libc::SIGHUP, std::ptr::null(), action.as_mut_ptr()) == 0
            && action.assume_init().sa_sigaction == libc::SIG_IGN
    }
}

/// Asks a process that this one started, and has not waited for yet, to end.
pub fn ask_to_end(child: &std::process::Child) {
    let Ok(pid) = libc::pid_t::try_from(child.id()) else { return };
    // SAFETY: the number is that of a child that was not waited for, so the system has given it to no other process.
    unsafe {
        libc::kill(pid, libc::SIGTERM);
    }
}
