;; Makes a command of Ruby's library: its first argument is a program, which sees no other.
(module
  (import "wasi_snapshot_preview1" "args_sizes_get" (func $args_sizes (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_get" (func $args (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (import "ruby" "memory" (memory 0))
  (import "ruby" "_initialize" (func $initialize))
  (import "ruby" "cabi_realloc" (func $realloc (param i32 i32 i32 i32) (result i32)))
  (import "ruby" "ruby-init: func(args: list<string>) -> ()" (func $ruby_init (param i32 i32)))
  (import "ruby" "rb-eval-string-protect: func(str: string) -> tuple<handle<rb-abi-value>, s32>"
    (func $eval (param i32 i32) (result i32)))

  (func $alloc (param $size i32) (result i32)
    (call $realloc (i32.const 0) (i32.const 0) (i32.const 8) (local.get $size)))

  (func $length (param $text i32) (result i32)
    (local $end i32)
    (local.set $end (local.get $text))
    (block $done
      (loop $next
        (br_if $done (i32.eqz (i32.load8_u (local.get $end))))
        (local.set $end (i32.add (local.get $end) (i32.const 1)))
        (br $next)))
    (i32.sub (local.get $end) (local.get $text)))

  ;; What Ruby is started with: the words `ruby` and `-e_=0`, each an address and a length.
  (func $start_ruby
    (local $words i32)
    (local.set $words (call $alloc (i32.const 32)))
    (i64.store (local.get $words) (i64.const 0x0000000079627572))
    (i64.store offset=8 (local.get $words) (i64.const 0x000000303d5f652d))
    (i32.store offset=16 (local.get $words) (local.get $words))
    (i32.store offset=20 (local.get $words) (i32.const 4))
    (i32.store offset=24 (local.get $words) (i32.add (local.get $words) (i32.const 8)))
    (i32.store offset=28 (local.get $words) (i32.const 5))
    (call $ruby_init (i32.add (local.get $words) (i32.const 16)) (i32.const 2)))

  (func (export "_start")
    (local $sizes i32) (local $words i32) (local $program i32)
    (call $initialize)
    (call $start_ruby)
    (local.set $sizes (call $alloc (i32.const 8)))
    (drop (call $args_sizes (local.get $sizes) (i32.add (local.get $sizes) (i32.const 4))))
    (local.set $words (call $alloc (i32.shl (i32.load (local.get $sizes)) (i32.const 2))))
    (drop (call $args (local.get $words) (call $alloc (i32.load offset=4 (local.get $sizes)))))
    (local.set $program (i32.load offset=4 (local.get $words)))
    ;; The answer is a value and what kind of jump has ended the program, 0 for none.
    (i32.load offset=4 (call $eval (local.get $program) (call $length (local.get $program))))
    (call $exit)))
