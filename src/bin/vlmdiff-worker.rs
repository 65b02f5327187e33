//! The worker: opens operators and runs tasks for the driver, which starts it with the store's address.

fn main() -> std::process::ExitCode {
    let Some(address) = std::env::args().nth(1) else {
        eprintln!("vlmdiff-worker is started by `vlmdiff run`");
        return std::process::ExitCode::from(2);
    };
    vlmdiff::engine::signals::outlive_file_size_limit();
    let served = vlmdiff::engine::store::Store::open(&address)
        .and_then(|store| vlmdiff::engine::run::serve(store, vlmdiff::stages::open_in_worker));
    match served {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vlmdiff-worker: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}
