//! Answers each request with how many there have been, by wasi:keyvalue, and logs it.
use wasi::exports::http::incoming_handler::Guest;
use wasi::http::types::{
    Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam,
};

mod imports {
    wit_bindgen::generate!({
        path: [
            "../../../crates/wasm/wit/keyvalue.wit",
            "../../../crates/wasm/wit/logging.wit",
            "wit",
        ],
        world: "lighter:counter/counter",
        generate_all,
    });
}

use imports::wasi::keyvalue::{atomics, store};
use imports::wasi::logging::logging::{log, Level};

struct Counter;

impl Guest for Counter {
    fn handle(_: IncomingRequest, answer: ResponseOutparam) {
        let (status, text) = match count() {
            Ok(count) => (200, count.to_string()),
            Err(reason) => (500, reason),
        };
        log(Level::Info, "counter", &text);
        let response = OutgoingResponse::new(Fields::new());
        response.set_status_code(status).unwrap();
        let body = response.body().unwrap();
        ResponseOutparam::set(answer, Ok(response));
        let stream = body.write().unwrap();
        stream.blocking_write_and_flush(text.as_bytes()).unwrap();
        drop(stream);
        OutgoingBody::finish(body, None).unwrap();
    }
}

fn count() -> Result<u64, String> {
    let bucket = store::open("default").map_err(|error| format!("{error:?}"))?;
    atomics::increment(&bucket, "count", 1).map_err(|error| format!("{error:?}"))
}

wasi::http::proxy::export!(Counter);
