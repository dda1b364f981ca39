//! The crate in real processes: compile workers, and guests in a process of their own.

mod cache;
mod common;
mod guests;
mod signals;
mod worker;
