//! A registry on loopback that images are pulled from (OCI distribution specification, "Pull").

use std::{
    collections::HashMap,
    fs::File,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    os::fd::AsRawFd,
    path::Path,
    sync::Arc,
    thread,
};

use anyhow::{Context, Result, anyhow};
use nix::sys::socket::{Shutdown, shutdown};
use serde_json::Value;

use crate::{Network, artifact::digest};

/// The first byte of a handshake of TLS; its length is in the fourth and fifth (RFC 8446, section
/// 5.1).
const TLS: u8 = 22;

/// A registry that serves until it is dropped.
pub struct Registry {
    listener: Arc<TcpListener>,
}

struct Content {
    /// Manifests' and indexes' digests by `NAME:TAG`, without the registry.
    tags: HashMap<String, String>,
    blobs: HashMap<String, Vec<u8>>,
}

impl Registry {
    /// Serves the images of an archive on a free port, in a network namespace if one is given.
    ///
    /// # Errors
    /// The archive cannot be read, or there is no port.
    pub fn serve(archive: &Path, network: Option<&Network>) -> Result<Self> {
        let content = Arc::new(Content::read(archive)?);
        let bind = || Ok(TcpListener::bind("127.0.0.1:0")?);
        let listener = match network {
            Some(network) => network
                .spawn(bind)
                .join()
                .map_err(|_| anyhow!("the binding thread panicked"))??,
            None => bind()?,
        };
        let listener = Arc::new(listener);
        let accepting = listener.clone();
        thread::spawn(move || {
            while let Ok((connection, _)) = accepting.accept() {
                let content = content.clone();
                // A client that goes away in the middle is no error here.
                thread::spawn(move || drop(content.answer(&connection)));
            }
        });
        Ok(Self { listener })
    }

    /// The name by which an engine pulls what the archive has as `ANY/name`.
    ///
    /// # Errors
    /// There is no port any more.
    pub fn name(&self, name: &str) -> Result<String> {
        Ok(format!("{}/{name}", self.listener.local_addr()?))
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // Ends the wait for connections.
        let _ = shutdown(self.listener.as_raw_fd(), Shutdown::Both);
    }
}

impl Content {
    fn read(archive: &Path) -> Result<Self> {
        let mut files = HashMap::new();
        let mut tar = tar::Archive::new(File::open(archive)?);
        for entry in tar.entries()? {
            let mut entry = entry?;
            let path = entry.path()?.to_string_lossy().into_owned();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes)?;
            files.insert(path, bytes);
        }
        let index = files.get("index.json").context("no index.json")?;
        let index: Value = serde_json::from_slice(index)?;
        let mut tags = HashMap::new();
        for image in index["manifests"].as_array().into_iter().flatten() {
            let name = image["annotations"]["io.containerd.image.name"].as_str();
            let (_, name) = name.and_then(|it| it.split_once('/')).context("no name")?;
            let digest = image["digest"].as_str().context("no digest")?;
            tags.insert(name.to_owned(), digest.to_owned());
        }
        let blobs = files.into_values().map(|bytes| (digest(&bytes), bytes));
        Ok(Self {
            tags,
            blobs: blobs.collect(),
        })
    }

    fn answer(&self, mut connection: &TcpStream) -> Result<()> {
        let mut first = [0];
        if connection.peek(&mut first)? == 1 && first[0] == TLS {
            // From this answer a client sees that TLS is not spoken here.
            let mut head = [0; 5];
            connection.read_exact(&mut head)?;
            let length = u16::from_be_bytes([head[3], head[4]]);
            connection.read_exact(&mut vec![0; length.into()])?;
            return Ok(connection.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")?);
        }
        let mut lines = BufReader::new(connection).lines();
        let request = lines.next().context("no request")??;
        for line in lines {
            if line?.is_empty() {
                break;
            }
        }
        let mut words = request.split(' ');
        let (method, path) = (words.next().context("no method")?, words.next());
        let path = path.and_then(|it| it.strip_prefix("/v2/"));
        let path = path.map(|it| it.split('?').next().unwrap_or(it));
        let found = match path {
            Some("") => Some((String::new(), "application/json".to_owned(), &b"{}"[..])),
            Some(path) => self.find(path),
            None => None,
        };
        let Some((digest, kind, body)) = found else {
            let answer = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            return Ok(connection.write_all(answer.as_bytes())?);
        };
        let head = format!(
            "HTTP/1.1 200 OK\r\nDocker-Distribution-Api-Version: registry/2.0\r\n\
             Docker-Content-Digest: {digest}\r\nContent-Type: {kind}\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        connection.write_all(head.as_bytes())?;
        if method != "HEAD" {
            connection.write_all(body)?;
        }
        Ok(())
    }

    fn find(&self, path: &str) -> Option<(String, String, &[u8])> {
        let (rest, reference) = path.rsplit_once('/')?;
        let (name, kind) = rest.rsplit_once('/')?;
        let tag = self.tags.get(&format!("{name}:{reference}"));
        let digest = tag.map_or(reference, String::as_str);
        let body = self.blobs.get(digest)?;
        let media_type = match kind {
            "manifests" => {
                let manifest: Value = serde_json::from_slice(body).ok()?;
                manifest["mediaType"].as_str()?.to_owned()
            }
            _ => "application/octet-stream".to_owned(),
        };
        Some((digest.to_owned(), media_type, body))
    }
}
