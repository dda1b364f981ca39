//! Links the unwinder of GCC into the program. As a shared library it would be looked for, mapped and set up by every
//! process that containerd starts, several in the life of a container.

use std::path::PathBuf;
use std::{env, fs};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let folder = PathBuf::from(env::var_os("OUT_DIR").expect("cargo says where output goes"));
    // A linker script, which the linker finds before the library of this name.
    fs::write(folder.join("libgcc_s.so"), "INPUT(-lgcc_eh -lgcc)\n")
        .expect("a file in cargo's folder can be written");
    println!("cargo:rustc-link-search=native={}", folder.display());
}
