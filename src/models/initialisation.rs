//! Initial values of the parameters of a network.

use std::cell::Cell;

use tch::nn::Init;

thread_local! {
    static SKIP_INIT: Cell<bool> = const { Cell::new(false) };
}

/// Builds a network that is then filled from a file. Its parameters start at zero, because drawing them at random would
/// only cost time.
pub fn skip_init<T>(build: impl FnOnce() -> T) -> T {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            SKIP_INIT.set(self.0);
        }
    }
    let _restore = Restore(SKIP_INIT.replace(true));
    build()
}

/// Returns the initialisation `random`, or zero inside of [`skip_init`].
pub(crate) fn init(random: Init) -> Init {
    if SKIP_INIT.get() { Init::Const(0.) } else { random }
}

/// Returns PyTorch's default for weights and biases: uniform within ±1/sqrt(fan_in).
pub(crate) fn uniform(fan_in: i64) -> Init {
    let bound = (fan_in as f64).sqrt().recip();
    init(Init::Uniform { lo: -bound, up: bound })
}
