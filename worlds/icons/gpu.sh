#!/usr/bin/env bash
# One sitting of training the world of icons on a GPU, in one command of EFFACE_GPU_SECONDS (480) that needs no network.
#
#   OUT=runs/icons-gpu WORK=runs/icons bash worlds/icons/gpu.sh                                  on a machine with a GPU
#   OUT=runs/icons-gpu WORK=runs/icons-smoke PYTHON=.venv/bin/python EFFACE_GPU_SMOKE=1 bash worlds/icons/gpu.sh     the rehearsal
#
# WORK holds renders-STYLE.webp (six files, 14 MB) of the stage render, which needs a network, and travels with the sources. The first
# sitting trains the text encoder, both base models, the detectors and the scorer, and makes the card. The second one, with
# EFFACE_ICONS_SITTING=second, trains the gold models from scratch and needs WORK/tokenizer and WORK/clip-init of the first as well.
# What comes back in OUT is a log, the card, and one archive in pieces of 15 MiB: cat pack.tar.* | tar x -C FOLDER. The folder .whl
# holds wheels of what the machine lacks; without it the installed packages are used.
set -o pipefail
: "${OUT:?set OUT to a folder for the results}" "${WORK:?set WORK to the folder with the renders}"
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
cd "$(dirname "$0")/../.." || exit 1
mkdir -p "$OUT" "$WORK"
OUT=$(cd "$OUT" && pwd)
PY=${PYTHON:-python3}
SITTING=${EFFACE_ICONS_SITTING:-first}
TOTAL=${EFFACE_GPU_SECONDS:-480}
PARTING=10 # seconds for the archive
if [ "$EFFACE_GPU_SMOKE" = 1 ]; then
  SMOKE=--smoke TOTAL=${EFFACE_GPU_SECONDS:-1500} DEVICE=cpu SMOKE_SECONDS=10
else
  SMOKE="" DEVICE=cuda SMOKE_SECONDS=0
fi
if compgen -G ".whl/*.whl" >/dev/null && [ "$EFFACE_GPU_SMOKE" != 1 ]; then
  WHEELS=$(mktemp -d)
  "$PY" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$WHEELS" .whl/*.whl || exit 1
fi
export PYTHONPATH="$PWD/src:$PWD${WHEELS:+:$WHEELS}"
command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv

{
  [ -n "$SMOKE" ] && "$PY" -m worlds.icons.build render --smoke --work "$WORK"
  left=$((TOTAL - SECONDS - PARTING))
  # Of each second a fifth goes to what is no training: composing, encoding captions, the card.
  timeout "$left" "$PY" -m worlds.icons.build "$SITTING" --seconds $((SMOKE_SECONDS > 0 ? SMOKE_SECONDS : left * 4 / 5)) $SMOKE \
    --device "$DEVICE" --work "$WORK" --out "$WORK/pack"
  echo "== $SITTING sitting ended with $?, $SECONDS s after the start"
  # A sitting that was cut short brings home what is trained.
  if [ "$SITTING" = first ] && [ ! -d "$WORK/pack" ]; then
    "$PY" -m worlds.icons.build pack $SMOKE --device cpu --work "$WORK" --out "$WORK/pack"
  fi
} 2>&1 | tee "$OUT/log.txt"

cd "$WORK" || exit 1
if [ "$SITTING" = first ]; then
  cp pack/card.json pack/CARD.md pack/contact_sheet.png "$OUT" 2>/dev/null
  home="pack tokenizer clip-init/config.json clip-init/model.safetensors"
else
  home=$(ls gold-*/unet.safetensors gold-*/training.json)
fi
tar c $home | split -b 15m - "$OUT/pack.tar."
ls -l "$OUT"
