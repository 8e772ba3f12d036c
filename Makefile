# SPDX-License-Identifier: Apache-2.0
# `make test` needs Python 3.10 to 3.12 and nothing else: it makes .venv, installs, lints and tests.
# ROS=kilted takes that distribution instead of Jazzy, in an environment of its own.
ROS ?= jazzy
VENV ?= $(if $(filter jazzy,$(ROS)),.venv,.venv-$(ROS))
# the first one found of 3.10, 3.11 or 3.12; PYTHON=... chooses another
PYTHON ?= $(shell for python in python3 python3.12 python3.11 python3.10; do \
	$$python -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && echo $$python && break; done)
RUN := $(VENV)/bin/python -m
CLI := $(RUN) sqsegv3_ros.cli
INSTALLED := $(VENV)/installed
# pytest-timeout raises an exception after 300 s; a hang in a library that never returns to Python shows its stacks and is ended
END_HANGS := -o faulthandler_timeout=360 -o faulthandler_exit_on_timeout=true

# nothing of a test leaves the machine, and a robot's domain on it is not disturbed
export ROS_AUTOMATIC_DISCOVERY_RANGE := LOCALHOST
export ROS_DOMAIN_ID := $(shell echo $$(($$$$ % 100 + 1)))
export ROS_LOG_DIR ?= $(abspath $(VENV))/ros_log

.PHONY: test test-fast test-ros test-ouster test-long test-launch test-cuda demo model model-kitti model-small lint format parameters install clean

# three at a time on two cores, as many tests wait for other processes; a worker keeps to its part, as the tests of a file
# share what they set up
test: lint
	$(RUN) pytest -n 3 --dist worksteal $(END_HANGS)

# quick check while editing: the tests without ROS and without processes, under a minute
test-fast: $(INSTALLED)
	$(RUN) pytest -q -n 2 -m "not long and not slow" test/test_architecture.py test/pointcloud2 test/data test/inference test/network

# the node and its clients; `make ROS=kilted test-ros` runs them on Kilted
test-ros: $(INSTALLED)
	$(RUN) pytest -n 3 --dist worksteal $(END_HANGS) test/ros

# Ouster recordings, with ouster-sdk in an environment of its own
test-ouster: .venv-ouster/installed
	.venv-ouster/bin/python -m pytest -q -p no:asyncio test/data/test_ouster_files.py

.venv-ouster/installed: requirements/ouster.txt
	test -x .venv-ouster/bin/python || $(PYTHON) -m venv .venv-ouster
	.venv-ouster/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	touch $@

test-long: $(INSTALLED) test-ouster
	$(RUN) pytest -m long
	$(MAKE) ROS=kilted VENV=.venv-kilted test-ros

# every launch file with the real `ros2 launch`; SOURCES holds checkouts of launch, launch_ros and ros2cli
LAUNCH_VENV ?= $(VENV)-launch
test-launch: $(INSTALLED)
	@test -n "$(SOURCES)" || { echo "SOURCES=... names the folder with checkouts of launch, launch_ros and ros2cli"; exit 2; }
	$(VENV)/bin/python test/launch_environment.py $(LAUNCH_VENV) $(SOURCES)
	PATH="$(abspath $(LAUNCH_VENV))/bin:$$PATH" $(LAUNCH_VENV)/bin/python -m pytest test/ros/test_launch_run.py

# on a machine with a GPU: all CUDA tests, and what a scan costs there; fails on others
CUDA_TABLE ?= build/performance_cuda.md
test-cuda: $(INSTALLED)
	$(VENV)/bin/python test/cuda.py $(CUDA_TABLE)

# the node, a player and an evaluator on a simulated drive; MODEL=... takes another model than `default`
demo: $(INSTALLED)
	$(CLI) demo --output demo $(if $(MODEL),--model $(MODEL))

# Train models like the shipped ones: hours on two cores each. Interrupted runs resume; `make clean` removes the data, but not the
# runs. EXTRA=... names a folder with folders of compressed scans (docs/training.md): pandaset, and for `kitti` kitti_object,
# nuscenes_lidarseg and nuscenes_boxes.
#   make model EXTRA=DIR                  models/default.pt: simulated scans and PandaSet, free for any use
#   make model-small EXTRA=DIR            models/small.pt: the same with a third of the work
#   make model-kitti KITTI=ROOT EXTRA=DIR models/kitti.pt: from default, with SemanticKITTI, KITTI and nuScenes
MODEL_DATA := build/model
MODEL_RUN := runs/model
PANDASET := $(MODEL_DATA)/pandaset/sequences/31
KITTI_OBJECT := $(MODEL_DATA)/kitti_object/sequences/40
NUSCENES := $(MODEL_DATA)/nuscenes/sequences/50 $(MODEL_DATA)/nuscenes/sequences/51
SIMULATED := 01 02 03 04 05 11 12 13 14 15 16 17 18 19 22 23
model: $(INSTALLED) $(PANDASET)
	$(SIMULATE)
	$(call train,default,ssgv3_default)
	$(call train,default2,ssgv3_default,--model.start_from $(MODEL_RUN)/default/last.ckpt $(NATURAL))
	$(CLI) export $(MODEL_RUN)/default2/last.ckpt --output models/default.pt --half --licence "$(FREE)" $(CALIBRATE) --force

