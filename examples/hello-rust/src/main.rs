//! Says hello, with its arguments and environment.
use std::env;

fn main() {
    println!("Hello from Rust in WebAssembly!");
    for (number, argument) in env::args().enumerate() {
        println!("argument {number}: {argument}");
    }
    for (name, value) in env::vars() {
        println!("environment: {name}={value}");
    }
}
