//! Requests over HTTP that a guest makes: to whom it may.
//!
//! wasmtime's client looks a host's name up by itself. So that it reaches the very address that was
//! found to be allowed, a request in clear text is sent to that address. Over TLS the server's
//! certificate is for its name, which therefore has to be allowed itself.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http_body_util::BodyExt as _;
use hyper::http::uri::{Authority, Scheme};
use hyper::{Request, Response, Uri};
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpHooks, default_send_request};

use crate::settings::{Network, Settings};
use crate::tls;

/// Lets the requests of a guest through that its settings allow.
pub(crate) struct Gate {
    pub(crate) settings: Arc<Settings>,
    /// The bundle of authorities that the guest's environment names.
    pub(crate) authorities: Option<String>,
    /// Where they are counted.
    pub(crate) outgoing: Option<Arc<Outgoing>>,
}

/// How many requests were made, by their outcome.
#[derive(Default)]
pub(crate) struct Outgoing {
    answered: AtomicU64,
    failed: AtomicU64,
}

impl Outgoing {
    /// Requests that had a response.
    pub(crate) fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Requests that had none, and those that were not let through.
    pub(crate) fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }
}

/// How a request is going on when it has been answered.
pub(crate) type Rest = Box<dyn Future<Output = Result<(), Error>> + Send>;

impl WasiHttpHooks for Gate {
    fn send_request(
        &mut self,
        request: Request<WasiBody>,
        options: Option<RequestOptions>,
        _: Rest,
    ) -> Box<dyn Future<Output = Result<(Response<WasiBody>, Rest), Error>> + Send> {
        let settings = self.settings.clone();
        let authorities = self.authorities.clone();
        let outgoing = self.outgoing.clone();
        Box::new(async move {
            let sent = send(&settings.network, request, options, authorities).await;
            if let Some(outgoing) = outgoing {
                let counter = match sent {
                    Ok(_) => &outgoing.answered,
                    Err(_) => &outgoing.failed,
                };
                counter.fetch_add(1, Ordering::Relaxed);
            }
            sent
        })
    }
}

async fn send(
    network: &Network,
    mut request: Request<WasiBody>,
    options: Option<RequestOptions>,
    authorities: Option<String>,
) -> Result<(Response<WasiBody>, Rest), Error> {
    if !network.enabled {
        return Err(Error::HttpRequestDenied);
    }
    if !network.names || network.allow.is_some() {
        *request.uri_mut() = admit(network, request.uri()).await?;
    }
    if request.uri().scheme() == Some(&Scheme::HTTPS) {
        return tls::send(request, options.unwrap_or_default(), authorities.as_deref()).await;
    }
    let (response, rest) = default_send_request(request, options).await?;
    let rest: Rest = Box::new(rest);
    Ok((response.map(|body| body.boxed_unsync()), rest))
}

/// Where a request for `uri` may be sent.
async fn admit(network: &Network, uri: &Uri) -> Result<Uri, Error> {
    let authority = uri.authority().ok_or(Error::HttpRequestUriInvalid)?;
    let tls = uri.scheme() == Some(&Scheme::HTTPS);
    let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
    // Brackets belong to an address of IPv6 in a URI alone.
    let host = authority.host().trim_matches(['[', ']']);
    if let Ok(address) = host.parse() {
        return match network.allows(SocketAddr::new(address, port)) {
            true => Ok(uri.clone()),
            false => Err(Error::HttpRequestDenied),
        };
    }
    if !network.names {
        return Err(Error::HttpRequestDenied);
    }
    if network.allows_name(host, port) {
        return Ok(uri.clone());
    }
    if tls {
        return Err(Error::HttpRequestDenied);
    }
    let found = tokio::net::lookup_host((host, port)).await;
    let mut found = found.map_err(Error::Connect)?;
    let address = found
        .find(|address| network.allows(*address))
        .ok_or(Error::HttpRequestDenied)?;
    send_to(uri, address).ok_or(Error::HttpRequestUriInvalid)
}

/// `uri` at another address. The request's own `host` header has been made by now.
fn send_to(uri: &Uri, address: SocketAddr) -> Option<Uri> {
    let mut parts = uri.clone().into_parts();
    parts.authority = Some(Authority::try_from(address.to_string()).ok()?);
    Uri::from_parts(parts).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admitted(peers: &[&str], names: bool, uri: &str) -> Option<String> {
        let network = Network {
            names,
            allow: Some(peers.iter().map(|peer| peer.parse().unwrap()).collect()),
            ..Network::default()
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let uri: Uri = uri.parse().unwrap();
        let admitted = runtime.block_on(admit(&network, &uri));
        admitted.ok().map(|uri| uri.to_string())
    }

    #[test]
    fn addresses_are_admitted_that_are_allowed() {
        let address = "http://127.0.0.1:81/a?b";
        assert_eq!(
            admitted(&["127.0.0.0/8"], true, address),
            Some(address.into())
        );
        assert_eq!(admitted(&["127.0.0.0/8:80"], true, address), None);
        let address = "https://[::1]/";
        assert_eq!(
            admitted(&["[::1]:443"], true, address),
            Some(address.into())
        );
        assert_eq!(admitted(&["[::1]:80"], true, address), None);
    }

    #[test]
    fn a_name_is_sent_to_the_address_that_was_allowed() {
        let sent = admitted(&["127.0.0.1:81"], true, "http://localhost:81/a?b");
        assert_eq!(sent, Some("http://127.0.0.1:81/a?b".into()));
        assert_eq!(
            admitted(&["127.0.0.1"], false, "http://localhost:81/"),
            None
        );
        assert_eq!(admitted(&["10.0.0.1"], true, "http://localhost:81/"), None);
    }

    #[test]
    fn over_tls_the_name_has_to_be_allowed() {
        let uri = "https://localhost/";
        assert_eq!(admitted(&["127.0.0.0/8"], true, uri), None);
        assert_eq!(admitted(&["localhost:443"], true, uri), Some(uri.into()));
    }
}
