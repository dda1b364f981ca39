//! Real programs: interpreters, and what other languages' compilers make. Their
//! native code is made by whichever test comes first, and shared by all.

use anyhow::Result;
use lighter_test::{Containerd, Output, Rootfs, each_containerd};

each_containerd!(
    cpython,
    ruby,
    quickjs,
    go,
    javascript_component,
    python_component,
);

fn run(engine: &Containerd, program: &str, args: &[&str]) -> Result<Output> {
    let path = format!("/{program}");
    engine
        .container(&Rootfs::base().guest(program)?)
        .args([&[path.as_str()], args].concat())
        .env("NAME", "value")
        .run()
}

/// A program's output, which must have ended with 0.
fn text(engine: &Containerd, program: &str, args: &[&str]) -> Result<String> {
    run(engine, program, args)?.success()
}

fn cpython(engine: &Containerd) -> Result<()> {
    let script = r#"
import json, os, sqlite3, sys, zlib
print(json.dumps(sys.argv), os.environ["NAME"], zlib.crc32(b"x"))
with open("/tmp/file", "w") as file:
    file.write("written")
print(open("/tmp/file").read(), os.listdir("/tmp"), open("/etc/group").readline().strip())
print(sum(number * number for number in range(1000)))
try:
    open("/nowhere")
except FileNotFoundError as error:
    print(error.filename)
sys.exit(200)
"#;
    let output = run(engine, "python.wasm", &["-c", script, "one"])?;
    assert_eq!(
        output.text(),
        "[\"-c\", \"one\"] value 2363233923\nwritten ['file'] root:x:0:\n332833500\n/nowhere\n"
    );
    assert_eq!(output.status, 200, "{}", output.errors());
    let output = run(engine, "python.wasm", &["-c", "raise ValueError('wrong')"])?;
    assert!(
        output.errors().contains("ValueError: wrong"),
        "{}",
        output.errors()
    );
    assert_eq!(output.status, 1);
    Ok(())
}

fn ruby(engine: &Containerd) -> Result<()> {
    let script = r#"
puts [3, 1, 2].sort.inspect, ENV["NAME"], File.read("/etc/group").lines.first
fiber = Fiber.new { Fiber.yield "from a fiber" }
puts fiber.resume
begin
  raise ArgumentError, "wrong"
rescue => error
  p error
end
$stdout.flush
"#;
    assert_eq!(
        text(engine, "ruby.wasm", &[script])?,
        "[1, 2, 3]\nvalue\nroot:x:0:\nfrom a fiber\n#<ArgumentError: wrong>\n"
    );
    let failed = run(engine, "ruby.wasm", &["raise 'wrong'"])?;
    assert_ne!(failed.status, 0);
    Ok(())
}

fn quickjs(engine: &Containerd) -> Result<()> {
    let script = "console.log([1, 2, 3].map(x => x * 2).join('+'), std.getenv('NAME'))";
    let printed = text(engine, "quickjs.wasm", &["--std", "-e", script])?;
    assert_eq!(printed, "2+4+6 value\n");
    Ok(())
}

fn go(engine: &Containerd) -> Result<()> {
    let output = run(engine, "go-program.wasm", &["one", "two"])?;
    assert_eq!(
        output.text(),
        "sum 4950\nargs [one two]\nNAME value\nfile \"root:x:\" <nil>\nmissing true\n"
    );
    assert_eq!(output.status, 7, "{}", output.errors());
    Ok(())
}

fn javascript_component(engine: &Containerd) -> Result<()> {
    let output = run(engine, "javascript-component.wasm", &[])?;
    assert_eq!(
        output.text(),
        "{\"words\":[\"THE\",\"QUICK\",\"BROWN\",\"FOX\"],\"sum\":6}\n"
    );
    assert_eq!(output.errors(), "on the other stream\n");
    assert_eq!(output.status, 0);
    Ok(())
}

fn python_component(engine: &Containerd) -> Result<()> {
    assert_eq!(
        text(engine, "python-component.wasm", &["one"])?,
        "{\"version\": 3, \"args\": [\"/python-component.wasm\", \"one\"], \"name\": \"value\"}\n\
         root:x:0:\n"
    );
    Ok(())
}
