//! The worker: opens operators and runs tasks for the driver, which starts it with the store's address.

fn main() -> std::process::ExitCode {
    let mut arguments = std::env::args().skip(1);
    let settings = |text: String| serde_json::from_str(&text).ok();
    let (Some(address), Some(settings)) = (arguments.next(), arguments.next().and_then(settings)) else {
        eprintln!("vlmdiff-worker is started by `vlmdiff run`, with the store's address and settings in JSON");
        return std::process::ExitCode::from(2);
    };
    vlmdiff::engine::signals::outlive_file_size_limit();
    let served = vlmdiff::engine::store::Store::open(&address)
        .and_then(|store| vlmdiff::engine::run::serve(store, settings, vlmdiff::stages::open_in_worker));
    match served {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vlmdiff-worker: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}
