//! Answers every request with a line of text. There is no server in here: whoever runs the component
//! has one.

use wasi::exports::http::incoming_handler::Guest;
use wasi::http::types::{
    Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam,
};

struct Hello;

impl Guest for Hello {
    fn handle(request: IncomingRequest, answer: ResponseOutparam) {
        let path = request.path_with_query().unwrap_or_default();
        let response = OutgoingResponse::new(Fields::new());
        let body = response.body().expect("a body, the first time");
        ResponseOutparam::set(answer, Ok(response));

        let text = format!("Hello from WebAssembly! You asked for {path}\n");
        let stream = body.write().expect("a stream, the first time");
        stream.blocking_write_and_flush(text.as_bytes()).expect("a client that listens");
        drop(stream);
        OutgoingBody::finish(body, None).expect("a whole body");
    }
}

wasi::http::proxy::export!(Hello);
