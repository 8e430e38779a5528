#!/usr/bin/env bash
# Everything that is measured on one GPU, in one command of EFFACE_GPU_SECONDS (510): figures, tests, compiled variants, training.
#
#   OUT=runs/gpu bash benchmarks/gpu.sh                                      on a machine with a GPU and no network
#   OUT=runs/gpu PYTHON=.venv/bin/python EFFACE_GPU_SMOKE=1 bash benchmarks/gpu.sh     the rehearsal, on the CPU
#
# The folder .whl holds wheels of what the machine lacks; without it the installed packages are used. EFFACE_GPU_TRAIN is a command
# that trains something at the end, within the last EFFACE_GPU_TRAIN_SECONDS (170); without one, the time goes to compiled variants,
# which otherwise get what is left over. EFFACE_GPU_SECTIONS names the sections of benchmarks/gpu.py to run, such as "sdxl-settings
# flux". EFFACE_COMMIT names the commit where git is absent.
set -o pipefail
: "${OUT:?set OUT to a folder for the results}"
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
cd "$(dirname "$0")/.." || exit 1
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
export OUT # a training command may name it
PY=${PYTHON:-python3}
if [ "$EFFACE_GPU_SMOKE" = 1 ]; then
  TOTAL=${EFFACE_GPU_SECONDS:-1500} TESTS=400 DEVICE=cpu SKIPPED="compiled" # which takes minutes on a CPU
else
  TOTAL=${EFFACE_GPU_SECONDS:-510} TESTS=110 DEVICE=cuda SKIPPED=nothing_is_called_this
fi
TRAIN=${EFFACE_GPU_TRAIN-}
PARTING=5
FOR_TRAINING=0 FOR_COMPILING=75
[ -n "$TRAIN" ] && FOR_TRAINING=${EFFACE_GPU_TRAIN_SECONDS:-170} FOR_COMPILING=0
left() { echo $((TOTAL - SECONDS - PARTING)); }

if compgen -G ".whl/*.whl" >/dev/null && [ "$EFFACE_GPU_SMOKE" != 1 ]; then
  WHEELS=$(mktemp -d)
  "$PY" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$WHEELS" .whl/*.whl || exit 1
fi
export PYTHONPATH="$PWD/src${WHEELS:+:$WHEELS}"
command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv

{
  # Figures first: what comes later may fall away.
  figures=$(($(left) - FOR_TRAINING - FOR_COMPILING - 120)) # the tests take 90, drawing beside the stock pipeline 25
  timeout $((figures + 10)) "$PY" benchmarks/gpu.py --out "$OUT" --seconds "$figures" \
    ${EFFACE_GPU_SECTIONS:+--sections $EFFACE_GPU_SECTIONS} # unquoted: each name is an argument

  echo "== drawing beside the stock pipeline, $SECONDS s after the start"
  timeout 40 "$PY" benchmarks/sampling.py --device "$DEVICE" --json > "$OUT/sampling.json"

  # The project's own pytest settings need plugins that are not there, hence the empty configuration.
  echo "== pytest -m gpu, $SECONDS s after the start"
  room=$(($(left) - FOR_TRAINING))
  EFFACE_TEST_DEVICE=$DEVICE CUBLAS_WORKSPACE_CONFIG=:4096:8 timeout -s INT $((room > TESTS ? TESTS : room)) \
    "$PY" -m pytest -c /dev/null --rootdir . -p no:cacheprovider -p no:timeout -q -rfEs --durations 8 -m gpu \
    -W ignore::pytest.PytestUnknownMarkWarning -k "not $SKIPPED" tests/test_gpu.py

  spare=$(($(left) - FOR_TRAINING))
  if [ "$spare" -ge 40 ]; then
    timeout "$spare" "$PY" benchmarks/gpu.py --out "$OUT" --sections compile --seconds $((spare - 8))
  fi
  if [ -n "$TRAIN" ]; then
    echo "== training, $SECONDS s after the start: $TRAIN"
    timeout "$(left)" bash -c "$TRAIN"
    echo "== training ended with $?"
  fi
} 2>&1 | tee "$OUT/log.txt"
"$PY" benchmarks/gpu_page.py --table "$OUT/results.json"
