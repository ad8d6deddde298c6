# A thin front over CMake presets. `make help` lists the targets.
JOBS ?= $(shell nproc)
VERSION = $(shell sed -n 's/^project.fettle VERSION \([^ ]*\).*/\1/p' CMakeLists.txt)
.DEFAULT_GOAL := build
.PHONY: hpu-check image test-release test-readers test-chart test-cluster help setup build build-all dev test test-dev nightly lint format demo demo-offline bench bench-quantization docs fuzz clean

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## install what is missing to build (Debian packages, libtorch)
	@tools/setup.sh

build: setup ## build build/release/fettle
	@cmake --preset release $(CMAKE_ARGS) >/dev/null
	@cmake --build --preset release -j $(JOBS) --target fettle

build-all: build ## build the tests and tools too
	@cmake --build --preset release -j $(JOBS)

dev: setup ## build with AddressSanitizer and UndefinedBehaviorSanitizer into build/dev
	@cmake --preset dev $(CMAKE_ARGS) >/dev/null
	@cmake --build --preset dev -j $(JOBS)

test: ## build and pass every test that needs no cluster: test-release and test-dev
	@$(MAKE) --no-print-directory test-release
	@$(MAKE) --no-print-directory test-dev

test-release: ## unit tests, faults, and the live comparison with transformers, peft and trl
	@tools/setup.sh test cuda
	@$(MAKE) --no-print-directory build-all
	@ctest --preset release -j $(JOBS) -LE nightly

test-dev: dev ## the unit tests under AddressSanitizer and UndefinedBehaviorSanitizer
	@ctest --preset dev -j $(JOBS)

READERS = base config text hub ops data model quantize
test-readers: setup ## of test-dev what .ci/run has time for: the rooms that read what others wrote, the kernels, the fuzzers' corpora
	@cmake --preset dev $(CMAKE_ARGS) >/dev/null
	@cmake --build --preset dev -j $(JOBS) --target fuzzers $(READERS:%=test_%)
	@ctest --preset dev -j $(JOBS) -R "^fuzz$$(printf '|^unit.%s' $(READERS))"

test-chart: build ## the Helm chart without a cluster: lint, unit suites, schemas, invariants of every render, copy.sh
	@tools/setup.sh chart
	@tools/cluster/install.sh chart
	@tools/cluster/install.sh manifests
	@cd deploy/tests && python3 -m unittest discover --pattern '*_test.py'

nightly: ## the long proofs: the real 135M model against TRL, WikiText-2 perplexity; other versions of torch; the hpu image; all sanitizers
	@tools/setup.sh test model gaudi
	@$(MAKE) --no-print-directory build-all
	@ctest --preset release -L nightly --output-on-failure
	@JOBS=$(JOBS) tools/torch_versions.sh
	@JOBS=$(JOBS) tests/hpu/image_test.sh
	@$(MAKE) --no-print-directory test-dev

image: ## build the image localhost/fettle:<version>-cpu (TARGET=cuda or hpu: that one) with docker, podman or buildah
	@tools/image.sh $(or $(TARGET),cpu) localhost/fettle:$(VERSION)-$(or $(TARGET),cpu)

test-cluster: ## the chart on a real Kubernetes made on this machine: trained, interrupted, resumed (root; minutes)
	@tools/setup.sh test
	@$(MAKE) --no-print-directory build
	@cmake --build --preset release -j $(JOBS) --target hpu_stand_in hpu_stand_in_synapse
	@tools/cluster/test.sh

hpu-check: ## on a machine with Gaudi cards, in the vendor's image: compare with the processor, and measure
	@tools/hpu_check.sh

lint: ## clang-format, and clang-tidy over each source by itself
	@tools/setup.sh lint
	@$(MAKE) --no-print-directory build-all
	@cmake --preset release -B build/lint -DCMAKE_UNITY_BUILD=OFF $(CMAKE_ARGS) >/dev/null
	@tools/lint.sh

format: ## format every C++ and Rust source in place
	@tools/setup.sh lint
	@git ls-files '*.h' '*.cpp' '*.cu' '*.cuh' | xargs clang-format -i
	@cd rust && cargo fmt

demo: ## LoRA on SmolLM2-135M-Instruct with medical questions: two or three minutes on a CPU
	@tools/setup.sh model
	@$(MAKE) --no-print-directory build
	@tools/demo.sh smollm2 $(ARGS)

demo-offline: build ## the same in seconds with the embedded stories260K model and TinyStories
	@tools/demo.sh stories260k $(ARGS)

bench: ## measure against transformers + peft on this machine and write docs/benchmarks.md
	@tools/setup.sh test
	@$(MAKE) --no-print-directory build
	@.venv-test/bin/python bench/bench.py

bench-quantization: ## measure `fettle quantize` and what it makes, also against gptqmodel, into docs/quantization.md (hours)
	@tools/setup.sh test model
	@$(MAKE) --no-print-directory build
	@.venv-test/bin/python bench/quantization.py

docs: build ## write anew what is made from the option table and from the chart's values
	@build/release/fettle config --markdown > docs/options.md
	@tools/chart_schema.py
	@tools/chart_readme.py

fuzz: ## build the libFuzzer targets into build/fuzz
	@tools/setup.sh fuzz
	@cmake --preset fuzz $(CMAKE_ARGS) >/dev/null
	@cmake --build --preset fuzz -j $(JOBS)

clean: ## remove build folders (downloads and environments stay)
	@rm -rf build rust/target
