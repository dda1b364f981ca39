//! Says hello, tells the time and keeps a count of its runs in a file.
use std::{fs, io, process::ExitCode, time::SystemTime};

const COUNT: &str = "/count";

fn main() -> ExitCode {
    println!("Hello from a WebAssembly component!");
    match SystemTime::now().duration_since(SystemTime::UNIX_EPOCH) {
        Ok(time) => println!("seconds since 1970: {}", time.as_secs()),
        Err(error) => println!("the clock is wrong: {error}"),
    }
    match count() {
        Ok(runs) => {
            println!("runs in this container: {runs}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("cannot keep the count in {COUNT}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Adds one to the number in the file and gives the sum; no file counts as 0.
fn count() -> io::Result<u64> {
    let before = match fs::read_to_string(COUNT) {
        Ok(text) => text.trim().parse().map_err(io::Error::other)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(error),
    };
    let runs = before + 1;
    fs::write(COUNT, format!("{runs}\n"))?;
    Ok(runs)
}
