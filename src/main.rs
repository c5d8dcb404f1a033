//! The one binary; what it does is decided by the name it is called by.

fn main() -> std::process::ExitCode {
    banger::role::run()
}
