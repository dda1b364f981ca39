//! Sends back whatever a client sends, one client after another.
use std::{
    env, io,
    net::{TcpListener, TcpStream},
    process::ExitCode,
};

fn main() -> ExitCode {
    let port = env::args().nth(1).unwrap_or("7".into());
    let Ok(port) = port.parse() else {
        eprintln!("`{port}` is not a port: give a number from 1 to 65535");
        return ExitCode::FAILURE;
    };
    match serve(port) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cannot listen on port {port}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(port: u16) -> io::Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", port))?;
    println!("listening on {}", listener.local_addr()?);
    loop {
        let (client, address) = listener.accept()?;
        // A client that goes away in the middle is no reason to stop.
        match echo(client) {
            Ok(bytes) => println!("{address}: {bytes} bytes"),
            Err(error) => eprintln!("{address}: {error}"),
        }
    }
}

fn echo(client: TcpStream) -> io::Result<u64> {
    io::copy(&mut &client, &mut &client)
}
