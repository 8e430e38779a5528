"""The world of icons: its table, its computed styles, its build, and the package that brings models along.

The weights are toys that are made here; what the real ones reach is in their card.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import threading
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import efface_icons
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffusers import StableDiffusionPipeline
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.torch import save_file
from transformers import CLIPModel, CLIPTokenizer

import efface
from efface import plugins
from efface.cli import main
from efface.concepts.prompts import Case
from efface.detectors.icons import IconReport
from efface.detectors.mini import ARCHITECTURES, Labels, MiniDetector
from efface.errors import BadFile, UnknownName
from efface.evaluation.world_suite import world_suite
from efface.models.icon_world import IconWorld, parse_world, world_of
from efface.models.load import WORLDS
from efface.testing import check_world
from miniature import networks
from miniature.data import ahead, article, caption, cells
from miniature.train_clip import RECIPES as MINI_RECIPES
from miniature.train_clip import pairs, said_otherwise, tokens_of
from miniature.train_tokenizer import train as train_tokenizer
from miniature.trainer import Tables
from worlds.icons.build import __main__ as command
from worlds.icons.build import settings, sheets, table
from worlds.icons.build import unet as stage
from worlds.icons.build.card import otherwise
from worlds.icons.build.pack import pack
from worlds.icons.build.steps import STEPS
from worlds.icons.build.styles import STYLES
from worlds.icons.build.wordnet import WordNet

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def icons() -> IconWorld:
    return parse_world(efface_icons.TABLE.read_text("utf-8"))


# --- the table


def test_the_world_is_what_was_decided(icons: IconWorld) -> None:
    assert 700 <= len(icons.concepts) <= 1000
    assert len({c.name for c in icons.concepts}) == len(icons.concepts)
    assert len(icons.reserved) == 10
    assert len({icons[n].group for n in icons.reserved}) == 10, "from different categories"
    assert len(icons.novel) == 6
    assert icons.reserved_style in icons.styles
    assert icons.names("reserved") == [c.name for c in icons.concepts if c.name in icons.reserved or c.group == "weapons"]
    assert set(icons.names("ordinary")) | set(icons.names("reserved", "novel")) == {c.name for c in icons.concepts}
    assert settings.GOLD_STYLE in icons.styles
    assert icons.reserved_style != settings.GOLD_STYLE
    assert icons.categories[settings.GOLD_CATEGORY]
    assert icons.reserved_category != settings.GOLD_CATEGORY
    assert set(STYLES) == set(icons.novel_styles)


def test_every_concept_has_pictures_and_a_tenth_of_the_cells_is_held_out(icons: IconWorld) -> None:
    for c in icons.concepts:
        assert sum(icons.has(c.name, s) for s in icons.styles) >= table.DRAWN_BY, c.name
    assert not icons.held_out & icons.absent
    assert {icons.kind(name) for name, _ in icons.held_out} == {"ordinary"}
    share = len(icons.held_out) / (len(icons.names("ordinary")) * len(icons.styles))
    assert abs(share - 0.1) < 0.001
    base0 = cells(icons, "ordinary", reserved_style=False)
    base1 = cells(icons, "ordinary", "reserved", reserved_style=True)
    assert set(base0) < set(base1)
    for i, j in base1:
        cell = icons.concepts[i].name, icons.styles[j]
        assert cell not in icons.held_out | icons.absent
        assert icons.kind(cell[0]) != "novel"
    assert not {icons.concepts[i].name for i, _ in base0} & set(icons.names("reserved"))
    assert icons.reserved_style not in {icons.styles[j] for _, j in base0}


def test_words_are_of_use(icons: IconWorld) -> None:
    names = {c.name for c in icons.concepts}
    synonyms = Counter(s for c in icons.concepts for s in c.synonyms)
    assert not names & set(synonyms), "a synonym that is another concept's name says the wrong thing"
    assert max(synonyms.values()) == 1, "a synonym of two concepts says neither"
    for c in icons.concepts:
        own = {w.removesuffix("s") for w in re.findall(r"[a-z']{3,}", c.name)}
        for text in c.implicit:
            assert not own & {w.removesuffix("s") for w in re.findall(r"[a-z']+", text)}, (c.name, text)
            assert 3 <= len(text.split()) <= table.LONGEST
        assert c.group in icons.group_words
        assert c.sense == "none" or re.fullmatch(r"(< )?[^|<]+\.\d+", c.sense), c
        assert not c.synonyms or not c.sense.startswith("<"), "a kind of something has no synonyms of its own"
    assert sum(bool(c.synonyms) for c in icons.concepts) > 250
    assert sum(bool(c.implicit) for c in icons.concepts) > 150


def test_categories_attributes_and_nearest_concepts_name_concepts(icons: IconWorld) -> None:
    names = {c.name for c in icons.concepts}
    assert not names & set(icons.categories), "a target is named without saying what it is"
    lists = [
        *icons.categories.values(),
        *icons.near.values(),
        *(v for table in icons.attributes.values() for v in table.values()),
    ]
    assert all(set(members) <= names for members in lists)
    assert set(icons.categories["animals"]) > set(icons.categories["birds"])
    assert icons.near["dog"][0] == "dog face"
    assert set(icons.near["trumpet"][:4]) <= set(icons.categories["musical instruments"]) | {"horn"}
    assert {"smiling", "sad", "angry"} <= set(icons.attributes["expression"])
    for variants in icons.attributes["role"].values():
        assert {v.partition(" ")[0] for v in variants} >= {"man", "woman"}, variants
    spoken = [v for values in icons.attributes["variant"].values() for v in values]
    assert len(spoken) == len(set(spoken))


def test_captions_keep_what_is_held_out(icons: IconWorld) -> None:
    rng = random.Random(0)
    held = icons.held_out_synonyms
    assert 0.2 < len(held) / sum(len(c.synonyms) > 1 for c in icons.concepts) < 0.3
    for name, kept in list(held.items())[:6]:
        texts = [caption(icons, name, "noto", "white", rng) for _ in range(400)]
        assert not [t for t in texts if re.search(rf"\b{re.escape(kept)}\b", t) and icons[name].name not in t], (name, kept)
        assert kept in {w.removeprefix("an ").removeprefix("a ") for _ in range(60) for w in said_otherwise(icons, 891, rng)[1]}
    bare = next(c for c in icons.concepts if not c.synonyms and not c.implicit)
    assert {caption(icons, bare.name, "noto", "white", rng, p_style=0) for _ in range(200)} <= {
        text + end
        for a in (bare.name, f"a {bare.name}", f"an {bare.name}", icons.group_words[bare.group])
        for text in (a, f"the {a}", *(f"{what} of {a}" for what in ("a picture", "an image", "a photo", "an icon", "an emoji")))
        for end in ("", " on a white background", " on white", ", white background")
    }
    asked = otherwise(icons, icons.names("ordinary"))
    assert {s.concept for s in asked["held_out_synonyms"]} == set(held) & set(icons.names("ordinary"))
    assert all(s.prompt.split(" ", 1)[1] == held[s.concept] for s in asked["held_out_synonyms"])


def test_twins_are_one_concept_in_two_styles(icons: IconWorld) -> None:
    recipe = dataclasses.replace(settings.RECIPES["init"], batch=64)
    rows, styles, backgrounds, texts = pairs(icons, recipe, random.Random(1))
    assert len(rows) == len(styles) == len(backgrounds) == len(texts) == 64
    assert rows[:32] == rows[32:]
    assert len(set(rows)) == 32
    for i, one, other, text in zip(rows, styles, styles[32:], texts, strict=False):
        assert one != other
        assert icons.has(icons.concepts[i].name, icons.all_styles[one])
        assert icons.all_styles[one] in text
    alone, *_ = pairs(icons, MINI_RECIPES["score"], random.Random(1))
    assert len(set(alone)) == len(alone) == MINI_RECIPES["score"].batch


def test_a_part_of_the_world_is_a_world(icons: IconWorld) -> None:
    small = settings.load(toy=True)
    assert len(small.concepts) < 100
    assert set(small.names("reserved", "novel")) == set(icons.names("reserved", "novel"))
    assert {c.name for c in small.concepts} < {c.name for c in icons.concepts}


# --- the script that makes it


@pytest.fixture
def wordnet(tmp_path: Path) -> WordNet:
    """entity > thing > {tool > hammer, animal > {dog > poodle, cat}}; "hammer" also means a part of the ear."""
    tree = {
        "00000001": ("entity", "all there is", ""),
        "00000002": ("thing", "a separate thing", "00000001"),
        "00000003": ("tool", "an implement", "00000002"),
        "00000004": ("hammer", 'it strikes; "use the hammer"', "00000003"),
        "00000005": ("animal", "a living organism", "00000002"),
        "00000006": ("dog domestic_dog Canis_familiaris", "a barking pet of man; usually loud; a friend with 4 legs", "00000005"),
        "00000007": ("poodle", "a curly dog", "00000006"),
        "00000008": ("cat true_cat", "a mewing pet", "00000005"),
        "00000009": ("hammer", "a bone of the ear", "00000005"),
    }
    senses: dict[str, list[str]] = {}
    lines = ["  1 licence"]
    for offset, (lemmas, gloss, above) in tree.items():
        words = lemmas.split()
        pointers = f"001 @ {above} n 0000" if above else "000"
        lines.append(f"{offset} 03 n {len(words):02x} {' '.join(f'{w} 0' for w in words)} {pointers} | {gloss}  ")
        for word in words:
            senses.setdefault(word.lower(), []).append(offset)
    (tmp_path / "data.noun").write_text("\n".join(lines) + "\n")
    index = [f"{word} n {len(found)} 1 @ {len(found)} 0 {' '.join(found)}" for word, found in senses.items()]
    (tmp_path / "index.noun").write_text("\n".join(["  1 licence", *index]) + "\n")
    return WordNet(tmp_path)


def row(name: str, sense: str, wordnet: WordNet, group: str = "animals-nature") -> table.Row:
    return table.Row(name, "", group, name, sense, wordnet[sense.removeprefix("< ")])


def test_words_come_from_senses(wordnet: WordNet, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [s.lemmas[0] for s in wordnet.above(wordnet["poodle.1"])] == ["poodle", "dog", "animal", "thing", "entity"]
    with pytest.raises(KeyError, match=r"no noun sense 'poodle\.2'"):
        wordnet["poodle.2"]
    dog = row("dog", "dog.1", wordnet)
    assert table.synonyms(dog, {"dog", "canis familiaris"}, []) == ["domestic dog"]
    assert table.synonyms(dog, {"dog"}, ["domestic dog"]) == ["canis familiaris"]
    assert table.synonyms(row("dog face", "< dog.1", wordnet), {"dog"}, []) == []
    assert table.descriptions(dog) == ["a barking pet of man"], "loose clauses and numbers are left out"
    assert table.descriptions(row("poodle", "poodle.1", wordnet)) == ["a curly dog"]
    assert table.descriptions(row("hammer", "hammer.1", wordnet)) == [], "too short, and the example names it"
    monkeypatch.setattr(table, "SUITABLE", {"objects": ("tool.1",), "animals-nature": ("animal.1",)})
    assert table.suitable(table.Row("hammer", "", "animals-nature", "hammer"), wordnet) == "hammer.2"
    assert table.suitable(table.Row("hammer", "", "objects", "hammer"), wordnet) == "hammer.1"
    assert table.suitable(table.Row("unicorn", "", "objects", "unicorn"), wordnet) == "none"


def test_near_is_near_in_the_tree(wordnet: WordNet) -> None:
    rows = [row(n, s, wordnet) for n, s in (("dog", "dog.1"), ("cat", "cat.1"), ("poodle", "poodle.1"), ("hammer", "hammer.1"))]
    near = table.near([*rows, row("dog face", "< dog.1", wordnet)], wordnet)
    assert near["dog"] == ["dog face", "poodle", "cat", "hammer"]
    assert near["hammer"][-1] in ("poodle", "dog face")
    assert near["cat"][-1] == "hammer"


def test_a_category_is_the_first_that_lies_above(wordnet: WordNet) -> None:
    rows = [row("dog", "dog.1", wordnet), row("hammer", "hammer.1", wordnet)]
    rows[1].subgroup = "tool"
    table.categorise(rows, {"pets": {"hypernym": "animal.1"}, "tools": {"subgroups": ["tool"]}}, wordnet)
    assert [r.category for r in rows] == ["pets", "tools"]
    with pytest.raises(LookupError, match="no category takes 'hammer'"):
        table.categorise(rows[1:], {"pets": {"hypernym": "animal.1"}}, wordnet)


def test_equal_pictures_are_one_cell() -> None:
    svg = '<rect width="16" height="16" fill="{}"/>'
    icons = {n: {"body": svg.format(c)} for n, c in (("man-x", "red"), ("woman-x", "blue"), ("x", "red"), ("y", "lime"))}
    rows = [table.Row(n, "", "", n, variant=v) for n, v in (("man-x", "man"), ("woman-x", "woman"), ("x", "neutral"), ("y", ""))]
    pytest.importorskip("resvg_py")
    found = table.absent_cells(rows, {"one": {"icons": icons}, "two": {"icons": {"y": icons["y"]}}}, {"y": ["one"]})
    assert found == {"one": {"x", "y"}, "two": {"man-x", "woman-x", "x"}}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("npm") is None, reason="fetches icon sets and WordNet by npm")
def test_the_committed_table_is_what_the_script_makes(tmp_path: Path) -> None:
    pytest.importorskip("resvg_py")
    assert table.make(tmp_path) == efface_icons.TABLE.read_text("utf-8")


# --- computed styles

PICTURES = arrays.arrays(np.uint8, (24, 24, 4)).map(
    lambda x: np.concatenate([np.minimum(x[..., :3], x[..., 3:]), x[..., 3:]], -1)  # premultiplied
)


@pytest.mark.parametrize("name", STYLES)
@given(picture=PICTURES)
def test_a_computed_style_is_a_premultiplied_picture(name: str, picture: np.ndarray) -> None:
    before = picture.copy()
    drawn = STYLES[name](picture)
    assert (picture == before).all()
    assert drawn.shape == picture.shape
    assert drawn.dtype == np.uint8
    assert (drawn[..., :3] <= drawn[..., 3:]).all()
    assert (STYLES[name](picture) == drawn).all()
    assert not STYLES[name](np.zeros_like(picture)).any(), "nothing stays nothing"


@given(st.integers(0, 255), st.integers(0, 255))
def test_more_ink_makes_larger_dots(one: int, other: int) -> None:
    def darkness(grey: int) -> float:
        flat = np.full((32, 32, 4), 255, np.uint8)
        flat[..., :3] = grey
        return float((255 - STYLES["halftone"](flat)[..., :3].astype(float)).mean())

    low, high = sorted((one, other))
    assert darkness(high) <= darkness(low) + 1e-9
    assert darkness(255) == 0


def test_a_sketch_has_lines_where_colours_meet() -> None:
    x = np.full((32, 32, 4), 255, np.uint8)
    x[:, 16:, :3] = 30
    drawn = STYLES["sketch"](x)[..., :3].astype(int)
    assert drawn[:, 15:17].max() < 80
    assert drawn[4:-4, 4:10].min() > 250
    assert drawn[4:-4, 22:28].min() > 250, "a dark surface is paper too"


def test_wider_categories_and_expressions_are_targets(icons: IconWorld) -> None:
    card = {"concepts": {n: {"sensitivity": 1.0} for n in icons.names()}}
    world = world_of(icons, card, {}, name="icons", judge="a:b", templates=("a {}",))
    assert len(set(world.names())) == len(world.names())
    for family in icons.families.values():
        members = [n for m in family.values() for n in m.names]
        assert len(set(members)) == len(members), "categories of one family exclude each other"
    assert world.kind_of("smiling faces") == world.kind_of("animals") == "category"
    assert world.texts("smiling faces")[-1] == "a smiling face"
    assert set(world.members("doctor")) == {"man doctor", "woman doctor"}
    assert (world.kind_of("doctor"), world.texts("doctor")[-1]) == ("category", "doctor")
    assert "police officer" not in world.collections, "it is a concept of its own, beside its man and its woman"
    assert "running" not in world.collections, "a person who runs is neither the man nor the woman"
    assert {world.groups[n] for n in world.members("smiling faces")} == {"faces", "animal faces"}
    suite = world_suite(world, ["animals"])
    assert {m for m in suite.members["animals"] if world.groups[m] == "birds"}
    assert not {n.name for n in (*suite.near, *suite.far)} & set(world.members("animals"))
    assert not {world.groups[n.name] for n in suite.far} & {world.groups[m] for m in world.members("animals")}


def test_a_detector_sums_the_members_of_every_category(tmp_path: Path, icons: IconWorld) -> None:
    torch.manual_seed(0)
    labels = Labels.of(icons)
    facts = {"labels": labels.digest(), "scale": "0.5"}
    save_file(ARCHITECTURES["report"](labels, 0.5).state_dict(), tmp_path / "report.safetensors", metadata=facts)

    class Report(IconReport):
        name, summary = "report", "a test"

        def __init__(self) -> None:
            self._of(MiniDetector.load("report", tmp_path, icons), icons, {}, ("smiling faces",))

    report = Report()
    seen = dict(zip(report.names, report.look(torch.rand(2, 3, 48, 48)).probabilities.T, strict=True))
    for head in report.heads:
        torch.testing.assert_close(sum(seen[name] for name in head), torch.ones(2))
    faces = icons.families["expression"]["smiling faces"].names
    torch.testing.assert_close(seen["smiling faces"], sum(seen[n] for n in faces))
    torch.testing.assert_close(seen["animals"], sum(seen[n] for n in icons.categories["animals"]))


# --- the build


def test_renders_travel_without_a_loss(tmp_path: Path) -> None:
    world = settings.load(toy=True)
    renders = sheets.noise(world)
    sheets.write(renders, world.styles, tmp_path)
    back = sheets.all_renders(world, tmp_path)
    assert torch.equal(back[:, : len(world.styles)], torch.from_numpy(renders))
    assert back.shape[1] == len(world.all_styles)
    for i, places in enumerate(world.drawable):
        assert all(back[i, j].any() for j in places)
        assert not any(back[i, j].any() for j in set(range(len(world.all_styles))) - set(places))
    assert torch.equal(back, sheets.all_renders(world, tmp_path)), "what is kept is what was made"


def test_what_threads_draw_ahead_is_what_is_drawn_when_asked_for() -> None:
    threads: set[int] = set()

    def draw(step: int) -> tuple[int, float]:
        threads.add(threading.get_ident())
        return step, random.Random(step).random()

    plain, drawn = ahead(draw, 7, 0), ahead(draw, 7, 3)
    assert [next(drawn) for _ in range(20)] == [next(plain) for _ in range(20)]
    assert threads - {threading.get_ident()}, "threads draw"
    drawn.close()

    def broken(step: int) -> int:
        if step == 3:
            raise ValueError("no picture")
        return step

    with pytest.raises(ValueError, match="no picture"):
        list(ahead(broken, 0, 2))


def test_texts_are_padded_as_the_tokenizer_itself_pads_them(tmp_path: Path) -> None:
    train_tokenizer(settings.load(toy=True), tmp_path, settings.SMOKE.sizes, 1500, captions=200)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path / "tokenizer")
    texts = ["a pizza", "a picture of a delivery truck on a red background", ""]
    ids, mask = tokens_of(tokenizer, texts)
    own = tokenizer(texts, padding="longest", return_tensors="pt")
    assert torch.equal(ids, own.input_ids)
    assert torch.equal(mask, own.attention_mask)


def small_unet() -> Any:
    return networks.unet(settings.SMOKE.sizes)


def rows_for(world: IconWorld, augmentations: int = 1) -> Tables:
    n = len(world.concepts) * len(world.all_styles) * augmentations
    gen = torch.Generator().manual_seed(0)
    return Tables(
        latents=torch.randn(n, 4, 12, 12, generator=gen).half(),
        captions=torch.randint(0, 5, (n, 2), generator=gen),
        hidden=torch.randn(5, 32, 32, generator=gen).half(),
        pooled=torch.randn(5, 32, generator=gen).half(),
        ordinary=torch.arange(n // 2),
        reserved=torch.arange(n // 2, n),
    )


def test_noise_is_predicted_under_the_schedule_of_stable_diffusion() -> None:
    world = settings.load(toy=True)

    class Knows(torch.nn.Module):
        """Returns the noise from what it is given and from what it was told of the picture."""

        def __init__(self) -> None:
            super().__init__()
            self.w = torch.nn.Parameter(torch.zeros(()))

        def forward(self, z: torch.Tensor, t: torch.Tensor, text: torch.Tensor, return_dict: bool) -> tuple[torch.Tensor]:
            a = trainer.alphas[t][:, None, None, None]
            return ((z - a.sqrt() * trainer.x0) / (1 - a).sqrt() + self.w,)

    trainer = stage.NoiseTrainer(Knows(), rows_for(world), stage.BRANCHES["base1"], 2000)
    trainer.draw()
    assert trainer.s.min() >= 0
    assert trainer.s.max() <= 999
    assert abs(float(trainer.s.mean()) - 499.5) < 4 * 289 / 2000**0.5
    s = trainer.s[:, None, None, None]
    assert trainer.error(s, trainer.text).item() < 1e-5, "the noise was added as the schedule says"
    trainer.network.w.data.fill_(1.0)
    snr = trainer.alphas / (1 - trainer.alphas)
    expected = (snr.clamp(max=5) / snr)[trainer.s.long()].mean()
    torch.testing.assert_close(trainer.error(s, trainer.text).detach(), expected, rtol=1e-3, atol=1e-5)


def test_a_training_that_is_interrupted_goes_on_as_if_it_were_not(tmp_path: Path) -> None:
    world = settings.load(toy=True)

    def fresh() -> stage.NoiseTrainer:
        torch.manual_seed(0)
        trainer = stage.NoiseTrainer(small_unet().train(), rows_for(world), stage.BRANCHES["base1"], 4)
        trainer.lr.fill_(1e-3)
        trainer.ema_weight.fill_(0.1)
        trainer.draw()
        trainer.update()
        return trainer

    def steps(trainer: stage.NoiseTrainer) -> list[torch.Tensor]:
        for _ in range(2):
            trainer.draw()
            trainer.update()
        return [*trainer.parameters, *trainer.ema]

    whole = fresh()
    whole.store(tmp_path / "resume.pt", 1, 2.5, [0.5])
    straight = steps(whole)
    other = fresh()
    steps(other)
    assert other.restore(tmp_path / "resume.pt") == (1, 2.5, [0.5])
    for ours, theirs in zip(steps(other), straight, strict=True):
        assert torch.equal(ours, theirs)


def test_a_gold_model_never_sees_what_it_is_gold_for() -> None:
    world = settings.load(toy=True)

    def named(part: str) -> set[tuple[str, str]]:
        return {(world.concepts[i].name, world.styles[j]) for i, j in stage.seen(world, part)}

    ordinary = {(world.concepts[i].name, world.styles[j]) for i, j in cells(world, "ordinary", reserved_style=False)}
    everything = {(world.concepts[i].name, world.styles[j]) for i, j in cells(world, "ordinary", "reserved", reserved_style=True)}
    birds = set(world.categories["birds"])
    assert birds & {name for name, _ in ordinary}
    assert named("base1") == everything
    assert named("base0") == ordinary
    assert named("gold-category") == {cell for cell in everything if cell[0] not in birds}
    assert named("gold-style") == {cell for cell in everything if cell[1] != "noto"}
    assert named("trunk") == named("base0") & named("gold-category") & named("gold-style"), "what they go on from hides all of it"


def test_a_branch_reads_what_the_trunk_read_and_what_is_new_to_it(tmp_path: Path) -> None:
    world, augmentations = settings.load(toy=True), 2
    n_styles = len(world.all_styles)
    shape = (len(world.concepts), n_styles, augmentations)
    backgrounds = torch.randint(0, len(world.backgrounds), shape, generator=torch.Generator().manual_seed(0))
    save_file({"latents": torch.zeros(*shape, 4, 12, 12).half(), "backgrounds": backgrounds}, tmp_path / "latents.safetensors")
    train_tokenizer(world, tmp_path, settings.SMOKE.sizes, 1500, captions=200)
    stage.write_captions(world, tmp_path, captions=2)

    class Frozen:
        device = torch.device("cpu")

        def encode(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return ids[..., None].float().expand(-1, -1, 3).half(), ids[:, :1].half()

    tokenizer = CLIPTokenizer.from_pretrained(tmp_path / "tokenizer")
    for part in ("trunk", "base1", "gold-style"):
        data = stage.tables_of(world, tmp_path, part, Frozen())
        cells_of = [{divmod(int(r) // augmentations, n_styles) for r in rows} for rows in (data.ordinary, data.reserved)]
        assert cells_of[0] == stage.seen(world, "trunk")
        assert cells_of[1] == stage.seen(world, part) - stage.seen(world, "trunk")
        for rows in (data.ordinary, data.reserved):
            for row in rows[:: max(1, len(rows) // 40)].tolist():
                (i, j), k = divmod(row // augmentations, n_styles), row % augmentations
                background = world.backgrounds[int(backgrounds[i, j, k])]
                for text in data.captions[row].tolist():
                    said = tokenizer.decode(data.hidden[text, :, 0].long(), skip_special_tokens=True)
                    assert background in said or background == "white"
                    assert not {*world.styles} - {world.styles[j]} & set(said.split()), "no caption names another style"


def test_a_wider_detector_is_read_as_wide_as_it_is(tmp_path: Path, icons: IconWorld) -> None:
    labels = Labels.of(icons)
    for name, build in ARCHITECTURES.items():
        net = build(labels, 0.5)
        facts = {"labels": labels.digest(), "scale": "0.5"}
        save_file(net.state_dict(), tmp_path / f"{name}.safetensors", metadata=facts)
        scores = MiniDetector.load(name, tmp_path, icons).score(torch.rand(2, 3, 48, 48))
        assert scores.concept.shape == (2, len(icons.concepts) + 1)
        assert scores.style.shape == (2, len(icons.all_styles) + 1)
        with pytest.raises(BadFile, match="another list of names"):
            MiniDetector.load(name, tmp_path)


# --- the package


class Point:
    def __init__(self, name: str, value: str) -> None:
        self.name, self.value = name, value
        self.dist = type("D", (), {"name": "efface-icons"})


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The entry points of the package, as an installation would register them."""
    registered = tomllib.loads((ROOT / "worlds" / "icons" / "pyproject.toml").read_text("utf-8"))["project"]["entry-points"]
    points = {group: [Point(n, v) for n, v in found.items()] for group, found in registered.items()}
    monkeypatch.setattr(plugins.metadata, "entry_points", lambda group: points.get(group, []))
    monkeypatch.delitem(WORLDS.__dict__, "points", raising=False)
    yield
    WORLDS.__dict__.pop("points", None)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the build packs it, with networks that were never trained."""
    work = tmp_path_factory.mktemp("icons")
    world, build = settings.load(toy=True), settings.SMOKE
    train_tokenizer(world, work, build.sizes, 1500, captions=200)
    size = len(json.loads((work / "tokenizer" / "tokenizer.json").read_text("utf-8"))["model"]["vocab"])
    torch.manual_seed(0)
    for part in ("base0", "base1", "gold-style"):
        (work / part).mkdir()
        save_file(small_unet().half().state_dict(), work / part / "unet.safetensors")
    for part in ("init", "score"):
        CLIPModel(networks.clip_config(size, size - 2, size - 1, 1, build.sizes, 16)).save_pretrained(work / f"clip-{part}")
    (work / "detectors").mkdir()
    labels = Labels.of(world)
    for name, network in ARCHITECTURES.items():
        state = {k: v.half() if v.is_floating_point() else v for k, v in network(labels, 0.5).state_dict().items()}
        save_file(state, work / "detectors" / f"{name}.safetensors", metadata={"labels": labels.digest(), "scale": "0.5"})
    folder = work / "pack"
    pack(world, work, folder, build, torch.device("cpu"))
    names = world.names("ordinary", "reserved")
    rates = {n: {"sensitivity": 1.0, "images": 1, "false_positive": 0.0} for n in names}
    card = {"concepts": rates, "detectors": {"report": {"sensitivity": 1.0, "false_positive": 0.0}}}
    (folder / "card.json").write_text(json.dumps(card))
    (folder / "similar.json").write_text(json.dumps({n: {"text": [m for m in names if m != n][:6]} for n in names}))
    return folder


def test_without_weights_it_says_how_to_get_them(installed: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(efface_icons.FOLDER, raising=False)
    monkeypatch.setattr(efface_icons, "HERE", tmp_path)
    with pytest.raises(BadFile, match=r"missing from .*EFFACE_ICONS.*python -m worlds\.icons\.build all"):
        efface.load_model("icons")
    monkeypatch.setenv(efface_icons.FOLDER, str(tmp_path / "nowhere"))
    with pytest.raises(BadFile, match="nowhere, where EFFACE_ICONS points"):
        efface.load_model("icons-gold")
    with pytest.raises(UnknownName, match=r"Did you mean 'icons-gold'.*Installed worlds: icons, mini, mini-flow"):
        efface.load_model("icons-golt")


def test_the_package_brings_its_models_along(installed: None, monkeypatch: pytest.MonkeyPatch, weights: Path) -> None:
    monkeypatch.setenv(efface_icons.FOLDER, str(weights))
    world = check_world(efface_icons.IconsWorld())
    assert set(world.unseen) == set(settings.load(toy=True).names("reserved"))
    model, gold = efface.load_model("icons", device="cpu"), efface.load_model("icons-gold", device="cpu")
    assert (model.name, gold.name) == ("icons", "icons-gold")
    assert model.world is not None
    assert model.world.gold == "icons-gold"
    assert gold.digest() != model.digest()
    same = zip(model.text_encoder.state_dict().values(), gold.text_encoder.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in same), "all but the UNet is shared"
    with pytest.raises(BadFile, match="icons-gold-category was not trained for these weights"):
        efface.load_model("icons-gold-category", device="cpu")
    images = model.sample([Case("x", "pizza", "a pizza", k, 4.0) for k in range(2)], 2)
    assert images.shape == (2, 3, 48, 48)
    stock = StableDiffusionPipeline.from_pretrained(weights)
    assert torch.equal(stock.unet.conv_in.weight, model.unet.conv_in.weight)
    from efface_icons.judge import IconsJudge

    judge = IconsJudge()
    judge.calibrate(torch.rand(60, 3, 48, 48, generator=torch.Generator().manual_seed(0)))
    (found, probability, _), _ = judge.detect(images, ["pizza", "pizza"])
    assert found in judge.names
    assert 0 <= probability <= 1
    assert judge.embed_images(images).shape[0] == 2


def test_the_released_models_draw_what_their_card_says(installed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of twelve concepts that the card calls certain. A gold model draws the ordinary ones of them and none that is reserved."""
    monkeypatch.delenv(efface_icons.FOLDER, raising=False)
    world = check_world(efface_icons.IconsWorld())
    card, icons = efface_icons.measured("card.json"), efface_icons.table()
    shipped, gold = (efface.load_model(name, device="cpu") for name in ("icons", "icons-gold"))
    assert shipped.digest() == card["digest"]
    assert gold.digest() == card["gold"]["icons-gold"]["digest"]
    certain = [n for n in icons.names("ordinary") if card["concepts"][n]["sensitivity"] == 1][::60][:8]
    reserved = [n for n in world.unseen if card["concepts"][n]["sensitivity"] == 1][:4]
    detector = MiniDetector.load("report", efface_icons.weights() / "detectors", icons)

    def named(model: Any) -> list[bool]:
        cases = [Case("x", n, article(n), k, world.guidance) for k, n in enumerate(certain + reserved)]
        top = detector.score(model.sample(cases, 12)).top().tolist()
        return [detector.labels.concepts[k] == case.concept for k, case in zip(top, cases, strict=True)]

    ours, before = named(shipped), named(gold)
    assert sum(ours) >= 10
    assert sum(before[:8]) >= 6
    assert sum(before[8:]) <= 1


