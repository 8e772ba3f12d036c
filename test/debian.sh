#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The tests that need no ROS, on the Python and the torch of a Debian suite: sid has Python 3.14, trixie has 3.13.
# Run as root, with debootstrap installed:  test/debian.sh SUITE FOLDER [PYTEST ARGUMENTS]
# FOLDER receives the suite (2 GB), and is used again.
set -eu
suite=${1:?name a suite: sid, trixie} folder=${2:?name a folder for it}
shift 2
source=$(cd "$(dirname "$0")/.." && pwd)
packages="python3-torch python3-numpy python3-yaml python3-tqdm python3-pil python3-matplotlib python3-jinja2
    python3-transforms3d python3-pytest python3-pytest-timeout python3-hypothesis"

test -e "$folder/usr/bin/python3" ||
    debootstrap --variant=minbase --include=python3,ca-certificates "$suite" "$folder"
# a mirror may be older than its list says
chroot "$folder" apt-get -qq -o Acquire::Check-Valid-Until=false update
# shellcheck disable=SC2086  # a list
chroot "$folder" env DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends $packages >/dev/null

test $# -gt 0 || set -- -m "not long and not slow" \
    test/pointcloud2 test/data test/inference test/network test/evaluation test/labelling \
    test/test_files.py test/test_errors.py test/test_process.py test/test_architecture.py
mkdir -p "$folder/source"
# the mounts end with the command; PYTORCH_TENSOREXPR=0: tests call TorchScript directly, whose optimiser takes minutes for
# each network with a torch that was built with LLVM (the package switches it off itself)
# shellcheck disable=SC2016  # for the inner shell
exec unshare --mount sh -euc '
    source=$1 folder=$2; shift 2
    mount --bind "$source" "$folder/source"
    mount -t proc proc "$folder/proc"
    mount --bind /dev "$folder/dev"
    exec chroot "$folder" sh -euc "cd /source; export PYTHONDONTWRITEBYTECODE=1 PYTORCH_TENSOREXPR=0
        python3 -c \"import sys, torch; print(\\\"Python\\\", sys.version.split()[0], \\\"torch\\\", torch.__version__)\"
        exec python3 -m pytest -q -p no:cacheprovider \"\$@\"" sh "$@"
' sh "$source" "$folder" "$@"
