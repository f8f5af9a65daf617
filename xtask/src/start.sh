#!/bin/sh
# Starts Patchdoor from this folder, without network and without Rust:
#
#   sh start.sh doctor
#   sh start.sh run experiments/badnets.toml --quick
#   sh start.sh study paper --minutes 8 --backend cuda --out /where/results/go
#
# The first call checks all files, joins the parts of a split bundle and unpacks program and images.
# Commands run in this folder. Of the environment it sets PATCHDOOR_DATA, and CUDA_PATH and LD_LIBRARY_PATH if CUDA is where
# neither of them says.
set -eu
PATH="${PATH:-/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin}"
HOME="${HOME:-/tmp}"
export PATH HOME
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
cd "$here"

fail() {
    echo "start.sh: $1" >&2
    exit 2
}

check() {
    if command -v sha256sum >/dev/null 2>&1; then
        sha256sum -c "$1" >check.log 2>&1 || { grep -v ': OK$' check.log >&2; fail "the bundle is damaged or incomplete"; }
    elif command -v shasum >/dev/null 2>&1; then
        shasum -a 256 -c "$1" >check.log 2>&1 || { grep -v ': OK$' check.log >&2; fail "the bundle is damaged or incomplete"; }
    else
        fail "there is neither sha256sum nor shasum to check the bundle with"
    fi
    rm -f check.log
}

if [ ! -f .unpacked ]; then
    check SHA256SUMS
    if [ -f bundle.tar.part-000 ]; then
        cat bundle.tar.part-* | tar -xf - || fail "the parts cannot be unpacked"
        check SHA256SUMS.inner
    fi
    rm -rf bin
    mkdir -p bin
    gzip -dc patchdoor.gz >bin/patchdoor.partial
    chmod 755 bin/patchdoor.partial
    mv bin/patchdoor.partial bin/patchdoor
    rm -rf data
    for packed in images/*.packed; do
        [ -f "$packed" ] || continue
        bin/patchdoor data unpack "$packed" --data data >&2
    done
    : >.unpacked
fi

# Images of this bundle, unless others are asked for.
if [ -z "${PATCHDOOR_DATA:-}" ] && [ -d data ]; then
    PATCHDOOR_DATA="$here/data"
    export PATCHDOOR_DATA
fi

# CUDA's headers and NVRTC often lie where Python's packages put them.
if [ -z "${CUDA_PATH:-}" ] && [ ! -f /usr/local/cuda/include/cuda_runtime.h ] && [ ! -f /opt/cuda/include/cuda_runtime.h ]; then
    for folder in /usr/local/cuda-* /usr/local/lib/python3*/*-packages/nvidia/cu* /usr/lib/python3*/*-packages/nvidia/cu* \
        "$HOME"/.local/lib/python3*/site-packages/nvidia/cu* /opt/conda/lib/python3*/site-packages/nvidia/cu*; do
        if [ -f "$folder/include/cuda_runtime.h" ]; then
            CUDA_PATH="$folder"
            export CUDA_PATH
            break
        fi
    done
fi
for folder in "${CUDA_PATH:-/usr/local/cuda}" /usr/local/cuda; do
    for library in "$folder/lib64" "$folder/lib"; do
        if ls "$library"/libnvrtc.so* >/dev/null 2>&1; then
            LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$library"
            export LD_LIBRARY_PATH
        fi
    done
done

exec bin/patchdoor "$@"
