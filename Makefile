# Builds, tests, shows and installs Lighter. `make help` lists what there is.
#
# CARGO_TARGET_DIR moves everything that is built or fetched (default: target).
# PEER_SHIM=PATH has `make bench` measure another shim for wasm, too.

PREFIX ?= /usr/local
BINDIR = $(DESTDIR)$(PREFIX)/bin

PROGRAMS = containerd-shim-wasmtime-v1 lighter
TARGET := $(abspath $(or $(CARGO_TARGET_DIR),target))
# .cargo/config.toml has everything built for an explicit target.
RELEASE = $(TARGET)/$(shell rustc -vV | sed -n 's/^host: //p')/release

# Everywhere the whole workspace: with parts of it, cargo would choose other
# features of shared dependencies and compile these once more.
CARGO_FLAGS = --release --workspace --locked

ifneq ($(shell uname -m),x86_64)
# .cargo/config.toml knows the folder of libseccomp.a and libelf.a for x86_64 only.
export LIBSECCOMP_LIB_PATH ?= /usr/lib/$(shell gcc -print-multiarch)
export LIBBPF_SYS_LIBRARY_PATH ?= /usr/lib/$(shell gcc -print-multiarch)
endif

.PHONY: help
help: ## print this list
	@echo 'usage: make TARGET [PREFIX=/usr/local] [DESTDIR=]'
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

.PHONY: demo
demo: ## show a guest and a Linux container under a private containerd (as root)
	@examples/hello/demo.sh

# The programs are built together with the tests: alone, some dependencies have other features, and would be
# compiled twice.
.PHONY: test
test: setup ## run every test (as root)
	cargo build $(CARGO_FLAGS) --bins --tests
	cargo test $(CARGO_FLAGS) --no-fail-fast

.PHONY: setup
setup: ## fetch and install what the tests need, beside what runs here already
	test/setup/build
	test/setup/engines
	test/setup/guests
	test/setup/uml

.PHONY: build
build: ## build the shim and lighter
	@test/setup/build
	cargo build $(CARGO_FLAGS)

# In large pieces, so that file systems that can keep the programs in memory in huge pages.
.PHONY: install
install: build ## install both programs into PREFIX/bin
	install -d $(BINDIR)
	@for program in $(PROGRAMS); do \
	    echo "install $(BINDIR)/$$program"; \
	    new=$(BINDIR)/$$program.new; \
	    dd if=$(RELEASE)/$$program of=$$new bs=4M status=none && chmod 755 $$new && mv $$new $(BINDIR)/$$program || \
	        { rm -f $$new; exit 1; }; \
	done

.PHONY: uninstall
uninstall: ## remove them again; compiled guests stay in /var/lib/lighter
	rm -f $(PROGRAMS:%=$(BINDIR)/%)

.PHONY: installer
installer: build ## make the image that installs the shim on Kubernetes nodes
	deploy/kubernetes/build-image $(RELEASE) $(TARGET)/lighter-installer.tar

.PHONY: bench
bench: build ## measure beside runc and wasmtime (as root)
	test/setup/engines containerd-2.1
	test/setup/guests
	test/setup/peers
	$(RELEASE)/lighter-bench $(if $(PEER_SHIM),--peer-shim $(PEER_SHIM)) --output $(TARGET)/bench

.PHONY: scale
scale: build ## measure up to a thousand containers, and by size (as root)
	test/setup/engines containerd-2.1
	test/setup/guests
	test/setup/peers
	ulimit -n $$(ulimit -H -n) && $(RELEASE)/lighter-bench --scale 1000 --output $(TARGET)/bench

.PHONY: lint
lint: ## check format and style
	@test/setup/build
	cargo fmt --all --check
	cargo clippy $(CARGO_FLAGS) --all-targets -- -D warnings
