//! Small modules and components, byte by byte, that no compiler would make.
//! The numbers are those of the core specification, chapter 5 (binary format),
//! and of the component model's Binary.md.

/// A module whose first four bytes are wasm's and whose rest means nothing.
pub fn garbage() -> Vec<u8> {
    let mut bytes = MODULE.to_vec();
    bytes.extend((0..200).map(|i: u8| i.wrapping_mul(73) | 0x40));
    bytes
}

/// A module with one function `_start` that does nothing, and an import of the
/// function `name` of the module `from`, both of type `() -> ()`.
pub fn importing(from: &str, name: &str) -> Vec<u8> {
    let mut import = vec![1];
    import.extend(text(from));
    import.extend(text(name));
    import.extend([0x00, 0x00]);
    module(&[
        (1, FUNCTION_TYPE),
        (2, &import),
        (3, &[1, 0]),
        (7, &export("_start", 1)),
        (10, EMPTY_BODY),
    ])
}

/// A module with one function that does nothing, exported under a name.
pub fn exporting(name: &str) -> Vec<u8> {
    module(&[
        (1, FUNCTION_TYPE),
        (3, &[1, 0]),
        (7, &export(name, 0)),
        (10, EMPTY_BODY),
    ])
}

/// A module with nothing in it.
pub fn empty_module() -> Vec<u8> {
    MODULE.to_vec()
}

/// A module whose one section, of data, says that it is so long, and ends.
pub fn claiming(size: usize) -> Vec<u8> {
    let mut bytes = MODULE.to_vec();
    bytes.push(11);
    bytes.extend(length(size));
    bytes
}

/// A module with one function `_start`: so many blocks, each in the one before.
pub fn nested(depth: usize) -> Vec<u8> {
    let code = [vec![0], [0x02, 0x40].repeat(depth), vec![0x0b; depth + 1]].concat();
    let bodies = [vec![1], length(code.len()), code].concat();
    module(&[
        (1, FUNCTION_TYPE),
        (3, &[1, 0]),
        (7, &export("_start", 0)),
        (10, &bodies),
    ])
}

/// A module with a function `_start` that does nothing and `functions` others whose long bodies take
/// long to compile: some milliseconds each.
///
/// # Errors
/// There are none; it is made from text.
pub fn laborious(functions: usize) -> anyhow::Result<Vec<u8>> {
    let mut text = String::from("(module (memory 1) (func (export \"_start\"))");
    for function in 0..functions {
        text.push_str("(func (param i32) (result i32) (local i32 i32 i32)");
        for step in 0..400 {
            let (to, from) = (1 + (step + function) % 3, step % 4);
            let (factor, offset) = (step * 7 + function, step * 4);
            text.push_str(&format!(
                "(local.set {to} (i32.add (i32.mul (local.get {from}) (i32.const {factor}))
                    (i32.load offset={offset} (local.get 0))))"
            ));
        }
        text.push_str("(local.get 1))");
    }
    text.push(')');
    Ok(wat::parse_str(text)?)
}

/// A component with nothing in it.
pub fn empty_component() -> Vec<u8> {
    b"\0asm\x0d\0\x01\0".to_vec()
}

const MODULE: &[u8] = b"\0asm\x01\0\0\0";
/// One type: a function without parameters and results.
const FUNCTION_TYPE: &[u8] = &[1, 0x60, 0, 0];
/// One body, without locals: `end`.
const EMPTY_BODY: &[u8] = &[1, 2, 0, 0x0b];

fn module(sections: &[(u8, &[u8])]) -> Vec<u8> {
    let mut bytes = MODULE.to_vec();
    for (id, content) in sections {
        bytes.push(*id);
        bytes.extend(length(content.len()));
        bytes.extend(*content);
    }
    bytes
}

fn export(name: &str, function: u8) -> Vec<u8> {
    let mut bytes = vec![1];
    bytes.extend(text(name));
    bytes.extend([0x00, function]);
    bytes
}

fn text(text: &str) -> Vec<u8> {
    let mut bytes = length(text.len());
    bytes.extend(text.as_bytes());
    bytes
}

/// A length in LEB128.
fn length(mut length: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while length > 0x7f {
        bytes.push(length as u8 | 0x80);
        length >>= 7;
    }
    bytes.push(length as u8);
    bytes
}
