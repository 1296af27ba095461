# Everything runs in a virtual environment of its own, made on first use.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin

.PHONY: setup demo test test-slow lint runtime android bench help clean

help:
	@echo "make setup   install hydrapack and its tools into $(VENV)"
	@echo "make demo    the main job on SmolLM2-135M and five real adapters"
	@echo "make test    the tests (make test ARGS='-k merge' for some of them)"
	@echo "make test-slow  the long fuzzing of adapters"
	@echo "make lint    ruff, mypy and import-linter"
	@echo "make runtime the C++ runtime's libraries and hydrapack-run, in build/runtime"
	@echo "make android the Android app's APK, by Maven (JDK 17, aapt, apksigner, zipalign, dexdump)"
	@echo "make bench   measure decode speed, swap and export"

setup: $(VENV)/.installed

# torch comes first and by its exact version: where pip knows a CPU build of it, that one is taken.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@

demo: setup
	$(BIN)/hydrapack demo

test: setup
	$(BIN)/python -m pytest $(ARGS)

test-slow: setup
	$(BIN)/python -m pytest -m slow $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Needs a C++ compiler and nlohmann/json (Debian: g++ nlohmann-json3-dev).
runtime: setup
	$(BIN)/cmake -S runtime -B build/runtime -G Ninja -DCMAKE_BUILD_TYPE=Release \
		-DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja \
		-Dexecutorch_DIR=$$($(BIN)/python -c "import executorch; print(executorch.__path__[0])")/share/cmake
	$(BIN)/cmake --build build/runtime

# ExecuTorch's AAR comes from Maven Central, or is named: make android AAR=executorch.aar
android:
	mvn -q -B -f android_demo/pom.xml clean package -DskipTests
	$(PYTHON) android_demo/tools/build_apk.py $(if $(AAR),--aar $(AAR))

bench: setup
	$(BIN)/python benchmarks/decode.py
	$(BIN)/python benchmarks/swap.py
	$(BIN)/python benchmarks/runtime.py

clean:
	rm -rf $(VENV) build android_demo/*/target