model-small: $(INSTALLED) $(PANDASET)
	$(SIMULATE)
	$(call train,small,ssgv3_default,$(SMALL))
	$(call train,small2,ssgv3_default,$(SMALL) --model.start_from $(MODEL_RUN)/small/last.ckpt $(NATURAL))
	$(CLI) export $(MODEL_RUN)/small2/last.ckpt --output models/small.pt --half --licence "$(FREE)" $(CALIBRATE) --force

model-kitti: $(INSTALLED) $(PANDASET) $(KITTI_OBJECT) $(NUSCENES)
	@test -n "$(KITTI)" || { echo "KITTI=... names the folder of SemanticKITTI (with sequences/NN/velodyne and labels)"; exit 2; }
	$(SIMULATE)
	$(call train,kitti,ssgv3_kitti,--data.root $(KITTI))
	$(CLI) export $(MODEL_RUN)/kitti/last.ckpt --output models/kitti.pt --half --licence "$(NON_COMMERCIAL)" $(CALIBRATE) --force

SMALL := --model.name ssgv3-small --model.network.blocks [1,1,1,1,1] --model.network.channels [8,16,24,48,48] \
	--model.projection.width 576 --model.knn.k 5 --model.knn.search 5 --data.crop_width null
# the second run: classes as frequent as they are, which makes the common ones better
NATURAL := --model.loss.class_weights none --model.optimizer.lr 0.002
CALIBRATE := --calibrate $(MODEL_DATA)/scans/sequences/06
FREE := Apache-2.0; trained on simulated scans and PandaSet (Hesai and Scale AI, CC BY 4.0)
NON_COMMERCIAL := CC BY-NC-SA 4.0 (trained on SemanticKITTI, KITTI and nuScenes): not for commercial use

# a sequence appears when it is complete; scene 003 is held out; the remission is made to resemble KITTI's
$(PANDASET): | $(INSTALLED)
	$(call compressed,pandaset,scene-00[12]*,--intensity-scale 0.0814 --intensity-exponent 0.5 --objects 30 31)

$(KITTI_OBJECT): | $(INSTALLED)
	$(call compressed,kitti_object,*,--least-confidence 9 --objects 16 18 30 31)

# scenes 0006 and 1072 are held out
$(MODEL_DATA)/nuscenes/sequences/50: | $(INSTALLED)
	$(call compressed,nuscenes_lidarseg,scene-000[1245]*,--intensity-scale 0.0626 --intensity-exponent 0.5 --objects 2 4)

$(MODEL_DATA)/nuscenes/sequences/51: | $(INSTALLED)
	$(call compressed,nuscenes_boxes,*,--intensity-scale 0.0626 --intensity-exponent 0.5 --objects 2 4)

# writes the target, a sequence of a data set: folder in EXTRA, files, further options
define compressed
@test -n "$(EXTRA)" || { echo "EXTRA=... names the folder with folders of compressed scans (docs/training.md)"; exit 2; }
$(CLI) convert $(EXTRA)/$(1) --match '$(2).npz' --output $(patsubst %/sequences/,%,$(dir $@)) --sequence $(notdir $@) $(3)
endef

# all scans of the three models
define SIMULATE
for i in $(SIMULATED); do $(call simulate,200,$$(expr $$i + 0)00,$$i) || exit; done
$(call simulate,30,9100,06)
$(call simulate,120,7100,21,--sensor ouster_os1_128)
endef

# scans, seed, sequence, further options
simulate = $(CLI) simulate --scans $(1) --seed $(2) --sequence $(3) --output $(MODEL_DATA)/scans --jobs 2 $(4)

# number of the run, its configuration, further options
define train
test -e $(MODEL_RUN)/$(1)/done || { $(CLI) train --config config/train/$(2).yaml \
	--run.output $(MODEL_RUN)/$(1) $(3) $$(test ! -e $(MODEL_RUN)/$(1)/last.ckpt || echo --run.resume true) && \
	touch $(MODEL_RUN)/$(1)/done; }
endef

lint: $(INSTALLED)
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy

format: $(INSTALLED)
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

# the table in docs/parameters.md, after a change of the specifications
parameters: $(INSTALLED)
	$(VENV)/bin/python docs/site/parameter_table.py

install: $(INSTALLED)

# installs again only after one of these has changed
$(INSTALLED): requirements/test.txt requirements/ros_$(ROS).txt setup.py setup.cfg
	@test -n "$(PYTHON)" || { echo "no Python 3.10, 3.11 or 3.12 found; name one: make PYTHON=/path/to/python test" >&2; exit 2; }
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	# two distributions in one environment break each other
	$(RUN) pip freeze | grep -q '^ros-$(ROS)-rclpy==' || \
		$(RUN) pip freeze | sed -n 's/^\(ros-[^=]*\)==.*/\1/p' | xargs -r $(RUN) pip uninstall --quiet --yes
	$(RUN) pip install --quiet --disable-pip-version-check -r requirements/test.txt -r requirements/ros_$(ROS).txt
	$(RUN) pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --use-pep517 --editable .
	$(RUN) pip check --disable-pip-version-check
	touch $@

clean:
	rm -rf .venv .venv-* build install log dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
