//! Those that guests talk to, and guests that are talked to.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
};

use anyhow::Result;
use lighter_test::{Builder, Container, Containerd, Network, Rootfs, options::RuntimeOptions};
use nix::sys::signal::Signal;

use crate::{PATIENCE, SERVER};

/// A network with a listener on each of these ports of 127.0.0.1, who answers `port PORT`.
pub fn listeners(engine: &Containerd, ports: &'static [u16]) -> Result<Network> {
    let network = Network::new(&format!("{}-{}", engine.namespace(), engine.new_id("n")))?;
    for port in ports {
        let listening = network.spawn(move || Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, *port))?));
        let listener = listening.join().expect("binding does not panic")?;
        // It ends with the test's program.
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                answer(client, *port).ok();
            }
        });
    }
    Ok(network)
}

fn answer(mut client: TcpStream, port: u16) -> Result<()> {
    client.set_read_timeout(Some(PATIENCE))?;
    let mut asked = [0; 4096];
    let length = client.read(&mut asked)?;
    let body = format!("port {port}\n");
    let answer = match asked[..length].starts_with(b"GET ") {
        true => format!(
            "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        ),
        false => body,
    };
    client.write_all(answer.as_bytes())?;
    Ok(())
}

/// A server in a network, at port 8000.
pub struct Served<'a> {
    network: &'a Network,
    pub container: Container<'a>,
}

impl<'a> Served<'a> {
    pub fn start(
        engine: &'a Containerd,
        network: &'a Network,
        settings: &str,
        more: impl FnOnce(Builder<'a>) -> Builder<'a>,
    ) -> Result<Self> {
        let rootfs = Rootfs::guests()?.file("/etc/hosts", "127.0.0.1 peer\n");
        let builder = engine
            .container(&rootfs)
            .args([SERVER])
            .options(RuntimeOptions::body(&format!(
                "http.port = 8000\n{settings}"
            )))
            .network(&network.path());
        let container = more(builder).create()?;
        container.start()?;
        Ok(Self { network, container })
    }

    pub fn send(&self, request: String) -> Result<String> {
        let sending = self.network.spawn(move || {
            let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, 8000))?;
            client.set_read_timeout(Some(PATIENCE))?;
            client.write_all(request.as_bytes())?;
            let mut answer = String::new();
            client.read_to_string(&mut answer)?;
            Ok(answer)
        });
        sending.join().expect("the client does not panic")
    }

    pub fn get(&self, path: &str) -> Result<String> {
        self.send(format!(
            "GET /{path} HTTP/1.1\r\nhost: tests\r\nconnection: close\r\n\r\n"
        ))
    }
}

impl Drop for Served<'_> {
    fn drop(&mut self) {
        // So that the next can have the port.
        if self.container.kill(Signal::SIGKILL).is_ok() {
            let _ = self.container.wait();
        }
    }
}
