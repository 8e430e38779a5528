"""Cards, the Hub, and patches on pipelines: what a receiver does with an erasure."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fake_hub import FakeHub
from huggingface_hub import ModelCard
from test_plugins import DETECTOR

import efface
from efface import verbs
from efface.errors import BadFile, BadOption, UnknownName
from efface.evaluation.profiles import Profile
from efface.patches import Patch
from efface.reporting.model_card import LICENCES, PATCH, md

TOKEN = "hf_aVerySecretTokenThatNobodyMaySee"


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a patch of the tiny model, an evaluation of it and an attack on it."""
    folder = tmp_path_factory.mktemp("measured")
    (folder / "redness.py").write_text(DETECTOR, "utf-8")
    patch = efface.erase("tiny", "uce", targets=["cat"])
    patch.save(folder / "p.safetensors")
    more: dict[str, Any] = {
        **{"near": ["dog"], "far": ["bus"]},
        "profile": Profile("own", 3, 3.0, {"direct": 6, "near": 3, "far": 3}, 0, 3),
        "detector": f"{folder / 'redness.py'}:Redness",
    }
    verbs.evaluate("tiny", patch, out=folder / "evaluation", trivial=False, command="efface evaluate --secret-path", **more)
    attack = efface.registry.build_attack("seed_search")
    verbs.attack("tiny", attack, budget=12, cases=2, patch=patch, out=folder / "attack", **more)
    return folder


def made(measured: Path, out: Path, **more: Any) -> dict[str, Any]:
    patch = Patch.load(measured / "p.safetensors")
    return verbs.card(patch, measured / "evaluation", out=out, attacks=[measured / "attack"], **more)


def test_a_card_says_what_was_measured_and_what_was_not(measured: Path, tmp_path: Path) -> None:
    facts = made(measured, tmp_path / "release", exports=["diffusers", "kohya", "single-file"], model="tiny")
    card = ModelCard.load(tmp_path / "release" / "README.md")
    data = card.data.to_dict()
    assert (data["library_name"], data["pipeline_tag"], data["license"]) == ("diffusers", "text-to-image", "apache-2.0")
    assert {"concept-erasure", "lora", "uce"} <= set(data["tags"])
    assert "base_model" not in data, "the tiny model is no model of the Hub"
    rates = facts["measured"]["evaluation"]["rates"]
    assert set(rates) == {"direct", "near", "far"}
    direct = rates["direct"]
    assert f"({direct['k']}/{direct['n']}" in card.content
    assert {m["type"]: m["value"] for m in data["model-index"][0]["results"][0]["metrics"]}["direct_erased_valid"] == (
        direct["k"] / direct["n"]
    )
    entries = yaml.safe_load((tmp_path / "release" / ".eval_results" / "efface.yaml").read_text())
    assert len(entries) == len([r for r in rates.values() if r["n"]])
    for said in (
        "not a guarantee",
        "## Attacks",
        r"seed\_search",
        "## What was not tested",
        "Nobody searched",
        "before-after.png",
    ):
        assert said in card.content, said
    told = Patch.load(tmp_path / "release" / PATCH)
    assert told.digest() == Patch.load(measured / "p.safetensors").digest()
    assert told.card.measured == json.loads(json.dumps(facts["measured"]))
    for name in (PATCH, "kohya.safetensors", "pytorch_lora_weights.safetensors", "checkpoint.safetensors"):
        found = verbs.verify(tmp_path / "release" / name, "tiny")
        assert found.ok, found
        assert {c.name: c.status for c in found.checks}["numbers"] == "passed"
    texts = [p.read_text() for p in (tmp_path / "release").rglob("*") if p.suffix in (".md", ".json", ".jsonl", ".yaml")]
    assert len(texts) > 5
    assert not [t for t in texts if str(measured) in t or "secret-path" in t], "a path of the publisher's machine was published"


