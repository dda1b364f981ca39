//! tool.c's commands and those of the network, as a component of WASI 0.2.
//! README.md in the folder above lists what they print.
use std::{
    collections::hash_map::RandomState,
    env, fs,
    hash::{BuildHasher, Hasher},
    hint,
    io::{self, BufRead, BufReader, IsTerminal, Read, Write},
    net::{Shutdown, TcpListener, TcpStream, ToSocketAddrs, UdpSocket},
    process::{self, ExitCode},
    thread,
    time::{Duration, SystemTime},
};

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().collect();
    let words: Vec<&str> = arguments.iter().skip(1).map(String::as_str).collect();
    match run(&arguments, &words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tool: {}: {error}", words.join(" "));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String], words: &[&str]) -> Outcome {
    match *words {
        ["args", ..] => arguments.iter().for_each(|argument| println!("{argument}")),
        ["env"] => env::vars().for_each(|(name, value)| println!("{name}={value}")),
        ["cwd"] => println!("{}", env::current_dir()?.display()),
        ["exit", code] => process::exit(code.parse()?),
        ["trap"] => trap_outer(),
        ["cat"] => copy(io::stdin(), io::stdout())?,
        ["stderr", text] => eprintln!("{text}"),
        ["write", path, text] => fs::write(path, text)?,
        ["append", path, text] => fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)?
            .write_all(text.as_bytes())?,
        ["read", path] => copy(fs::File::open(path)?, io::stdout())?,
        ["stat", path] => stat(path)?,
        ["ls", path] => list(path)?,
        ["loop"] => spin()?,
        ["sleep", seconds] => sleep(seconds)?,
        ["alloc", megabytes] => drop(alloc(megabytes)?),
        ["alloc", megabytes, seconds] => {
            let memory = alloc(megabytes)?;
            sleep(seconds)?;
            drop(memory);
        }
        ["isatty"] => {
            let answer = |terminal| if terminal { "yes" } else { "no" };
            println!("0 {}", answer(io::stdin().is_terminal()));
            println!("1 {}", answer(io::stdout().is_terminal()));
            println!("2 {}", answer(io::stderr().is_terminal()));
        }
        ["time"] => {
            let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
            println!("{}", time.as_secs());
        }
        ["random"] => {
            // The keys of a hash map's state are the standard library's only door to it.
            let hash = RandomState::new().build_hasher().finish();
            println!("{hash:016x}");
        }
        ["mkdir", path] => fs::create_dir(path)?,
        ["rmdir", path] => fs::remove_dir(path)?,
        ["unlink", path] => fs::remove_file(path)?,
        ["rename", from, to] => fs::rename(from, to)?,
        ["readlink", path] => println!("{}", fs::read_link(path)?.display()),
        ["tcp-server", port] => tcp_server(port.parse()?)?,
        ["tcp-client", host, port, text] => tcp_client(host, port.parse()?, text)?,
        ["udp-echo", port] => udp_echo(port.parse()?)?,
        ["udp-send", host, port, text] => udp_send(host, port.parse()?, text)?,
        ["http", port] => http(port.parse()?)?,
        ["resolve", name] => {
            for address in (name, 0).to_socket_addrs()? {
                println!("{}", address.ip());
            }
        }
        _ => {
            eprintln!("tool: no such command, or not its arguments; see README.md of test/guests");
            process::exit(2);
        }
    }
    Ok(())
}

// Two calls deep, so that a backtrace has names to show.
#[inline(never)]
fn trap_outer() {
    trap_inner();
}

#[inline(never)]
fn trap_inner() {
    core::arch::wasm32::unreachable()
}

fn copy(mut from: impl Read, mut to: impl Write) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match from.read(&mut buffer)? {
            0 => return to.flush(),
            size => to.write_all(&buffer[..size])?,
        }
    }
}

fn stat(path: &str) -> io::Result<()> {
    let found = fs::symlink_metadata(path)?;
    let kind = match found.file_type() {
        kind if kind.is_file() => "file",
        kind if kind.is_dir() => "directory",
        kind if kind.is_symlink() => "symlink",
        _ => "other",
    };
    println!("{kind} {}", found.len());
    Ok(())
}

fn list(path: &str) -> io::Result<()> {
    let mut names = fs::read_dir(path)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<io::Result<Vec<_>>>()?;
    names.sort();
    names.iter().for_each(|name| println!("{name}"));
    Ok(())
}

fn say(line: &str) -> io::Result<()> {
    println!("{line}");
    io::stdout().flush()
}

fn spin() -> io::Result<()> {
    say("looping")?;
    let mut turns = 0_u64;
    loop {
        turns = hint::black_box(turns.wrapping_add(1));
    }
}

fn sleep(seconds: &str) -> Outcome {
    let time = Duration::from_secs(seconds.parse()?);
    say("sleeping")?;
    thread::sleep(time);
    say("slept")?;
    Ok(())
}

fn alloc(megabytes: &str) -> Result<Vec<Vec<u8>>, Box<dyn std::error::Error>> {
    let memory = (0..megabytes.parse()?)
        .map(|_| hint::black_box(vec![1; 1 << 20]))
        .collect();
    say(&format!("allocated {megabytes} MB"))?;
    Ok(memory)
}

fn tcp_server(port: u16) -> io::Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", port))?;
    say("listening")?;
    loop {
        let (client, _) = listener.accept()?;
        // A client that goes away in the middle is no reason to stop.
        if let Err(error) = copy(&client, &client) {
            eprintln!("tool: {error}");
        }
    }
}

fn tcp_client(host: &str, port: u16, text: &str) -> io::Result<()> {
    let server = TcpStream::connect((host, port))?;
    (&server).write_all(text.as_bytes())?;
    server.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    (&server).read_to_string(&mut answer)?;
    println!("{answer}");
    Ok(())
}

fn udp_echo(port: u16) -> io::Result<()> {
    let socket = UdpSocket::bind(("0.0.0.0", port))?;
    say("listening")?;
    let mut datagram = vec![0; 65536];
    loop {
        let (size, from) = socket.recv_from(&mut datagram)?;
        socket.send_to(&datagram[..size], from)?;
    }
}

fn udp_send(host: &str, port: u16, text: &str) -> io::Result<()> {
    let socket = UdpSocket::bind(("0.0.0.0", 0))?;
    socket.send_to(text.as_bytes(), (host, port))?;
    let mut datagram = vec![0; 65536];
    let (size, _) = socket.recv_from(&mut datagram)?;
    println!("{}", String::from_utf8_lossy(&datagram[..size]));
    Ok(())
}

fn http(port: u16) -> io::Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", port))?;
    say("listening")?;
    loop {
        let (client, _) = listener.accept()?;
        if let Err(error) = answer(&client) {
            eprintln!("tool: {error}");
        }
    }
}

/// Reads a request up to the empty line after its header and answers it.
fn answer(mut client: &TcpStream) -> io::Result<()> {
    let mut lines = BufReader::new(client).lines();
    while let Some(line) = lines.next().transpose()? {
        if line.is_empty() {
            break;
        }
    }
    const BODY: &str = "hello from wasm\n";
    write!(
        client,
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{BODY}",
        BODY.len()
    )
}
