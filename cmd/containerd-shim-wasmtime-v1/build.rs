//! Links the C library and GCC's unwinder into the program. As shared libraries they would be looked for, mapped and
//! set up by every process that containerd starts, several in the life of a container; and each clone and each end
//! of a process would have their mappings to copy and to take down.
//!
//! Not by `-static` or `crt-static`: with these GCC's start files register the program's unwind table at the unwinder, which
//! then sorts all of it when a guest ends, instead of searching the sorted one that the linker has made.

use std::path::PathBuf;
use std::{env, fs};

/// Linker scripts, which the linker finds before the shared libraries of their names.
const LIBRARIES: [(&str, &str); 3] = [
    ("libc.so", "GROUP(-l:libc.a -lgcc_eh -lgcc)\n"),
    ("libgcc_s.so", "GROUP(-lgcc_eh -lgcc -l:libc.a)\n"),
    ("libm.so", "GROUP(-l:libm.a)\n"),
];

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let folder = PathBuf::from(env::var_os("OUT_DIR").expect("cargo says where output goes"));
    for (name, script) in LIBRARIES {
        fs::write(folder.join(name), script).expect("a file in cargo's folder can be written");
    }
    println!("cargo:rustc-link-search=native={}", folder.display());
    println!("cargo:rustc-link-arg-bins=-Wl,--no-dynamic-linker");
    // Where memory and file agree to 2 MiB, a huge page of the file's is mapped at once: in place of dozens of page
    // faults in each process, and of as many entries that each end of a process takes down.
    println!("cargo:rustc-link-arg-bins=-Wl,-z,max-page-size=0x200000");
}