def test_a_card_of_something_else_is_refused_and_nothing_is_left(measured: Path, tmp_path: Path) -> None:
    other = Patch.load(measured / "p.safetensors").scaled(0.5)
    with pytest.raises(BadFile, match="evaluates another patch"):
        verbs.card(other, measured / "evaluation", out=tmp_path / "r")
    with pytest.raises(BadOption, match="give --model"):
        made(measured, tmp_path / "r", exports=["kohya"])
    with pytest.raises(UnknownName, match="Did you mean 'kohya'"):
        made(measured, tmp_path / "r", exports=["kohia"], model="tiny")
    with pytest.raises(BadOption, match="no Hub id"):
        made(measured, tmp_path / "r", base_model="not an id", licence="mit")
    with pytest.raises(BadOption, match="name it with --license"):
        made(measured, tmp_path / "r", base_model="somebody/model")
    with pytest.raises(BadFile, match="give a folder that"):
        verbs.card(Patch.load(measured / "p.safetensors"), measured, out=tmp_path / "r")
    assert not list(tmp_path.iterdir())
    (tmp_path / "r").mkdir()
    with pytest.raises(BadFile, match="is there already"):
        made(measured, tmp_path / "r")


def test_a_card_names_the_rounded_model_that_losses_were_computed_with(measured: Path, tmp_path: Path) -> None:
    patch = Patch.load(measured / "p.safetensors")
    stored = replace(patch, card=replace(patch.card, base={**patch.card.base, "storage": "fp8"}))
    for name, one in {"plain": patch, "stored": stored}.items():
        verbs.card(one, measured / "evaluation", out=tmp_path / name, pictures=False)
        assert ("the frozen side of every loss was that rounded model" in (tmp_path / name / "README.md").read_text()) is (
            name == "stored"
        )


def test_pictures_can_be_left_out_and_names_cannot_inject_markup(measured: Path, tmp_path: Path) -> None:
    made(measured, tmp_path / "r", pictures=False, base_model="somebody/model", licence="openrail++")
    text = (tmp_path / "r" / "README.md").read_text()
    assert "before-after.png" not in text
    assert not (tmp_path / "r" / "before-after.png").exists()
    assert not list((tmp_path / "r").rglob("*.png"))
    assert "base_model: somebody/model" in text
    assert Patch.load(tmp_path / "r" / PATCH).card.base["name"] == "somebody/model"
    assert md("a|b\n<script>`x`[y](z)") == r"a\|b &lt;script&gt;\`x\`\[y\](z)"
    assert "stabilityai/stable-diffusion-xl-base-1.0" in LICENCES


PUSHED = """
import efface
from click.testing import CliRunner
from efface.cli import main
done = CliRunner().invoke(main, ["push", "release", "somebody/no-cat", "--private"])
print(done.output, done.exit_code)
patch = efface.load_patch("somebody/no-cat")
print("digest", patch.digest(), patch.card.request.targets)
try:
    efface.load_patch("somebody/nothing")
except efface.EffaceError as error:
    print("refused", error)
"""
OFFLINE = """
import efface
print("digest", efface.load_patch("somebody/no-cat").digest())
"""


