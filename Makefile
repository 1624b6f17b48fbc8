# Everything works from a fresh clone: each target sets up .venv first.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
RESULTS := $(BIN)/xrvlm adapt -m experiment=results
SHOTS := shots=1,2,4,8,16,all seed=1,2,3
DESCRIBED := text.descriptions=descriptions.json text.parts=parts.json
B2N := $(BIN)/xrvlm adapt -m experiment=base_to_new seed=1,2,3
FIXED := method=xr_vlm method.part_prompts=descriptions method.image_parts=6
METHODS := $(BIN)/xrvlm adapt -m experiment=results runs=runs/methods seed=1,2,3
FEW := $(METHODS) data.world=2 shots=1,2,4,8,16
HEADS := tip_adapter,tip_adapter_f,residual_probe,task_res,clip_adapter,clap,lp_plus_plus,gda,prolip,trans_clip,proker,ss_text,rla,dmn,filip
LABELFREE := trans_clip_zero_shot,stat_a,tda,filip_zero_shot
ONE_VIEW := features.views=0 method=tip_adapter_f,residual_probe,task_res,clip_adapter,clap,prolip
CLOSED := zero_shot,linear_probe,xr_vlm_plus,gda,tip_adapter,lp_plus_plus,clap,clip_adapter,task_res,tip_adapter_f,residual_probe,prolip
PHOTOS ?=
COMMA := ,
DATA ?=
SUITE ?= cub
DRY ?=
ARGS ?=

.PHONY: demo test slow-test fuzz lint docs results methods photos second joint trust paper bench ablation base_to_new setup clean

demo: $(READY)          ## the main job on the embedded default, offline, in a few minutes
	$(BIN)/xrvlm demo

test: $(READY)          ## all tests, one process a core; one test: .venv/bin/python -m pytest tests/test_files.py
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

slow-test: $(READY)     ## the tests of make test, and those that it leaves out for their time; 20 minutes
	XRVLM_SLOW=1 PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

fuzz: $(READY)          ## hostile images, tables, headers, configurations, cache bytes and kills: counts and failures
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/fuzz.py

lint: $(READY)          ## ruff, and pyright for each platform and for the newest Python
	$(BIN)/ruff check .
	printf '%s\n' '' '--pythonplatform Darwin' '--pythonplatform Windows' '--pythonversion 3.13' \
		| xargs -P 2 -I {} sh -c '$(BIN)/pyright {}'

docs: $(READY)          ## the pages of docs/ as a site, in site/index.html; a broken link or docstring stops it
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

results: $(READY)       ## the tables of docs/results/index.md and plus.md: 3 seeds, full recipes; one to two hours
	$(RESULTS) data.world=0,2,3 method=zero_shot
	$(RESULTS) data.world=0,2,3 method=zero_shot $(DESCRIBED)
	$(RESULTS) data.world=0,2,3 $(SHOTS) method=linear_probe method.inputs=pooled,pooled+mid
	$(RESULTS) data.world=0,2,3 $(SHOTS) method=tip_adapter text.descriptions=descriptions.json
	$(RESULTS) data.world=0,2,3 $(SHOTS) method=tip_adapter_f,residual_probe text.descriptions=descriptions.json features.views=0
	$(RESULTS) data.world=0,2,3 $(SHOTS) method=xr_vlm_plus
	$(RESULTS) data.world=0,2,3 $(SHOTS) method=xr_vlm_plus $(DESCRIBED)
	$(RESULTS) data.world=0,2,3 $(SHOTS) method=xr_vlm_plus $(DESCRIBED) method.image_parts=0 method.pairs=0
	$(RESULTS) data.world=0,2,3 $(SHOTS) method=xr_vlm_plus $(DESCRIBED) method.relate_to=classes
	$(RESULTS) data.world=0,2,3 $(SHOTS) method=xr_vlm method.part_prompts=descriptions text.parts=parts.json
	$(RESULTS) data.world=0,2 $(SHOTS) method=coop,xr_vlm
	$(BIN)/xrvlm report runs=runs/results