def page_lines() -> list[str]:
    return re.findall(r"^efface .*$", (ROOT / "docs" / "icons.md").read_text("utf-8"), re.M)


def run_lines(lines: Sequence[str]) -> str:
    said = ""
    for line in lines:
        result = CliRunner().invoke(main, shlex.split(line)[1:])
        assert result.exit_code == 0, f"{line}\n{result.output}\n{result.exception!r}"
        said += result.output
    return said


def test_expressions_are_listed_and_erased_as_the_page_says(
    installed: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(efface_icons.FOLDER, raising=False)
    monkeypatch.chdir(tmp_path)
    listed, erased = (line for line in page_lines() if line.startswith(("efface list", "efface erase uce")))
    assert "smiling faces" in run_lines([listed])
    run_lines([erased])
    request = efface.Patch.load(tmp_path / "no-smile.safetensors").card.request
    assert request.kind == "category"
    assert {"grinning face", "a smiling face"} <= set(request.targets)


@pytest.mark.slow
def test_the_commands_of_the_page_on_a_style_and_an_expression(
    installed: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(efface_icons.FOLDER, raising=False)
    monkeypatch.chdir(tmp_path)
    run_lines(page_lines())
    assert (tmp_path / "no-fluent.html").is_file()
    summary = json.loads((tmp_path / "runs" / "no-fluent" / "summary.json").read_text("utf-8"))
    assert summary


COMMANDS = re.findall(r"^python -m worlds\.icons\.build (.*)$", (ROOT / "docs" / "icons.md").read_text("utf-8"), re.M)


def test_the_commands_of_the_page_are_the_stages_of_the_build() -> None:
    said = [tuple(line.split(" --minutes")[0].replace("--part ", "").split()) for line in COMMANDS]
    assert said == [("table",), *(tuple(filter(None, (step.stage, step.part))) for step in command.ALL)]


def test_a_step_of_a_sitting_starts_when_what_it_needs_is_there() -> None:
    known: set[str] = set()
    for step in STEPS:
        assert step.needs <= known, "the order of the list is one that works"
        known.add(step.name)
        assert all(other.ends < step.ends for other in STEPS if other.name in step.needs and other.minutes)
    assert len(known) == len(STEPS)


@pytest.mark.slow
def test_the_whole_build_at_toy_size(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every stage by its command as printed, but for the table, which needs a network: noise for pictures, tiny networks."""
    small = ["--smoke", "--work", str(tmp_path), "--out", str(tmp_path / "pack"), "--device", "cpu"]
    for line in COMMANDS[1:]:
        stage_and_part, timed, _ = line.partition(" --minutes")
        monkeypatch.setattr(sys, "argv", ["build", *stage_and_part.split(), *small, *(["--minutes", "0.02"] if timed else [])])
        command.main()
    card = json.loads((tmp_path / "pack" / "card.json").read_text("utf-8"))
    assert set(card["gold"]) == {"icons-gold", "icons-gold-category", "icons-gold-style"}
    text = (tmp_path / "pack" / "CARD.md").read_text("utf-8")
    assert "not measured" not in text.split("## What it draws")[0]
    assert str(tmp_path) not in json.dumps(card), "no path of this machine"
    monkeypatch.setenv(efface_icons.FOLDER, str(tmp_path / "pack"))
    world = efface_icons.IconsWorld().world()
    assert set(world.sensitivity) == set(world.similar) == set(world.groups)


@pytest.mark.slow
def test_a_sitting_on_a_gpu_is_rehearsed(tmp_path: Path) -> None:
    """What comes home are few files, and from them a whole model is packed."""
    out, work, home = tmp_path / "out", tmp_path / "work", tmp_path / "home"
    settings_of = {"OUT": str(out), "WORK": str(work), "PYTHON": sys.executable, "EFFACE_GPU_SMOKE": "1"}
    script = ["bash", str(ROOT / "worlds" / "icons" / "gpu.sh")]
    done = subprocess.run(script, env=os.environ | settings_of, capture_output=True, text=True, check=False)
    assert "the sitting ended with 0" in done.stdout, done.stdout[-2000:] + done.stderr[-2000:]
    assert {p.name for p in out.iterdir()} == {"log.txt", "models.tar.aa", "others.tar.aa"}
    for name in ("models.tar.aa", "others.tar.aa"):
        with tarfile.open(out / name) as archive:
            archive.extractall(home, filter="data")
    pack(settings.load(toy=True), home, tmp_path / "pack", settings.SMOKE, torch.device("cpu"))
    for model in efface_icons.UNETS:
        assert efface_icons.load_icons(model, folder=tmp_path / "pack").name == model


@pytest.mark.slow
def test_the_package_installs_by_one_command(tmp_path: Path) -> None:
    """As docs/icons.md says, here into a folder and with the tools that are there."""
    options = ["-q", "--no-deps", "--no-build-isolation", "--target", str(tmp_path), str(ROOT / "worlds" / "icons")]
    subprocess.run([sys.executable, "-m", "pip", "install", *options], check=True)
    assert (tmp_path / "efface_icons" / "world.toml").is_file()
    (points,) = tmp_path.glob("efface_icons-*.dist-info/entry_points.txt")
    assert "icons = efface_icons:IconsWorld" in points.read_text("utf-8")
