# dlops. `make demo` and `make test` do everything on a fresh machine with Python >= 3.10 and g++ >= 11 (nvcc optional).
#
#   PYTHON=python3.12    the interpreter to build for; its torch is kept where it is >= 2.11 (.ci/env.py)
#   OFFLINE=1            download nothing
#   DLOPS_CUDA=off       CPU kernels only; on: fail without nvcc; auto (default): CUDA kernels where nvcc is found
#   CXX=g++-12           the host compiler
PYTHON ?= python3

P := build/python
# A tool that some package installed beside that Python.
TOOL := $(P) -c 'import os, sys; os.execvp(sys.argv[1], sys.argv[1:])'
CXX_SOURCES = $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cuh' -o -name '*.cu')

.PHONY: help env build demo courses proof test test-all bench lint cuda-check simt gpu wheel-check asan clean distclean

help:
	@echo 'make demo         train a small model on handwritten digits, draw 2,100 new ones, write build/demo/report.html'
	@echo 'make courses      train every architecture of the courses over three seeds, write build/courses/report.html'
	@echo 'make proof        delete a barrier from a copy of a CUDA kernel; be told, without a GPU, what went wrong and where'
	@echo 'make test         build and run the tests          make test-all     the same with the full grids'
	@echo 'make bench        every op beside stock torch      make gpu          GPU tests, benchmarks, one archive [WHAT=family]'
	@echo 'make build        the native libraries, in place   make lint         ruff, clang-format, mypy'
	@echo 'make cuda-check   spills and warnings of nvcc      make wheel-check  build, install and use the wheel'
	@echo 'make simt         CUDA kernels on the CPU: random orders, race build, planted bugs'
	@echo 'make asan         kernel tests under ASan, UBSan   make clean        remove what was built (distclean: .venv too)'

env:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
	  echo "dlops: '$(PYTHON)' is not a Python >= 3.10: install one and name it: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) .ci/env.py

build: env
	@$(P) setup.py -q build_ext --inplace

demo: build
	$(P) -m dlops demo

courses: build
	$(P) -m dlops course all

proof: build
	@$(P) -m dlops.study.proof

test: build
	$(P) -m pytest

test-all: build
	$(P) -m pytest -m ''

bench: build
	$(P) -m dlops bench

lint: env
	$(TOOL) ruff check .
	$(TOOL) clang-format --dry-run --Werror $(CXX_SOURCES)
	$(P) -m mypy

# What ptxas said of every kernel on every architecture: a spill, or a wgmma that it serialised, fails.
cuda-check: build
	@logs=$$(find build/cmake-* -name '*.ptxas.log'); \
	if [ -z "$$logs" ]; then echo 'dlops: built without nvcc, so there are no CUDA kernels to check'; \
	else $(P) csrc/cuda/kernel_resources.py --check $$logs; fi

# The CUDA kernels in the simt runner: random orders, the race build, and bugs planted in them, each of which must be caught.
SIMT_TESTS = tests/attention tests/conv tests/diffusion tests/lstm tests/norm
simt: build
	for seed in 1 2 3; do DLOPS_SIMT_ORDER=random DLOPS_SIMT_SEED=$$seed \
	  $(P) -m pytest --simt=only-plain -k simt $(SIMT_TESTS) || exit 1; done
	$(P) -m pytest --simt=only-race -k simt $(SIMT_TESTS)
	$(P) -m pytest -m planted --durations=3 tests/simt

# One of the runner's test programs: make build/simt_flash, build/simt_flash_race, build/simt_flash_debug, build/simt_speed.
TREE = $(shell $(P) -c 'import sys; print("cmake-cp%d%d" % sys.version_info[:2])')
build/simt_%: build
	@$(TOOL) ninja -C build/$(TREE) simt_$* && ln -sf $(TREE)/simt_$* $@

gpu: export OFFLINE := 1
gpu: env
	$(P) benchmarks/gpu.py $(WHAT)

wheel-check: env
	$(P) .ci/wheel_check.py

# The sanitised libraries live in a tree of their own, so that `make build` keeps the fast ones.
ASAN_LIBRARIES = $(foreach name,libasan.so libubsan.so libstdc++.so.6,$(shell $(CXX) -print-file-name=$(name)))
ASAN_TESTS ?= tests/diffusion tests/norm tests/simt tests/test_math.py
asan: env
	@DLOPS_CUDA=off DLOPS_SANITIZE=address,undefined $(P) setup.py -q build --build-base build/asan-base --build-lib build/asan
	LD_PRELOAD="$(ASAN_LIBRARIES)" ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 PYTHONPATH=build/asan \
	  $(P) -m pytest -o pythonpath=build/asan $(ASAN_TESTS)

clean:
	rm -rf build dlops/*.so dlops/kernel_resources.json *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find csrc dlops tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

distclean: clean
	rm -rf .venv