def run(code: str, folder: Path, *args: str, **env: str) -> str:
    shared = {"HF_HOME": str(folder / "hf"), "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "HF_HUB_VERBOSITY": "debug"}
    done = subprocess.run(
        [sys.executable, "-c", code, *args],
        cwd=folder,
        env={**os.environ, **shared, **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert TOKEN not in done.stdout + done.stderr, "the token was printed"
    return done.stdout


@pytest.mark.slow  # what is refused, and loading from files and folders, are below
def test_push_and_load_patch_through_an_endpoint(measured: Path, tmp_path: Path) -> None:
    made(measured, tmp_path / "release", exports=["diffusers"], model="tiny")
    digest = Patch.load(measured / "p.safetensors").digest()
    with FakeHub() as hub:
        said = run(PUSHED, tmp_path, HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="0")
        assert f"digest {digest} ('cat',)" in said, said
        assert "refused" in said
        assert any(TOKEN in sent for _, path, sent in hub.log if "/commit/" in path), "the upload was not authorised"
        on_disk = {p.relative_to(tmp_path / "release").as_posix(): p.read_bytes() for p in files_of(tmp_path / "release")}
        assert hub.files["somebody/no-cat"] == on_disk
    assert f"digest {digest}" in run(OFFLINE, tmp_path, HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="1"), "the cached file was not used"
    with FakeHub(broken=True) as hub:
        said = run(PUSHED.partition("patch =")[0], tmp_path, HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="0")
        assert "somebody/no-cat was not uploaded" in said
        assert said.rstrip().endswith("1"), said


def files_of(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if p.is_file()]


def test_what_is_not_pushed(measured: Path, tmp_path: Path) -> None:
    with pytest.raises(BadOption, match="no repository of the form"):
        verbs.push(tmp_path, "name")
    with pytest.raises(BadFile, match=r"has no efface_patch\.safetensors"):
        verbs.push(tmp_path, "somebody/name")
    made(measured, tmp_path / "r")
    path = tmp_path / "r" / PATCH
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(BadFile, match="was not uploaded, because its file is wrong"):
        verbs.push(tmp_path / "r", "somebody/name")


def test_load_patch_takes_files_and_folders(measured: Path, tmp_path: Path) -> None:
    made(measured, tmp_path / "r")
    for source in (tmp_path / "r", tmp_path / "r" / PATCH, str(measured / "p.safetensors")):
        assert efface.load_patch(source).card.request.targets == ("cat",)
    with pytest.raises(BadOption, match="no revision"):
        efface.load_patch(measured / "p.safetensors", revision="main")
    with pytest.raises(BadFile, match="there is no file"):
        efface.load_patch("nothing.safetensors")


# -- on a pipeline -----------------------------------------------------------------------------------------------------


def bits(pipe: Any) -> dict[str, torch.Tensor]:
    from stock import weights

    return weights(pipe)


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(t, b[n]) for n, t in a.items())


@pytest.mark.parametrize("family", ["sd", "xl"])
def test_a_patch_on_a_pipeline_draws_what_it_draws_in_efface_and_reverts(family: str, tmp_path: Path) -> None:
    from stock import pipe as stock
    from test_export import drawn

    pipe = stock(family)
    base = bits(pipe)
    patch = efface.erase(pipe, efface.UCE(pooled=False), targets=["cat"], anchor="dog")
    patch.save(tmp_path / "p.safetensors")
    plain = drawn(pipe)
    with patch.applied(efface.load_model(pipe)):
        wanted = drawn(pipe)
    on = efface.apply(pipe, tmp_path / "p.safetensors")
    assert torch.equal(drawn(pipe), wanted)
    assert not torch.equal(wanted, plain)
    with pytest.raises(BadOption, match="cat is on this pipeline already"):
        efface.apply(pipe, patch)
    on.revert()
    assert equal(bits(pipe), base)
    on.revert()
    with efface.apply(pipe, patch, scale=0.5) as half:
        assert half.stack.names == ("cat",)
        assert not equal(bits(pipe), base)
    assert equal(bits(pipe), base)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_one_of_a_stack_is_removed_without_a_trace(dtype: str) -> None:
    from stock import pipe as stock

    made = [efface.erase("tiny", efface.UCE(lam=lam), targets=[t]) for lam, t in ((0.5, "cat"), (0.1, "bus"), (0.3, "house"))]
    pipe = stock("sd", dtype=dtype)
    base = bits(pipe)
    with pytest.warns(UserWarning, match=r"of what '\w+' does to its target"):
        on = efface.apply(pipe, efface.stack([*made[:2]]))
    on.add("third", made[2])
    on.remove("bus")
    left = bits(pipe)
    with pytest.raises(UnknownName):
        on.remove("bus")
    on.revert()
    assert equal(bits(pipe), base)
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        alone = efface.apply(pipe, efface.stack({"cat": made[0], "third": made[2]}))
    assert equal(bits(pipe), left), "removing one left a trace of it"
    alone.revert()
    assert equal(bits(pipe), base)


def test_conflicts_are_told() -> None:
    cat = efface.erase("tiny", efface.UCE(), targets=["cat"], preserve=["dog"])
    dog = efface.erase("tiny", efface.UCE(), targets=["dog"])
    bus = efface.erase("tiny", efface.UCE(), targets=["bus"], anchor="dog")
    other = efface.erase("tiny-xl", efface.UCE(), targets=["house"])
    for pair, why in (
        ([cat, dog], "'dog' erases 'dog', which 'cat' preserves"),
        ([dog, bus], "'bus' maps its target to 'dog', which 'dog' erases"),
        ([cat, other], "different base models"),
    ):
        with pytest.raises(BadOption, match=why):
            efface.stack(pair)
    car = efface.erase("tiny", efface.UCE(), targets=["car"], anchor="castle", preserve=["rose"])
    assert efface.patches.stack.Stack.of({"bus": bus, "car": car}).conflicts() == [], "an anchor that nobody erases"
    with pytest.raises(BadOption, match="both erase 'cat'"):
        efface.stack({"a": cat, "b": cat})
    with pytest.raises(BadOption, match="are called 'cat'"):
        efface.stack([cat, cat])
    with pytest.raises(BadOption, match="at least one"):
        efface.stack([])
    with pytest.warns(UserWarning, match="which 'cat' preserves"):
        assert efface.stack([cat, dog], allow_conflicts=True).names == ("cat", "dog")


def test_interference_is_zero_alone_and_counts_nothing() -> None:
    model = efface.load_model("tiny")
    cat = efface.erase(model, efface.UCE(), targets=["cat"])
    before, levels, predict = model.evals.forward, set(), model.predict
    model.predict = lambda z, t, c: levels.update(t.tolist()) or predict(z, t, c)
    assert efface.stack([cat]).interference(model) == {"cat": 0.0}
    assert levels == {500}
    opposite = Patch({n: -d for n, d in cat.deltas.items()}, cat.card)
    found = efface.patches.stack.Stack.of({"a": cat, "b": opposite}).interference(model)
    assert found["a"] == pytest.approx(1.0, abs=1e-3), "the opposite takes all of it away"
    assert model.evals.forward == before


# -- the page ----------------------------------------------------------------------------------------------------------

PAGE = Path(__file__).parents[1] / "docs" / "shipping.md"
WALK = r"""
import os, re, shlex, sys, warnings
from pathlib import Path
from click.testing import CliRunner
from cryptography.hazmat.primitives import serialization as to
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from efface.cli import main

home, elsewhere = Path.cwd(), Path.cwd() / "elsewhere"
elsewhere.mkdir()
for language, block in re.findall(r"```(bash|sh|python)\n(.*?)```", Path(sys.argv[1]).read_text("utf-8"), re.S):
    os.chdir(elsewhere if language == "python" else home)
    if language == "python":
        exec(compile(block, "shipping.md", "exec"), {})
        print("ran", block.splitlines()[0])
        continue
    for line in block.splitlines():
        if line == "ssh-keygen -t ed25519 -f my-key":  # asks for a password; the same key without one
            key = Ed25519PrivateKey.generate()
            Path("my-key").write_bytes(key.private_bytes(to.Encoding.PEM, to.PrivateFormat.OpenSSH, to.NoEncryption()))
            Path("my-key.pub").write_bytes(key.public_key().public_bytes(to.Encoding.OpenSSH, to.PublicFormat.OpenSSH))
            continue
        words = shlex.split(line)
        assert words[0] == "efface", line
        done = CliRunner().invoke(main, words[1:])
        assert done.exit_code == 0, f"{line} {done.output} {done.exception!r}"
        print("ran", line)
"""


@pytest.mark.slow  # draws several hundred images of the miniature; the tests above take the same steps on the tiny model
def test_the_new_users_path(tmp_path: Path) -> None:
    """docs/shipping.md from its first line to its last, against a Hub on localhost; the receiver starts in an empty folder."""
    with FakeHub() as hub:
        said = run(WALK, tmp_path, str(PAGE), HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="0")
        assert "README.md" in hub.files["OWNER/no-engine"]
        assert any(path == "/OWNER/no-engine/resolve/main/efface_patch.safetensors" for _, path, _ in hub.log)
    ran = [line for line in said.splitlines() if line.startswith("ran ")]
    wanted = ("erase", "evaluate", "card", "verify", "push", "sign")
    assert all(any(line.startswith(f"ran efface {verb} ") for line in ran) for verb in wanted), ran
    assert sum(line.startswith("ran import") for line in ran) == PAGE.read_text().count("```python")