# with PHOTOS="DIR1 DIR2", folders of photos with a split.csv (path, class, split), these too, at 16 shots
methods: $(READY)       ## docs/results/methods.md: all methods, 1 to 16 shots, 3 seeds; two hours
	$(METHODS) data.world=2 method=zero_shot,$(LABELFREE)
	$(METHODS) data.world=2 method=zero_shot text.templates=ensemble
	$(METHODS) data.world=2 method=zero_shot,dclip,$(LABELFREE) text.descriptions=descriptions.json
	$(FEW) method=zpe text.templates=ensemble
	$(FEW) method=linear_probe,xr_vlm_plus,$(HEADS),coop,xr_vlm
	$(METHODS) data.world=2 shots=16 method=cocoop,plot,gallop
	$(FEW) method=$(HEADS) text.descriptions=descriptions.json
	$(FEW) method=xr_vlm_plus $(DESCRIBED)
	$(FEW) method=xr_vlm method.part_prompts=descriptions text.parts=parts.json
	$(FEW) method=xr_vlm recipe=fast
	$(FEW) $(ONE_VIEW)
	$(FEW) $(ONE_VIEW) text.descriptions=descriptions.json
	for place in $(PHOTOS); do \
		photos="$(METHODS) data=table data.file=split.csv data.root=$$place"; \
		$$photos method=zero_shot,$(LABELFREE) && $$photos method=zero_shot text.templates=ensemble && \
		$$photos shots=16 method=zpe text.templates=ensemble && $$photos shots=16 $(ONE_VIEW) && \
		$$photos shots=16 method=xr_vlm recipe=fast && \
		$$photos shots=16 method=linear_probe,xr_vlm_plus,$(HEADS),coop,xr_vlm,cocoop,plot || exit 1; \
	done
	$(BIN)/xrvlm report runs=runs/methods baseline=zero_shot

# PHOTOS="DIR1 DIR2", folders of photos with a split.csv (path, class, split); several hours with the last line
photos: $(READY)        ## docs/results/photos.md: all methods, and XR-VLM's ablation, with the photo tower
	for place in $(PHOTOS); do \
		photos="$(BIN)/xrvlm adapt -m data=table data.file=split.csv data.root=$$place backbone=photo features.views=0"; \
		all="$$photos runs=runs/photos seed=1,2,3"; cut="$$photos runs=runs/photos_ablation seed=1,2,3 shots=4,16"; \
		$$all method=zero_shot,$(LABELFREE) && \
		$$all shots=1,4,16 method=zpe text.templates=ensemble && \
		$$all shots=1,2,4,8,16 method=linear_probe,xr_vlm_plus,lp_plus_plus,gda && \
		$$all shots=1,2,4,8,16 method=xr_vlm_plus method.pairs=0 && \
		$$all shots=1,2,4,8,16 method=tip_adapter_f method.fit_prior=true && \
		$$all shots=1,4,16 method=gda method.fit_prior=true && \
		$$all shots=1,4,16 method=$(HEADS) && \
		$$all shots=1,4,16 method=lp_plus_plus method.inputs=unprojected method.scaling=root_l2 && \
		$$all shots=1,2,4,8,16 method=xr_vlm recipe=fast && \
		$$cut method=xr_vlm recipe=fast method.head=cross,diagonal,per_class,per_class_diagonal,alignment,visual && \
		$$cut method=xr_vlm recipe=fast method.part_prompts=vectors && \
		$$cut method=xr_vlm recipe=fast method.live_parts=true && \
		$$cut method=xr_vlm recipe=fast method.image_parts=1 method.text_parts=1 method.live_parts=false,true && \
		$$cut method=xr_vlm recipe=fast method.image_parts=1 method.text_parts=1 method.live_parts=true method.part_prompts=vectors && \
		$$cut method=xr_vlm recipe=fast method.image_parts=2 method.text_parts=2 && \
		$$cut method=xr_vlm recipe=fast method.image_parts=8 method.text_parts=8 && \
		$$cut method=xr_vlm && \
		$$all shots=1,4,16 method=coop && $$all shots=16 method=cocoop,plot,gallop || exit 1; \
	done

second: $(READY)        ## docs/results/second.md: a second tower and a second look beside their controls; three hours
	for what in second look; do \
		$(BIN)/python benchmarks/second.py --what $$what --photos $(PHOTOS) && \
		$(BIN)/python benchmarks/second.py --what $$what --world 2 && \
		$(BIN)/python benchmarks/second.py --what $$what --world 2 --first photo || exit 1; \
	done

