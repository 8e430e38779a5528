"""Whatever is wrong with a file is found, nothing in it runs, and nothing crashes."""

from __future__ import annotations

import json
import os
import pickle
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import efface
from efface import verbs
from efface.cli import main
from efface.concepts.request import EraseRequest
from efface.equations.statistics import wilson
from efface.errors import BadFile, BadOption, EffaceError, MissingExtra
from efface.evaluation.suite import Neighbour, Suite
from efface.methods import UCE
from efface.models.load import load_model
from efface.models.tiny import tiny
from efface.patches import Patch, signature
from efface.patches.export import export
from efface.patches.header import module_norms
from efface.patches.seal import BLANK, KEY, check_seal, seal
from efface.patches.store import FORMAT_VERSION
from efface.patches.verify import Verification, verify

KINDS = ("patch", "diffusers", "kohya", "diff", "single-file")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One file of every kind, and a folder."""
    folder, model = tmp_path_factory.mktemp("files"), load_model("tiny")
    patch = UCE(pooled=False).erase(model, EraseRequest(("cat",), "dog"))
    patch.save(folder / "patch.safetensors")
    for to in KINDS[1:]:
        export(patch, model, folder / f"{to}.safetensors", to)
    export(patch, model, folder / "folder", "folder")
    return {kind: folder / (f"{kind}.safetensors" if kind != "folder" else kind) for kind in (*KINDS, "folder")}


@pytest.fixture
def copy(files: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    def made(kind: str) -> Path:
        path = tmp_path / files[kind].name
        path.write_bytes(files[kind].read_bytes())
        return path

    return made


def failed(found: Verification) -> dict[str, str]:
    return {c.name: c.text for c in found.checks if c.status == "failed"}


def rewritten(path: Path, change: Callable[[dict[str, Any], dict[str, str]], None], *, sealed: bool = True) -> Path:
    """The file as another program might write it: other tensors or another header, and a seal that fits, or none."""
    with safe_open(path, framework="pt") as f:
        header = dict(f.metadata())
    tensors = load_file(path)
    change(tensors, header)
    header = {**header, KEY: BLANK} if sealed else {k: v for k, v in header.items() if k != KEY}
    save_file(tensors, path, metadata=header)
    if sealed:
        seal(path)
    return path


@pytest.mark.parametrize("kind", [*KINDS, "folder"])
def test_what_efface_writes_passes_with_and_without_its_base(kind: str, files: dict[str, Path]) -> None:
    alone = verify(files[kind])
    assert alone.ok, failed(alone)
    assert (alone.kind, {c.name for c in alone.checks if c.status == "skipped"}) == (
        kind,
        {"numbers", "base", "signature"} | ({"content"} if kind == "folder" else set()),
    )
    fits = verify(files[kind], load_model("tiny"))
    assert fits.ok, failed(fits)
    assert {c.name: c.status for c in fits.checks}["base"] == "passed"
    original = Patch.load(files["patch"])
    assert fits.card is not None
    assert fits.card.json()["request"] == original.card.json()["request"]
    assert fits.card.base == original.card.base
    assert fits.card.log == original.card.log
    for other in (tiny(seed=1), load_model("tiny-xl")):
        assert "made for 'tiny'" in failed(verify(files[kind], other))["base"], "before its layers are looked for"


@pytest.mark.parametrize("kind", KINDS)
def test_truncated_scaled_and_incomplete_files(kind: str, copy: Callable[[str], Path]) -> None:
    path = copy(kind)
    whole = path.read_bytes()
    for keep in (0, 4, 9, 300, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:keep])
        assert "file" in failed(verify(path)), keep
    path.write_bytes(whole + b"more")
    assert not verify(path).ok
    path.write_bytes(whole)

    def drop(tensors: dict[str, Any], header: dict[str, str]) -> None:
        layer = next(iter(tensors)).split(".lora")[0].removesuffix(".alpha").removesuffix(".diff")
        for name in [n for n in tensors if n.startswith(layer)]:
            del tensors[name]

    def scale(tensors: dict[str, Any], header: dict[str, str]) -> None:
        name = next(n for n in tensors if n.endswith("alpha" if kind == "kohya" else "weight" if kind != "diff" else "diff"))
        tensors[name] = tensors[name] * 0.5

    def broken(tensors: dict[str, Any], header: dict[str, str]) -> None:
        name = next(n for n in tensors if tensors[n].numel() > 1)
        tensors[name] = tensors[name].clone()
        tensors[name].view(-1)[1] = float("nan")

    def numbered(tensors: dict[str, Any], header: dict[str, str]) -> None:
        name = next(n for n in tensors if tensors[n].numel() > 1)
        tensors[name] = torch.ones_like(tensors[name], dtype=torch.int64)

    for change in (broken, numbered):
        path.write_bytes(whole)
        assert "content" in failed(verify(rewritten(path, change, sealed=True)))
        assert kind == "patch" or "not finite numbers" in failed(verify(path))["content"]

    for change in (drop, scale):
        for sealed in (False, True):
            path.write_bytes(whole)
            found = verify(rewritten(path, change, sealed=sealed))
            if kind == "patch" and sealed:
                # A patch holds exactly what it holds: who makes its seal anew has made another patch, with another digest.
                assert found.ok
                assert found.patch is not None
                assert found.patch.digest() != Patch.load(copy("patch")).digest()
                continue
            assert failed(found), (change, sealed)
            assert sealed or "lost its seal" in failed(found)["seal"]
            if kind != "patch":
                assert ("is missing" if change is drop else "0.5 times as much") in failed(found)["content"]


def test_folders(files: dict[str, Path], tmp_path: Path) -> None:
    import shutil

    def fresh() -> Path:
        shutil.rmtree(tmp_path / "f", ignore_errors=True)
        return Path(shutil.copytree(files["folder"], tmp_path / "f"))

    weights = "unet/diffusion_pytorch_model.safetensors"
    folder = fresh()
    data = bytearray((folder / weights).read_bytes())
    data[-5] ^= 1
    (folder / weights).write_bytes(data)
    assert failed(verify(folder)) == {"seal": f"{weights} was changed."}
    with pytest.raises(BadFile, match="was changed"):
        verbs.import_patch(load_model("tiny"), folder, targets=["cat"])
    folder = fresh()
    (folder / weights).unlink()
    assert "is missing" in failed(verify(folder))["seal"]
    folder = fresh()
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"x")
    assert "was added, and a reader may load it" in failed(verify(folder))["seal"]
    folder = fresh()
    (folder / "README.md").write_text("a page about it")
    assert verify(folder).ok
    card = folder / "efface_card.json"
    card.write_text(card.read_text().replace('"cat"', '"cow"'))
    assert "is not as it was written" in failed(verify(folder))["file"]
    facts = json.loads((files["folder"] / "efface_card.json").read_text())
    for wrong in ({}, [], {"../../outside": "x"}, {"/etc/passwd": "x"}):
        card.write_text(json.dumps({**facts, "efface_files": wrong, KEY: BLANK}))
        seal(card)
        assert not verify(folder).ok
    card.unlink()
    assert "efface did not write it" in failed(verify(folder))["file"]


def test_other_peoples_files_and_pickles(files: dict[str, Path], tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "boom"),)

    for name, data in (("a.safetensors", pickle.dumps(Bomb())), ("b.pt", pickle.dumps(Bomb(), protocol=2))):
        (tmp_path / name).write_bytes(data)
        assert "it is a pickle" in failed(verify(tmp_path / name))["file"]
        with pytest.raises(BadFile):
            verbs.import_patch(load_model("tiny"), tmp_path / name, targets=["cat"])
    assert not (tmp_path / "boom").exists()
    save_file({"x": torch.ones(2)}, tmp_path / "c.safetensors")
    assert "efface did not write it" in failed(verify(tmp_path / "c.safetensors"))["file"]
    with pytest.raises(BadFile, match="there is no"):
        verify(tmp_path / "nothing")


def test_a_card_that_lost_something_or_was_edited(copy: Callable[[str], Path]) -> None:
    def edit(change: Callable[[dict[str, Any]], Any]) -> dict[str, str]:
        def rewrite(tensors: dict[str, Any], header: dict[str, str]) -> None:
            card = json.loads(header["card"])
            change(card)
            header["card"] = json.dumps(card)

        return failed(verify(rewritten(copy("patch"), rewrite)))

    assert edit(lambda c: None) == {}
    assert "base.digest" in edit(lambda c: c["base"].pop("digest"))["card"]
    assert "versions.torch" in edit(lambda c: c["versions"].pop("torch"))["card"]
    assert "no 'method'" in edit(lambda c: c.pop("method"))["card"]
    rate = {"measure": "erased_valid", **wilson(20, 24).json()}
    assert edit(lambda c: c["measured"].update(evaluation={"rates": {"direct": rate}})) == {}
    better = {**rate, "k": 24}
    assert "not that of 24 of 24" in edit(lambda c: c["measured"].update(evaluation={"rates": {"direct": better}}))["numbers"]


def test_patches_of_older_versions_are_read_and_said_to_have_no_seal(copy: Callable[[str], Path]) -> None:
    def older(tensors: dict[str, Any], header: dict[str, str]) -> None:
        header["format_version"] = "1"
        card = json.loads(header["card"])
        del card["measured"]
        header["card"] = json.dumps(card)

    path = rewritten(copy("patch"), older, sealed=False)
    assert FORMAT_VERSION == 2
    assert Patch.load(path).deltas
    found = verify(path)
    assert found.ok
    assert {c.name: c.status for c in found.checks}["seal"] == "skipped"


def test_signatures(files: dict[str, Path], copy: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cryptography.hazmat.primitives import serialization as to
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    def written(name: str, key: Any, form: Any, password: bytes | None = None) -> Path:
        lock = to.BestAvailableEncryption(password) if password else to.NoEncryption()
        (tmp_path / name).write_bytes(key.private_bytes(to.Encoding.PEM, form, lock))
        return tmp_path / name

    mine, theirs = ed25519.Ed25519PrivateKey.generate(), ed25519.Ed25519PrivateKey.generate()
    ssh, pem = written("ssh", mine, to.PrivateFormat.OpenSSH), written("pem", theirs, to.PrivateFormat.PKCS8, b"secret")
    public = tmp_path / "ssh.pub"
    public.write_bytes(mine.public_key().public_bytes(to.Encoding.OpenSSH, to.PublicFormat.OpenSSH))
    path = copy("kohya")
    assert "there is no kohya.safetensors.sig" in failed(verify(path, key=public))["signature"]
    done = CliRunner().invoke(main, ["sign", str(path), "--key", str(ssh), "--json"])
    assert done.exit_code == 0, done.output
    for key in (None, public, json.loads(done.stdout)["public_key"]):
        told = verify(path, key=key)
        assert told.ok
        signed = {c.name: c.text for c in told.checks}["signature"]
        assert signed.endswith("--key says which it has to be." if key is None else "the given key.")
    signature.sign(path, pem, lambda: "secret")
    assert "another key" in failed(verify(path, key=public))["signature"]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert "does not fit the file" in failed(verify(path))["signature"]
    signature.signature_path(path).write_text("{}")
    assert "is no signature of efface" in failed(verify(path))["signature"]
    with pytest.raises(BadFile, match="no private key that can be read"):
        efface.sign(path, pem, lambda: "wrong")
    with pytest.raises(BadFile, match="no ed25519 key"):
        efface.sign(path, written("ec", ec.generate_private_key(ec.SECP256R1()), to.PrivateFormat.PKCS8))
    with pytest.raises(BadFile, match="no file"):
        efface.sign(tmp_path / "none.safetensors", ssh)
    signature.sign(path, ssh)
    assert "neither a file with a public key nor" in failed(verify(path, key="nonsense"))["signature"]
    monkeypatch.setattr(signature, "_library", lambda: (_ for _ in ()).throw(MissingExtra('pip install "efface[sign]"')))
    assert {c.name: c.status for c in verify(path).checks}["signature"] == "skipped"
    with pytest.raises(MissingExtra):
        verify(path, key=public)


def with_rates(patch: Patch, k: int) -> Patch:
    """A patch whose card says that an evaluation found k of 4 direct cases erased; the near concept was there in all 4."""
    facts: dict[str, Any] = {
        "profile": {"name": "own", "steps": 4, "guidance": 3.0, "cases": {"direct": 4}, "damaged": 0, "open_steps": 4},
        "rates": {"direct": {"measure": "erased_valid", **wilson(k, 4).json()}},
        "suite": Suite(("cat",), (Neighbour("dog", "given", "test"),), (), (Neighbour("bus", "given", "test"),), {}, {}).json(),
    }
    return Patch(patch.deltas, replace(patch.card, measured={"evaluation": facts}))


@pytest.mark.parametrize(("k", "found"), [(0, "passed"), (4, "failed")])
def test_numbers_are_measured_again(k: int, found: str, files: dict[str, Path], tmp_path: Path, monkeypatch: Any) -> None:
    """Drawn by the tiny model; a detector that sees the target in every image finds 0 of 4 erased."""
    from test_plugins import DETECTOR

    (tmp_path / "redness.py").write_text(DETECTOR, "utf-8")
    path = tmp_path / "p.safetensors"
    with_rates(Patch.load(files["patch"]), k).save(path)
    args = ["--model", "tiny", "--remeasure", "--detector", f"{tmp_path / 'redness.py'}:Redness", "--json"]
    done = CliRunner().invoke(main, ["verify", str(path), *args])
    assert done.exit_code == (0 if found == "passed" else 1), done.output
    last = json.loads(done.stdout)["checks"][-1]
    assert (last["name"], last["status"]) == ("measured again", found)
    assert "0/4" in last["text"]


def test_what_verify_cannot_do(files: dict[str, Path]) -> None:
    with pytest.raises(BadOption, match="without a model nothing can be measured"):
        verbs.verify(files["patch"], remeasure=True)
    with pytest.raises(BadOption, match="add --remeasure"):
        verbs.verify(files["patch"], "tiny", clip="x")
    found = verbs.verify(files["patch"], "tiny", remeasure=True)
    assert "no evaluation that could be repeated" in failed(found)["measured again"]


def test_the_command_prints_every_check(files: dict[str, Path], copy: Callable[[str], Path]) -> None:
    good = CliRunner().invoke(main, ["verify", str(files["kohya"])])
    assert good.exit_code == 0
    assert good.output.splitlines()[-1] == "No check failed, 3 were skipped."
    path = copy("kohya")
    path.write_bytes(path.read_bytes()[:-1])
    bad = CliRunner().invoke(main, ["verify", str(path)])
    assert bad.exit_code == 1
    assert "1 check FAILED: do not use" in bad.output


def test_norms_are_those_of_the_layers() -> None:
    rng = torch.Generator().manual_seed(0)
    up, down = torch.randn(5, 2, generator=rng), torch.randn(2, 3, generator=rng)
    lora = {"a.lora_up.weight": up, "a.lora_down.weight": down, "a.alpha": torch.tensor(3.0)}
    found = module_norms({**lora, "b.diff": torch.full((2, 2), 2.0), "b.diff_b": torch.full((2,), 1.0)})
    assert found == pytest.approx({"a": float((1.5 * up @ down).norm()), "b": 18**0.5})
    with pytest.raises(BadFile, match="one factor"):
        module_norms({"a.lora_up.weight": up})


# -- mutations ---------------------------------------------------------------------------------------------------------

VALUES: list[Any] = [None, True, 0, -1, 1e308, float("nan"), "", "x" * 50, [], [[]], {}, {"a": {"b": []}}, 10**30, "\ud800", "\0"]


def raw_bytes(rng: random.Random, data: bytes) -> bytes:
    """The file with changed, lost, added or moved bytes; never the same file."""
    made, header = bytearray(data), min(8 + int.from_bytes(data[:8], "little"), len(data))
    kind = rng.randrange(6)
    at = rng.randrange(header) if rng.random() < 0.6 else rng.randrange(len(made))
    if kind <= 1:
        made[at] ^= 1 << rng.randrange(8)
    elif kind == 2:
        del made[at:]
    elif kind == 3:
        made[at:at] = rng.randbytes(rng.randint(1, 9))
    elif kind == 4:
        made[:8] = rng.choice([rng.randrange(2**16), rng.randrange(2**63), header, len(made)]).to_bytes(8, "little")
    else:
        del made[at : at + rng.randint(1, 9)]
    return bytes(made)


def hostile(rng: random.Random, data: bytes) -> bytes:
    """A header that is well-formed JSON and wrong: entries replaced at any depth of the card, offsets, names, sizes."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    facts = header.setdefault("__metadata__", {})
    name = next((n for n in ("card", "efface_card", "lora_adapter_metadata") if n in facts), "")
    kind = rng.randrange(5)
    if kind <= 1 and name:
        card = json.loads(facts[name])
        spot, keys = card, []
        while isinstance(spot, dict) and spot and (not keys or rng.random() < 0.6):
            keys.append(rng.choice(list(spot)))
            spot, parent = spot[keys[-1]], spot
        parent[keys[-1]] = rng.choice(VALUES)
        facts[name] = json.dumps(card)
    elif kind == 2 and facts:
        facts[rng.choice(list(facts))] = rng.choice(["", "[" * 100_000, "{}", "[]", "null", '{"a":NaN}', "9" * 5000])
    elif kind == 3:
        entry = header[rng.choice([k for k in header if k != "__metadata__"])]
        key = rng.choice(["dtype", "shape", "data_offsets"])
        entry[key] = rng.choice(["F64", "BF16", "X", [0], [2**40, 2**40], [-1, 4], [], None])
    else:
        names = [k for k in header if k != "__metadata__"]
        header[rng.choice(["", "delta.", "\ud83d", "a" * 3000, "lora_unet_x.alpha", *names])] = header.pop(rng.choice(names))
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


