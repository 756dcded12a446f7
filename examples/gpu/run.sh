#!/usr/bin/env bash
# Check and measure the kernels on a GPU that is rented by the minute, in a container or a notebook.
#
#     bash examples/gpu/run.sh [MINUTES [FOLDER]]
#
# It wants an image with PyTorch and Triton, and installs nothing. Everything that is written lies in FOLDER. If the
# machine is taken away, what was measured until then is there; the same command goes on from it. The last line names
# the file to send back, which has the GPU's name, versions and numbers in it, and nothing of you or of the machine.
set -euo pipefail
cd "$(dirname "$0")/../.."

minutes=${1:-10}
folder=${2:-gpu-results}
python=${PYTHON:-$(command -v python3 || command -v python)}

if ! "$python" -c 'import torch, triton' 2>/dev/null; then
    echo "$python has no PyTorch with Triton: choose an image that has, or set PYTHON" >&2
    exit 2
fi

code=0
"$python" -B -m perf gpu --output "$folder/" --minutes "$minutes" || code=$?

newest=$(ls -t "$folder"/gpu-*.jsonl 2>/dev/null | head -n 1) || true
if [ ! -s "$newest" ]; then
    echo "nothing was measured" >&2
    exit "$((code ? code : 1))"
fi
echo "$(wc -l <"$newest") rows to send back: $newest"
exit "$code"
