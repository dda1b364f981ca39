//! As counter, by WASI 0.3: answers each request with how many there have been, by wasi:keyvalue, and
//! logs it.
use wasip3::{
    http::types::{ErrorCode, Fields, Request, Response},
    wit_bindgen::spawn_local,
    wit_future, wit_stream,
};

mod imports {
    wit_bindgen::generate!({
        path: [
            "../../../crates/wasm/wit/keyvalue.wit",
            "../../../crates/wasm/wit/logging.wit",
            "../counter/wit",
        ],
        world: "lighter:counter/counter",
        generate_all,
    });
}

use imports::wasi::keyvalue::{atomics, store};
use imports::wasi::logging::logging::{Level, log};

struct Counter;

wasip3::http::service::export!(Counter);

impl wasip3::exports::http::handler::Guest for Counter {
    async fn handle(_: Request) -> Result<Response, ErrorCode> {
        let text = count().map_err(|reason| ErrorCode::InternalError(Some(reason)))?;
        log(Level::Info, "counter", &text);
        let (mut writer, content) = wit_stream::new();
        let (end, trailers) = wit_future::new(|| Ok(None));
        drop(end);
        let (response, _) = Response::new(Fields::new(), Some(content), trailers);
        spawn_local(async move {
            writer.write_all(text.into_bytes()).await;
        });
        Ok(response)
    }
}

fn count() -> Result<String, String> {
    let bucket = store::open("default").map_err(|error| format!("{error:?}"))?;
    let count = atomics::increment(&bucket, "count", 1).map_err(|error| format!("{error:?}"))?;
    Ok(count.to_string())
}