@pytest.mark.parametrize("count", [200, pytest.param(10_000, marks=pytest.mark.slow)])
def test_mutations(count: int, files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No mutation crashes ``verify`` or ``import``. None of changed bytes passes or is imported. A header that was forged
    together with its seal may pass only where what it changed is a fact that nothing in the file contradicts."""
    rng, model, outcomes = random.Random(18), load_model("tiny"), Counter[str]()
    for i in range(count):
        kind = KINDS[i % len(KINDS)]
        data, forged = files[kind].read_bytes(), i % 3 == 2
        path = tmp_path / f"m.{'safetensors' if rng.random() < 0.9 else 'pt'}"
        mutated = hostile(rng, data) if forged else raw_bytes(rng, data)
        if mutated == data:
            continue
        path.write_bytes(mutated)
        if forged:
            with _suppressed():
                _reseal(path)
        found = verify(path)
        outcomes[f"{'forged' if forged else 'changed'}: verify {'passed' if found.ok else 'failed'}"] += 1
        assert forged or not found.ok, (i, kind)
        if kind == "patch":
            read: Callable[[], object] = lambda: Patch.load(path)  # noqa: B023, E731  # called at once
        else:
            read = lambda: verbs.import_patch(model, path, targets=["cat"])  # noqa: B023, E731
        try:
            read()
            outcomes[f"{'forged' if forged else 'changed'}: import read it"] += 1
            assert forged, (i, kind)
        except EffaceError:
            outcomes[f"{'forged' if forged else 'changed'}: import refused it"] += 1
        path.unlink()
    with capsys.disabled():
        print(f"\n{count} mutations: {dict(sorted(outcomes.items()))}")
    assert outcomes["changed: verify failed"] == outcomes["changed: import refused it"] > count / 2
    assert outcomes["forged: verify failed"] > 0


class _Code:
    """Unpickled, it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def theirs(folder: Path, files: dict[str, Path], boom: Path) -> list[Path]:
    """Files that efface did not write: LoRAs, a checkpoint, a state dict as a pickle, and one with code in it."""
    lora = load_file(files["kohya"])
    save_file(lora, folder / "kohya.safetensors", metadata={"ss_network_module": "networks.lora"})
    facts = {"unet.r": 1, "unet.lora_alpha": 1, "unet.target_modules": ["to_k", "to_v"]}
    save_file(load_file(files["diffusers"]), folder / "d.safetensors", metadata={"lora_adapter_metadata": json.dumps(facts)})
    whole = load_file(files["single-file"])
    save_file(whole, folder / "whole.safetensors")
    torch.save(lora, folder / "slider.pt")
    torch.save({"state_dict": {k: t for k, t in whole.items() if "attn2" in k}, "global_step": 3}, folder / "part.ckpt")
    torch.save({**lora, "x": _Code(boom)}, folder / "code.pt")
    (folder / "plain.bin").write_bytes(pickle.dumps({"x": _Code(boom), **{f"y{i}": i for i in range(40)}}, protocol=2))
    return sorted(folder.iterdir())


@pytest.mark.parametrize("count", [105, pytest.param(10_500, marks=pytest.mark.slow)])
def test_mutations_of_other_peoples_files(count: int, files: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    """They have no seal, so that a changed number cannot be seen. But nothing crashes, ``verify`` passes none, no code runs, and
    what is imported is finite and differs from the base model."""
    (tmp_path / "theirs").mkdir()
    boom, rng, model, outcomes = tmp_path / "boom", random.Random(9), load_model("tiny"), Counter[str]()
    sources = theirs(tmp_path / "theirs", files, boom)
    for i in range(count):
        source = sources[i % len(sources)]
        data = source.read_bytes()
        path = tmp_path / f"m{source.suffix}"
        if source.suffix == ".safetensors" and rng.random() < 0.6:
            path.write_bytes(hostile(rng, data))
        else:
            path.write_bytes(raw_bytes(rng, data) if rng.random() < 0.95 else data)
        assert not verify(path).ok, (i, source.name)
        try:
            found = verbs.import_patch(model, path, targets=["cat"])
            assert found.deltas
            assert all(bool(torch.isfinite(d).all()) for d in found.deltas.values()), (i, source.name)
            outcomes["import read it"] += 1
            assert source.name not in ("code.pt", "plain.bin") or path.read_bytes() != data, "code was read"
        except EffaceError:
            outcomes["import refused it"] += 1
        assert not boom.exists(), (i, source.name)
        path.unlink()
    with capsys.disabled():
        print(f"\n{count} mutations of other people's files: {dict(sorted(outcomes.items()))}, code ran 0 times")
    assert outcomes["import refused it"] > count / 2
    assert outcomes["import read it"] > 0, "where nothing is read, nothing was tried"


def _suppressed() -> Any:
    import contextlib

    return contextlib.suppress(BadFile)


def _reseal(path: Path) -> None:
    """A seal that fits what is in the file now, as an attacker would make it."""
    data = path.read_bytes()
    old = next((data[i : i + 64] for i in [data.find(b'"efface_sha256": "') + 18] if i > 17), None)
    if old is not None:
        path.write_bytes(data.replace(old, BLANK.encode(), 1))
        seal(path)


def test_a_seal_covers_every_byte_and_stands_once(files: dict[str, Path], tmp_path: Path) -> None:
    data = files["kohya"].read_bytes()
    path = tmp_path / "f.safetensors"
    for at in [*range(0, 600), *range(600, len(data), 997), len(data) - 1]:
        changed = bytearray(data)
        changed[at] ^= 0x20
        path.write_bytes(changed)
        try:
            assert check_seal(path) == "", at  # the seal's own name was changed: no seal, which verify refuses
        except BadFile:
            continue
        assert not verify(path).ok, at
    save_file({"x": torch.ones(1)}, path, metadata={"a": f'"{KEY}": "{BLANK}"', KEY: BLANK})
    assert len(seal(path)) == 64
    assert check_seal(path)
    save_file({"x": torch.ones(1)}, path)
    with pytest.raises(BadFile, match="no place"):
        seal(path)
