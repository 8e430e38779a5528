"""Runs as files, ours and LECO's, and lists of names as other scripts write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from efface.cli import main
from efface.errors import BadFile, BadOption
from efface.patches import Patch
from efface.testing import same
from efface.verbs.config import RunConfig, read_config, split_names, write_config

PROMPT = {"target": "cat", "positive": "cat", "unconditional": "", "neutral": "", "action": "erase", "guidance_scale": 1.5}
LECO: dict[str, Any] = {
    "prompts_file": "prompts.yaml",
    "pretrained_model": {"name_or_path": "tiny", "v2": False},
    "network": {"type": "lierla", "rank": 4, "alpha": 1.0, "training_method": "xattn"},
    "train": {"precision": "bfloat16", "noise_scheduler": "ddim", "iterations": 2, "lr": "1e-4", "optimizer": "AdamW"},
    "save": {"name": "x", "path": "./output"},
}


def leco(folder: Path, prompts: Any = None, **changes: Any) -> Path:
    (folder / "prompts.yaml").write_text(yaml.safe_dump([{**PROMPT, "resolution": 512}] if prompts is None else prompts))
    (folder / "leco.yaml").write_text(yaml.safe_dump({**LECO, **changes}))
    return folder / "leco.yaml"


def run(*args: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in args])


def test_lecos_yaml_runs_as_esd(tmp_path: Path) -> None:
    """The same bits as ESD with the options that it stands for; LECO's own loss is ESD's where positive is the target."""
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    steps = ("--preset", "paper", "--set", "sampling_steps=3")
    done = run("erase", "--config", leco(tmp_path), *steps, "--out", theirs)
    assert done.exit_code == 0, done.output
    assert "efface export --rank" in done.stderr
    assert "train.optimizer=AdamW is not followed" in done.stderr
    args = ("--target", "cat", "--set", "eta=1.5", "--set", "steps=2", "--set", "lr=1e-4", *steps)
    assert run("erase", "esd", "--model", "tiny", *args, "--out", ours).exit_code == 0
    assert same(Patch.load(ours).deltas, Patch.load(theirs).deltas)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"action": "enhance"}, "efface erases, and nothing else"),
        ({"positive": "dog"}, "the positive prompt of 'cat' makes another loss"),
        ({"unconditional": "a photo", "neutral": "dog"}, "the unconditional prompt"),
        ({"weight": 2.0}, "weight and multiplier"),
        ({"guidance_scale": "much"}, "guidance_scale='much' is no number"),
        ({"taget": "x"}, "'taget', which is none of LECO's"),
    ],
)
def test_what_another_loss_would_be_is_refused_by_name(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(BadOption, match=message):
        read_config(leco(tmp_path, [{**PROMPT, **change}]))


def test_several_prompts_and_other_files(tmp_path: Path) -> None:
    found = read_config(leco(tmp_path, [PROMPT, {**PROMPT, "target": "Gogh, Vincent", "positive": "Gogh, Vincent"}]))
    assert found.targets == ("cat", "Gogh, Vincent"), "a comma is part of a name"
    with pytest.raises(BadOption, match="different guidance_scale"):
        read_config(leco(tmp_path, [PROMPT, {**PROMPT, "target": "dog", "positive": "dog", "guidance_scale": 3}]))
    with pytest.raises(BadOption, match="training_method 'innoxattn'"):
        read_config(leco(tmp_path, network={"training_method": "innoxattn"}))
    path = tmp_path / "x.yaml"
    for text, why in (
        ("job: extension\nconfig: {}", "ai-toolkit"),
        ("[", "cannot read"),
        ("3", "no prompts"),
        ("a: 1", "no prompts"),
    ):
        path.write_text(text)
        with pytest.raises(BadFile, match=why):
            read_config(path)
    path.write_text("target: cat\naction: erase\n")
    assert read_config(path).targets == ("cat",)
    path.write_text("!!python/object/apply:os.system ['touch made']")
    with pytest.raises(BadFile):
        read_config(path)
    assert not Path("made").exists()
    with pytest.raises(BadFile, match="cannot read"):
        read_config(tmp_path / "none.toml")


def test_convert_there_and_back(tmp_path: Path) -> None:
    first = read_config(leco(tmp_path))
    done = run("convert", tmp_path / "leco.yaml", "--out", tmp_path / "run.toml")
    assert done.exit_code == 0, done.output
    ours = read_config(tmp_path / "run.toml")
    assert (ours.method, ours.model, ours.targets, ours.anchor) == ("esd", "tiny", ("cat",), "")
    assert ours.settings == first.settings
    assert run("convert", tmp_path / "run.toml", "--out", tmp_path / "again.yaml").exit_code == 0
    again = read_config(tmp_path / "again.yaml")
    assert (again.targets, again.model) == (first.targets, first.model)
    assert {**again.settings, "seed": 0} == {**first.settings, "seed": 0}
    assert "exists" in run("convert", tmp_path / "run.toml", "--out", tmp_path / "again.yaml").output
    assert "must end in" in run("convert", tmp_path / "run.toml", "--out", tmp_path / "run.json").output


def test_our_file_names_everything_and_the_command_line_wins(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    parts = {"search": "gumbel", "search.tau": 2.0, "steps": 3}
    made = RunConfig("ap", "tiny", ("cat",), "dog", ("bus",), "tiny", parts)
    path.write_text(write_config(made, path))
    assert read_config(path) == made
    out = tmp_path / "p.safetensors"
    done = run("erase", "--config", path, "--target", "house", "--set", "steps=1", "--out", out)
    assert done.exit_code == 0, done.output
    card = Patch.load(out).card
    assert (card.method, card.request.targets, card.request.anchor, card.config["steps"]) == ("ap", ("house",), "dog", 1)
    assert "is a run of ap, not of esd" in run("erase", "esd", "--config", path, "--out", tmp_path / "q.safetensors").output
    path.write_text('[request]\ntarget = "cat"\n')
    with pytest.raises(BadOption, match=r"\[request\] takes"):
        read_config(path)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (RunConfig("uce", targets=("cat",)), "the method 'uce'"),
        (RunConfig("esd", targets=("cat",), preserve=("dog",)), "concepts to preserve"),
        (RunConfig("esd", targets=("cat",), settings={"guidance": 5.0}), "no setting for guidance"),
        (RunConfig("esd", targets=("cat",), settings={"train": "xattn-kv"}), "cannot train 'xattn-kv'"),
    ],
)
def test_what_leco_cannot_say(config: RunConfig, why: str) -> None:
    with pytest.raises(BadOption, match=why):
        write_config(config, "x.yaml")


def test_lists_of_names_only_with_a_flag(tmp_path: Path) -> None:
    assert split_names(("Van Gogh; Monet;", "Klimt"), ";") == ("Van Gogh", "Monet", "Klimt")
    assert split_names(("Van Gogh, Vincent",), None) == ("Van Gogh, Vincent",)
    with pytest.raises(BadOption, match="needs a sign"):
        split_names(("a",), " ")
    out = tmp_path / "p.safetensors"
    done = run("erase", "uce", "--model", "tiny", "--target", "cat; bus", "--preserve", "dog;house", "--split", ";", "--out", out)
    assert done.exit_code == 0, done.output
    assert Patch.load(out).card.request.json() == {"targets": ["cat", "bus"], "anchor": "", "preserve": ["dog", "house"]}
    assert "no target" in run("erase", "uce", "--model", "tiny", "--out", tmp_path / "q.safetensors").output
