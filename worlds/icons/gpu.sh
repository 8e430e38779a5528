#!/usr/bin/env bash
# One sitting: trains the world of icons on a GPU in EFFACE_GPU_SECONDS (560), without a network.
#
#   OUT=runs/icons-gpu WORK=runs/icons bash worlds/icons/gpu.sh                                  on a machine with a GPU
#   OUT=runs/icons-gpu WORK=runs/icons-smoke PYTHON=.venv/bin/python EFFACE_GPU_SMOKE=1 bash worlds/icons/gpu.sh     the rehearsal
#
# WORK holds renders-STYLE.webp (six files, 14 MB) of the stage render, which needs a network, and travels with the sources. OUT gets
# a log and everything that the stages pack and card need, as two archives in pieces of 15 MiB, small enough for two journeys:
# cat models.tar.* | tar x -C WORK, the same with others.tar.*, then the stages pack and card, on any machine. The folder .whl holds
# wheels of what the machine lacks; without it the installed packages are used.
set -o pipefail
: "${OUT:?set OUT to a folder for the results}" "${WORK:?set WORK to the folder with the renders}"
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
cd "$(dirname "$0")/../.." || exit 1
mkdir -p "$OUT" "$WORK"
OUT=$(cd "$OUT" && pwd)
PY=${PYTHON:-python3}
if [ "$EFFACE_GPU_SMOKE" = 1 ]; then
  SMOKE=--smoke SECONDS_GIVEN=${EFFACE_GPU_SECONDS:-90} DEVICE=${EFFACE_TEST_DEVICE:-cpu}
else
  SMOKE="" SECONDS_GIVEN=${EFFACE_GPU_SECONDS:-560} DEVICE=cuda
fi
if compgen -G ".whl/*.whl" >/dev/null && [ "$DEVICE" != cpu ]; then
  WHEELS=$(mktemp -d)
  "$PY" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$WHEELS" .whl/*.whl || exit 1
fi
export PYTHONPATH="$PWD/src:$PWD${WHEELS:+:$WHEELS}"
command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv

{
  [ -n "$SMOKE" ] && "$PY" -m worlds.icons.build render --smoke --work "$WORK"
  "$PY" -m worlds.icons.build sitting --seconds $((SECONDS_GIVEN - SECONDS)) $SMOKE --device "$DEVICE" --work "$WORK"
  echo "== the sitting ended with $?, $SECONDS s after the start"
} 2>&1 | tee "$OUT/log.txt"

cd "$WORK" || exit 1
tar c {base1,gold-category,gold-style}/{unet.safetensors,training.json} | split -b 15m - "$OUT/models.tar."
tar c base0/{unet.safetensors,training.json} trunk/training.json tokenizer clip-*/{config.json,model.safetensors,training.json} \
  detectors logs | split -b 15m - "$OUT/others.tar."
ls -l "$OUT"
