#!/usr/bin/env bash
# The power cut in its long form: fetches a kernel of Debian's into a folder of its own, nothing is installed by it, and
# runs tests/test_power_cut.py. QEMU must be there (apt-get install qemu-system-x86). About ten minutes; PYTHON=… chooses
# the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."

work=$(mktemp -d)
trap 'rm -rf -- "$work"' EXIT
image=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image/ {print $2; exit}')
(cd "$work" && apt-get download -qq "$image" && dpkg-deb -x ./*.deb kernel)
FAULTS=${FAULTS-long} FAULTS_KERNEL=$work/kernel "${PYTHON:-python}" -m pytest -s tests/test_power_cut.py
