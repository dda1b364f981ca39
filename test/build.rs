//! Compiles the part of CRI that the tests use.

fn main() -> std::io::Result<()> {
    tonic_prost_build::configure()
        .build_server(false)
        .build_transport(false)
        .compile_protos(&["proto/cri.proto"], &["proto"])
}
