# Everything works from a fresh clone: each target sets up .venv first.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
SWEEP := $(BIN)/xrvlm adapt -m experiment=results data.world=0,1
SHOTS := $(BIN)/xrvlm adapt -m experiment=shots data.world=0,2 seed=1,2,3 shots=1,2,4,8,16,all
DESCRIBED := text.descriptions=descriptions.json text.parts=parts.json

.PHONY: demo test lint results shots setup clean

demo: $(READY)          ## the main job on the embedded default, offline, in a few minutes
	$(BIN)/xrvlm demo

test: $(READY)          ## all tests
	$(BIN)/python -m pytest

lint: $(READY)          ## ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/pyright

results: $(READY)       ## the table of the README: 3 seeds, two worlds, full recipes
	$(SWEEP) method=zero_shot
	$(SWEEP) method=zero_shot text.descriptions=descriptions.json
	$(SWEEP) method=linear_probe method.inputs=pooled,pooled+mid seed=1,2,3
	$(SWEEP) method=coop seed=1,2,3
	$(SWEEP) method=xr_vlm method.part_prompts=descriptions text.parts=parts.json seed=1,2,3
	$(SWEEP) method=xr_vlm seed=1,2,3
	$(BIN)/xrvlm report runs=runs/results

shots: $(READY)         ## XR-VLM+ and what it is compared with, at six numbers of shots: docs/plus.md
	$(BIN)/xrvlm adapt -m experiment=shots data.world=0,2 method=zero_shot
	$(BIN)/xrvlm adapt -m experiment=shots data.world=0,2 method=zero_shot $(DESCRIBED)
	$(SHOTS) method=linear_probe
	$(SHOTS) method=tip_adapter text.descriptions=descriptions.json
	$(SHOTS) method=tip_adapter_f,residual_probe text.descriptions=descriptions.json features.views=0
	$(SHOTS) method=xr_vlm method.part_prompts=descriptions text.parts=parts.json
	$(SHOTS) method=xr_vlm_plus
	$(SHOTS) method=xr_vlm_plus $(DESCRIBED)
	$(SHOTS) method=xr_vlm_plus $(DESCRIBED) method.image_parts=1
	$(SHOTS) method=xr_vlm_plus $(DESCRIBED) method.relate_to=classes
	$(BIN)/xrvlm report runs=runs/shots

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "xrvlm needs Python 3.11 or newer; name one with PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache
