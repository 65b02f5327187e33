//! The driver: plans, schedules, publishes, answers SQL and prints. It never loads libtorch.

fn main() -> std::process::ExitCode {
    vlmdiff::cli::main()
}
