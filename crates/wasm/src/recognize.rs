//! Telling wasm from other files by their first bytes.

/// Whether a file that begins with `head` is wasm: a core module or a component.
///
/// Both start with the same four bytes (WebAssembly core specification, section 5.5.16); fewer
/// than four bytes are never wasm.
pub fn is_wasm(head: &[u8]) -> bool {
    head.starts_with(b"\0asm")
}

/// Makes sure that a file that begins with `head`, eight bytes if it has so many, is wasm.
///
/// # Errors
/// What it is instead, as "a text file".
pub fn recognize(head: &[u8]) -> Result<(), String> {
    if is_wasm(head) {
        return Ok(());
    }
    Err(match head {
        [] => "an empty file".to_owned(),
        [0, b'a', b's', ..] if head.len() < 4 => "a truncated wasm file".to_owned(),
        [0x7f, b'E', b'L', b'F', ..] => "an ELF file, which is native code".to_owned(),
        [0x1f, 0x8b, ..] => "a gzip file".to_owned(),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "a zstd file".to_owned(),
        [b'P', b'K', 3, 4, ..] => "a zip file".to_owned(),
        [b'M', b'Z', ..] => "a Windows program".to_owned(),
        [b'(', b'm', b'o', b'd', ..] | [b'(', b'c', b'o', b'm', ..] => {
            "wasm's text form, which must be made binary first".to_owned()
        }
        _ if head
            .iter()
            .all(|b| b.is_ascii_graphic() || b.is_ascii_whitespace()) =>
        {
            "a text file".to_owned()
        }
        _ => format!("a file that starts with the bytes {head:02x?}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wasm_is_told_by_its_first_four_bytes() {
        recognize(b"\0asm\x01\0\0\0").expect("a core module");
        recognize(b"\0asm\x0d\0\x01\0").expect("a component");
    }

    #[test]
    fn others_are_told_what_they_are() {
        for (bytes, what) in [
            (&b""[..], "an empty file"),
            (b"\0as", "a truncated wasm file"),
            (b"\x7fELF\x02\x01", "an ELF file"),
            (b"hello\n", "a text file"),
            (b"(module)", "wasm's text form"),
            (b"\x1f\x8b\x08", "a gzip file"),
            (b"\xff\xfe", "bytes [ff, fe]"),
        ] {
            let found = recognize(bytes).expect_err(what);
            assert!(found.contains(what), "{found}");
        }
    }
}