joint: $(READY)         ## docs/results/joint.md: one model for PHOTOS and drawn birds beside a model for each
	$(BIN)/python benchmarks/joint.py --photos "$(subst $() ,$(COMMA),$(PHOTOS))" --worlds 2

# DATA=DIR: CUB_200_2011, or with SUITE=eleven the folder of CoOp's data sets; DRY=1 tells the cost and stops;
# ARGS="--shots 1,2,4,8,16,all": see .venv/bin/python benchmarks/paper.py --help
paper: $(READY)         ## XR-VLM's experiments with the real weights and data, beside the paper's figures; a GPU
	@test -n "$(DATA)" || { echo "make paper needs DATA=DIR: the folder CUB_200_2011, or with SUITE=eleven the folder" \
		"of CoOp's data sets (docs/guides/paper.md)" >&2; exit 2; }
	$(BIN)/python benchmarks/paper.py --suite $(SUITE) --data "$(DATA)" $(if $(DRY),--dry-run) $(ARGS)

bench: $(READY)         ## the speeds that matter most, against a baseline in the same run; minutes
	$(BIN)/python benchmarks/train_step.py --classes 100 --turns 3
	$(BIN)/python benchmarks/predict.py --only memory
	$(BIN)/python benchmarks/start_up.py
	$(BIN)/python benchmarks/cold_start.py --turns 1

# with PHOTOS as above
trust: $(READY)         ## docs/results/trust.md: calibration, unknown images, sets, trees, suspects, next; two hours
	set -e; for place in "data=drawn_birds data.world=0 backbone=tiny" "data=drawn_birds data.world=3 backbone=tiny" \
	    $(foreach place,$(PHOTOS),"data=table data.root=$(place) backbone=photo"); do \
		trust="$(BIN)/xrvlm adapt -m $$place shots=8 features.views=0 runs=runs/trust"; \
		$$trust method=$(CLOSED) calibrate=folds,val; \
		$$trust method=trans_clip calibrate=val; \
		$$trust method=trans_clip_zero_shot calibrate=folds,val; \
		$$trust method=zpe text.templates=openai calibrate=folds,val; \
		$$trust method=plot,gallop recipe=fast calibrate=folds; \
		$$trust method=cocoop recipe.epochs=2 calibrate=val; \
		$$trust method=coop,xr_vlm recipe=fast calibrate=folds,val; \
		$$trust method=zero_shot,linear_probe,xr_vlm_plus,coop protocol=open_set; \
		$$trust method=xr_vlm recipe=fast protocol=open_set; \
	done
	$(BIN)/xrvlm adapt -m data=drawn_birds data.world=0,3 backbone=tiny shots=8 features.views=0 runs=runs/trust method=dclip \
		text.descriptions=descriptions.json calibrate=folds,val
	for study in coverage suspects "next --seeds 1,2,3,4,5"; do \
		$(BIN)/python benchmarks/trust.py $$study --photos "$(subst $() ,$(COMMA),$(PHOTOS))" || exit 1; done
	$(BIN)/python benchmarks/trust.py hierarchy --photos "$(firstword $(PHOTOS))" --tree examples/flowers17_families.csv

ablation: $(READY)      ## docs/results/ablation.md: 25 settings, 3 seeds; an hour and a half
	$(BIN)/xrvlm adapt -m experiment=ablation
	$(BIN)/xrvlm report runs=runs/ablation

base_to_new: $(READY)   ## docs/results/new_classes.md: open methods on classes that they were not trained on; half an hour
	$(B2N) data.world=0,2 method=zero_shot,xr_vlm_plus
	$(B2N) data.world=0,2 $(FIXED) method.head=per_class,per_class_diagonal,alignment
	$(B2N) data.world=0,2 $(FIXED) method.head=per_class method.prior_weight=1
	$(B2N) $(FIXED) method.head=per_class,alignment method.prior_weight=1 recipe=adamw
	$(B2N) method=xr_vlm_plus method.relate_to=text,classes
	$(B2N) method=xr_vlm method.context=shared method.head=per_class,per_class_diagonal,alignment
	$(B2N) method=coop
	$(BIN)/xrvlm report runs=runs/base_to_new

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "xrvlm needs Python 3.11 or newer; name one with PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf .venv build dist site *.egg-info .pytest_cache .ruff_cache
