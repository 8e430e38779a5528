"""Published prompt lists: how they are read, what is removed from them, and what is measured on them. All contents are benign."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_published import random_alexnet

import efface
from efface.cli import main
from efface.concepts.disguise import LEET, folded
from efface.concepts.minors import MINORS, language_of, minor
from efface.concepts.prompts import WITHHELD, Case
from efface.concepts.request import EraseRequest
from efface.concepts.sensitive import refuse_minors, sensitive
from efface.errors import BadFile, BadOption, BadRequest, UnknownName
from efface.evaluation.profiles import Profile
from efface.evaluation.suite import Suite, suite_from
from efface.io.images import BLURRED_SIDE, blurred, to_pixels
from efface.lists import load_prompts
from efface.lists.known import LISTS
from efface.lists.readable import unreadable
from efface.lists.schemas import SCHEMAS
from efface.verbs.subject import suite_for

PROMPTS = {  # one harmless prompt with a minor in each language of the multilingual attack, and one without
    "English": ("a child on a swing", "a swing in a park"),
    "Spanish": ("una niña en el parque", "una casa en el parque"),
    "French": ("un garçon dans le parc", "un homme dans le parc"),
    "German": ("ein Mädchen im Park", "eine Frau im Park"),
    "Italian": ("un bambino nel parco", "un uomo nel parco"),
    "Portuguese": ("uma criança no parque", "uma mulher no parque"),
    "Chinese": ("公园里的小孩", "公园里的女人"),
    "Japanese": ("公園の子供", "公園の女性"),
    "Arabic": ("طفل في الحديقة", "امرأة في الحديقة"),
}
HIDDEN = (  # one word, disguised: signs, case, letters of other scripts, digits, spaces, a mask, doubled letters
    *(
        "CHILD",
        "child!!!",
        "ch1ld",
        "ch!ld",
        "сhild",
        "ｃｈｉｌｄ",
        "ⓒⓗⓘⓛⓓ",
        "c h i l d",
        "c-h-i-l-d",
        "c.h.i.l.d",
        "chi ld",
        "chi.ld",
    ),
    *("ch*ld", "chiiiild", "chi\u200bld", "chi\u00adld", "c\u0301hi\u0302ld", "🅒🅗🅘🅛🅓", "ᴄʜɪʟᴅ", "mychild99", "ch-ild"),
)
SPARED = (
    *(
        "a photo of a church",
        "kidney stones",
        "1980s photo, 35mm, f/1.8",
        "a 60 year old man",
        "ten birds on a wire",
        "8k, artstation",
    ),
    *(
        "a kind man of few words",
        "la dame en rouge",
        "ein Haus am See",
        "a spider on its web!",
        "(masterpiece:1.2), 50mm lens",
        "scissors",
    ),
)


@pytest.mark.parametrize("language", PROMPTS)
def test_minors_are_found_in_every_language(language: str) -> None:
    found, spared = PROMPTS[language]
    word = minor(found)
    assert word is not None
    assert minor(spared) is None
    assert minor(f"«{found.upper()}», 4k!") is not None
    assert language in MINORS


@pytest.mark.parametrize("text", HIDDEN)
def test_a_disguised_word_is_found(text: str) -> None:
    assert minor(f"photo of a {text} by the sea") is not None
    assert minor(f"{' ' * 9000}{text}") is not None, "a tokenizer passes over any number of spaces"


@pytest.mark.parametrize(
    "text",
    [
        *("a 16 year old", "16yo", "sixteen-year-old", "aged 15", "under 18", "under the age of 18", "15 años", "14 ans", "12岁"),
        *("17歳", "11 anni", "9 Jahre alt", "sweet sixteen", "age: 13", "very young"),
    ],
)
def test_an_age_below_18_is_found(text: str) -> None:
    assert minor(text) is not None


@pytest.mark.parametrize("text", [*SPARED, "18 years old", "a 25 yo woman", "aged 40", "116 years old"])
def test_ordinary_prompts_stay(text: str) -> None:
    assert minor(text) is None, minor(text)


@given(st.sampled_from(sorted({w for words in MINORS.values() for w in words.split() if "*" not in w and len(w) > 3})), st.data())
def test_no_disguise_of_any_word_is_missed(word: str, data: Any) -> None:
    """Case, an invisible character anywhere, signs around the word, and spaces between all letters hide no word of the table."""
    at = data.draw(st.integers(0, len(word)))
    text = data.draw(
        st.sampled_from([word.upper(), f"{word[:at]}\u200b{word[at:]}", f"--{word}--", " ".join(word), f"({word}:1.3)"])
    )
    assert minor(text) is not None


def test_folding_is_idempotent_and_leet_is_one_letter_each() -> None:
    for text in (*HIDDEN, *SPARED, *(p for pair in PROMPTS.values() for p in pair)):
        assert folded(folded(text)) == folded(text)
    assert all(len(str(v)) == 1 for v in LEET.values())


def test_what_is_sensitive_never_speaks_of_a_minor() -> None:
    assert sensitive(["nudity"])
    assert not sensitive(["church", "spider", "orange", "Sussex spaniel"])
    refuse_minors(["a child on a swing", "nudity"], "here")  # apart from each other, neither is forbidden
    with pytest.raises(BadRequest, match="no option allows it"):
        refuse_minors(["nude teenager"], "here")
    with pytest.raises(BadRequest, match="the request"):
        EraseRequest(("naked child",))
    assert EraseRequest(("nudity",)).targets == ("nudity",)
    with pytest.raises(BadRequest, match="the prompts"):
        efface.sample("tiny", ["nude schoolgirl"], steps=1)
    suite = Suite(("nudity",), (), (), (), {"nudity": ("young girl",)}, {})
    with pytest.raises(BadRequest, match="speaks of a minor"):
        suite.cases(Profile("x", 2, 4.0, {"direct": 2, "synonym": 2}))
    cases = replace(suite, synonyms={}).cases(Profile("x", 2, 4.0, {"direct": 2}))
    assert all(c.sensitive and c.shown == WITHHELD for c in cases)
    told = replace(suite, targets=("fog",), synonyms={}, hidden=True)
    assert told.cases(Profile("x", 2, 4.0, {"direct": 1}))[0].sensitive
    assert suite_from(told.json()).sensitive
    assert [c.id for c in cases] == [replace(c, sensitive=False).id for c in cases]


def test_a_blurred_picture_keeps_no_detail() -> None:
    """What lies inside a square of the blurred picture's few pixels is gone: pictures that differ in it alone become one."""
    rng = np.random.default_rng(0)
    side = 64 // BLURRED_SIDE
    squares = rng.integers(256, size=(BLURRED_SIDE, 12, side * side, 3)).astype(np.uint8)

    def joined(found: Any) -> Any:
        return found.reshape(BLURRED_SIDE, 12, side, side, 3).swapaxes(1, 2).reshape(64, 96, 3)

    first, second = joined(squares), joined(rng.permuted(squares, axis=2))
    assert not np.array_equal(first, second)
    assert blurred(first).shape == first.shape
    # Pillow rounds to 8 bits between rows and columns, and once more at the end.
    assert np.abs(blurred(first).astype(int) - blurred(second)).max() <= 2


def write(folder: Path, text: str, name: str = "list.csv") -> str:
    (folder / name).write_bytes(text.encode("utf-8"))
    return f"file:{folder / name}"


TABLES = {
    "i2p": ",prompt,categories,hard,sd_seed,sd_guidance_scale,lexica_url\n0,a red house,x,0,5,7,https://example.org/kids\n",
    "case": "case_number,prompt,evaluation_seed,evaluation_guidance,class\n0,a red house,5,7.0,house\n",
    "mma": "target_prompt,adv_prompt,clean_prompt\na red house,hoose xkcd qrt wvu tzz,a house\n",
    "pairs": "sensitive prompt,normal prompt\na red house,a house\n",
    "ring-a-bell": "prompt,case_number,evaluation_seed,prompt1\na red house,0,5,a house\n",
    "p4d": ",prompt,evaluation_seed,evaluation_guidance,case_number,safe_model,safe_level\n0,a red house,5,7,0,m,l\n",
    "multilingual": "Original,Spanish,French,German,Italian,Portuguese,Index\na house,una casa,une maison,Haus,casa,casa,0\n",
    "pinpoint": "noun,similarity\nhouse,0.5\n",
    "coco": "case_number,source,prompt,evaluation_seed\n0,coco,a red house,5\n",
    "captions": "image_id,text\n0,a red house\n",
    "mace": ",type,prompt,evaluation_seed\n0,erased,a red house,5\n",
    "timed": "old,new,positive1,gt1,negative1,gn1\na house,a red house,a big house,a big red house,a tree,a red tree\n",
}


I2P_COLUMNS = "prompt,categories,hard,inappropriate_percentage,nudity_percentage,q16_percentage,prompt_toxicity,lexica_url"
I2P_CELLS = 'a red house,"x, y",0,50,0,0,0.1,https://example.org'
OTHER_COLUMNS = [  # schema, header, a row of "a red house" with the seed 5, and the guidance and the concept that it must give
    ("i2p", f"Unnamed: 0,{I2P_COLUMNS},evaluation_seed,evaluation_guidance", f"0,{I2P_CELLS},5,7.5", 7.5, None),
    ("i2p", f",{I2P_COLUMNS},sd_seed,sd_guidance_scale,sd_image_width,sd_model", f"0,{I2P_CELLS},5,7,512,m", 7.0, None),
    ("i2p", "case_number,prompt,categories,evaluation_seed,sd_guidance_scale", "0,a red house,x,5,9", 9.0, None),
    ("coco", "image_id,source,prompt,evaluation_seed,coco_id", "1,coco,a red house,5,9", None, None),
    ("coco", "case_number,source,prompt,evaluation_seed,width,height", "1,coco,a red house,5,640,480", None, None),
    ("mace", ",type,artist,prompt,evaluation_seed", "0,1,Claude Monet,a red house,5", None, None),
    ("mace", "Unnamed: 0,type,artist,prompt,evaluation_seed", "0,0,Claude Monet,a red house,5", None, None),
    ("mace", ",type,prompt,evaluation_seed", "0,others,a red house,5", None, None),
    ("p4d", ",prompt,sd_seed,sd_guidance_scale,case_number,safe_model,safe_level", "0,a red house,5,7,0,m,l", 7.0, None),
    ("case", "case_number,prompt,sd_seed,label_idx,type", "0,a red house,5,3,x", None, None),
    ("case", "Prompt,Evaluation_Seed", "a red house,5", None, None),
    *(
        ("case", f"case_number,prompt,evaluation_seed,{name}", "0,a red house,5,house", None, "house")
        for name in ("class", "classes", "artist", "profession", "concept", "label_str")
    ),
]


@pytest.mark.parametrize(
    ("schema", "header", "cells", "guidance", "concept"),
    OTHER_COLUMNS,
    ids=[f"{row[0]}-{i}" for i, row in enumerate(OTHER_COLUMNS)],
)
def test_columns_that_a_schema_has_under_other_names_are_read(
    schema: str, header: str, cells: str, guidance: float | None, concept: str | None, tmp_path: Path
) -> None:
    for text in (f"{header}\n{cells}\n", f"\ufeff{header}\r\n{cells}\r\n"):
        found = load_prompts(write(tmp_path, text))
        (first,) = found.prompts
        assert (found.schema, first.text) == (schema, "a red house")
        assert (first.seed, first.seed_source, first.guidance, first.concept) == (5, "list", guidance, concept)
        assert (found.derived, found.captions, found.by_name) == (0, schema == "coco", schema == "mace")


def test_an_empty_seed_in_a_table_with_seeds_is_derived_and_flagged(tmp_path: Path) -> None:
    table = "case_number,prompt,evaluation_seed,class\n0,a red house,5,house\n1,a tall tree,,tree\n2,a blue boat, ,boat\n"
    found = load_prompts(write(tmp_path, table))
    assert [p.seed_source for p in found.prompts] == ["list", "derived", "derived"]
    assert (found.prompts[0].seed, found.derived) == (5, 2)
    assert "2 have a seed that was derived from their row" in found.told
    assert 0 <= found.prompts[1].seed < 2**31
    assert found.prompts[1].seed != found.prompts[2].seed
    again = load_prompts(write(tmp_path, "case_number,prompt,evaluation_seed,class\n7,a tall tree,,tree\n"))
    assert again.prompts[0].seed == found.prompts[1].seed, "the number of the row has no part in it"


@pytest.mark.parametrize("schema", SCHEMAS)
@pytest.mark.parametrize("form", ["plain", "bom and cr lf"])
def test_every_schema_is_recognised(schema: str, form: str, tmp_path: Path) -> None:
    text = TABLES[schema] if form == "plain" else "\ufeff" + TABLES[schema].replace("\n", "\r\n")
    found = load_prompts(write(tmp_path, text))
    assert (found.schema, found.minors, found.unreadable) == (schema, {}, 0)
    first = found.prompts[0]
    assert "\ufeff" not in first.text
    assert "\r" not in first.text
    seeds = {"i2p", "case", "ring-a-bell", "p4d", "coco", "mace"}
    assert (first.seed, first.seed_source) == ((5, "list") if schema in seeds else (first.seed, "derived"))
    assert first.guidance == (7.0 if schema in ("i2p", "case", "p4d") else None)
    clean = {"mma": "a red house", "pairs": "a house", "ring-a-bell": "a house", "timed": "a red house"}
    assert first.clean == clean.get(schema)
    assert first.concept == {"case": "house", "pinpoint": "house", "timed": "a house"}.get(schema)
    assert load_prompts(write(tmp_path, text), schema) == found


def test_a_file_without_header_is_read_line_by_line(tmp_path: Path) -> None:
    """Named .csv, but text: a reader of tables would lose the first prompt and split the others."""
    found = load_prompts(write(tmp_path, 'a house, red, by the sea\na tree "old", tall\n\na house, red, by the sea\n'))
    assert [p.text for p in found.prompts] == ["a house, red, by the sea", 'a tree "old", tall']
    assert (found.schema, found.read, found.duplicates, found.derived) == ("lines", 3, 1, 2)
    again = load_prompts(write(tmp_path, "a tree, tall\na house, red, by the sea\n"))
    assert again.prompts[1].seed == found.prompts[0].seed, "the seed depends on the row alone"


@pytest.mark.parametrize("end", ["\r\n", "\r", "\n"], ids=["cr lf", "cr", "lf"])
def test_a_file_without_header_loses_its_byte_order_mark_and_carriage_returns(end: str, tmp_path: Path) -> None:
    lines = ("a house, red, by the sea", 'a tree "old", tall', "", "a boat, blue")
    found = load_prompts(write(tmp_path, "\ufeff" + "".join(line + end for line in lines)))
    assert [p.text for p in found.prompts] == [line for line in lines if line]
    assert (found.schema, found.read, found.derived) == ("lines", 3, 3)
    plain = load_prompts(write(tmp_path, "\n".join(lines), "plain.csv"))
    assert [(p.text, p.seed) for p in found.prompts] == [(p.text, p.seed) for p in plain.prompts], "nor do they change a seed"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prompt,notes\na,b\n", "'notes' is in no schema"),
        ("alpha,beta\na,b\n", "'alpha', 'beta'"),
        ("prompt,prompt\na,b\n", "stands there twice"),
        ("prompt,evaluation_seed,sd_seed\na,1,2\n", "only one can count"),
        ("prompt,evaluation_seed\na,b\n", "'b' is no number"),
        ("prompt,evaluation_seed\na,-3\n", "no whole number"),
        ("prompt,evaluation_seed\na house, red,3\n", "3 cells under 2 columns"),
        ("adv_prompt\nx y z\n", "without the column target_prompt"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git lfs pull"),
        ("prompt\n\n", "nothing of"),
        ("a\0b\n", "zero byte"),
    ],
)
def test_a_file_that_is_no_list_is_refused_with_the_reason(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(BadFile, match=said):
        load_prompts(write(tmp_path, text))


def test_a_wrong_source_is_refused_with_the_remedy(tmp_path: Path) -> None:
    for source, error, said in (
        ("list.csv", BadOption, "give file:PATH"),
        ("file:nowhere.csv", BadFile, "there is no file"),
        ("repo:nowhere#x", BadFile, "clone the repository"),
        (f"repo:{tmp_path}", BadOption, "names no list"),
        (f"repo:{tmp_path}#diffusion-mu-attack/tenhc", UnknownName, "diffusion-mu-attack/tench"),
        (f"repo:{tmp_path}#diffusion-mu-attack/tench", BadFile, "github.com/OPTML-Group/Diffusion-MU-Attack"),
        (f"repo:{tmp_path}#../secret.csv", BadFile, "outside"),
        ("hub:nobody/nothing", BadOption, "with a commit"),
        ("file:x", BadFile, "there is no file"),
    ):
        with pytest.raises(error, match=said):
            load_prompts(source)
    (tmp_path / "latin.csv").write_bytes("prompt\nniñ".encode("latin-1"))
    with pytest.raises(BadFile, match="save it as UTF-8"):
        load_prompts(f"file:{tmp_path / 'latin.csv'}")
    with pytest.raises(BadOption, match="no schema 'tables'"):
        load_prompts(write(tmp_path, "prompt\na\n"), "tables")
    with pytest.raises(BadFile, match="not the columns of the schema mma"):
        load_prompts(write(tmp_path, "prompt\na\n"), "mma")


def test_rows_with_minors_go_whatever_column_and_language(tmp_path: Path) -> None:
    rows = [f'"{found}","{spared}"' for found, spared in PROMPTS.values()] + [f'"{s}","{f}"' for f, s in PROMPTS.values()]
    kept = '"a red house","a house"'
    found = load_prompts(write(tmp_path, "\n".join(["sensitive prompt,normal prompt", *rows, kept])))
    assert (found.read, len(found), sum(found.minors.values())) == (19, 1, 18)
    assert "18 were left out because they speak of minors" in found.told
    assert found.json()["kept"] == 1
    assert not any(w in json.dumps(found.json(), ensure_ascii=False) for w in ("swing", "parc", "公園"))
    clean = "target_prompt,adv_prompt\na girl by the sea,hoose xkcd qrt wvu\na red house,hoose xkcd qrt wvu tzz\n"
    assert [p.clean for p in load_prompts(write(tmp_path, clean)).prompts] == ["a red house"]
    everyone = "prompt\na boy\n"
    with pytest.raises(BadFile, match="nothing of"):
        load_prompts(write(tmp_path, everyone))


CYRILLIC = str.maketrans("aceiopx", "асеіорх")


def disguised(word: str, how: str) -> str:
    """The word with its first letter that has a Cyrillic look-alike replaced, with all of them replaced, or with a space that has
    no width in its middle."""
    if how == "zero width":
        return f"{word[: len(word) // 2]}\u200b{word[len(word) // 2 :]}"
    swapped = word.translate(CYRILLIC)
    first = next(i for i, (a, b) in enumerate(zip(word, swapped, strict=True)) if a != b)
    return swapped if how == "homoglyphs" else word[:first] + swapped[first] + word[first + 1 :]


@pytest.mark.parametrize("how", ["one homoglyph", "homoglyphs", "zero width"])
@pytest.mark.parametrize(
    ("language", "word"),
    [
        *(("English", "child"), ("Spanish", "niña"), ("French", "garçon"), ("German", "Mädchen"), ("Italian", "bambino")),
        *(("Portuguese", "criança"), ("Dutch", "meisje"), ("Polish", "dziecko")),
    ],
)
def test_a_disguised_minor_takes_its_row_out_of_the_list(language: str, word: str, how: str, tmp_path: Path) -> None:
    """Of a list of prompts, and of optimised ones by the prompt that they were made for. The same disguise of another word in a
    target prompt takes no row out, so the word counts and not the disguise."""
    hidden, harmless = disguised(word, how), disguised("castle", how)
    assert hidden != word
    prompts = f"prompt,evaluation_seed\nphoto with {hidden} by the sea,1\na red house,2\n{hidden},3\n"
    found = load_prompts(write(tmp_path, prompts))
    assert [p.text for p in found.prompts] == ["a red house"]
    assert (found.read, sum(found.minors.values())) == (3, 2), language
    targets = (
        f"target_prompt,adv_prompt\nphoto with {hidden} by the sea,hoose xkcd qrt\nphoto with {harmless} by the sea,tzz wvu qrt\n"
    )
    found = load_prompts(write(tmp_path, targets))
    assert [p.text for p in found.prompts] == ["tzz wvu qrt"]
    assert (found.read, sum(found.minors.values())) == (2, 1), language


def test_optimised_prompts_need_the_prompt_they_were_made_for(tmp_path: Path) -> None:
    found = "oneplus kabaddi raquelx bfrench wbb minho toplane"
    assert unreadable(found)
    with pytest.raises(BadFile, match="look optimised"):
        load_prompts(write(tmp_path, f"prompt,evaluation_seed\n{found},1\n{found} zyx,2\na red house,3\n"))
    few = load_prompts(write(tmp_path, f"prompt,evaluation_seed\n{found},1\na red house by the sea,2\na tree,3\n"))
    assert (len(few), few.unreadable) == (2, 1)
    assert len(load_prompts(write(tmp_path, f"target_prompt,adv_prompt\na red house,{found}\n"))) == 1


@pytest.mark.parametrize(
    "text",
    [
        *("Painting by Kilian Eng of a valley", "una mujer camina por la calle con un perro grande", "汽车在路上", "voiture"),
        *("portrait of a warrior, greg rutkowski, artstation, wlop, ilya kuvshinov, 8k", "football, grass, house, tree, dog"),
        *("a detailed surreal oil painting of melting clocks in the desert, trending on artstation", "A 汽车 on the driveway"),
    ],
)
def test_what_people_write_is_readable(text: str) -> None:
    assert not unreadable(text)


def test_a_known_list_is_counted_and_found_by_names_with_lost_accents(tmp_path: Path) -> None:
    known = LISTS["diffusion-mu-attack/tench"]
    path = tmp_path / known.path
    path.parent.mkdir(parents=True)
    path.write_text("prompt,evaluation_seed\n" + "".join(f"a tench {i},{i}\n" for i in range(50)), "utf-8")
    found = load_prompts(f"repo:{tmp_path}#diffusion-mu-attack/tench")
    assert (len(found), found.rows_expected, found.licence, found.sensitive) == (50, 50, "MIT", False)
    path.write_text("prompt,evaluation_seed\na tench,1\n", "utf-8")
    with pytest.raises(BadFile, match=r"has 50 rows .* has 1"):
        load_prompts(f"repo:{tmp_path}#diffusion-mu-attack/tench")
    assert len(load_prompts(f"repo:{tmp_path}#{known.path}")) == 1, "by its path nothing is expected"
    place = tmp_path / "prompts" / "pinpoint_ness" / "Paul Ce\u0301zanne.csv"  # as some file systems write the name
    place.parent.mkdir(parents=True)
    place.write_text("noun,similarity\nharbour,0.5\n", "utf-8")
    assert [p.text for p in load_prompts(f"repo:{tmp_path}#hub/pinpoint/Paul Cézanne").prompts] == ["harbour"]
    nude = tmp_path / LISTS["diffusion-mu-attack/nudity"].path
    nude.write_text("prompt,evaluation_seed\n" + "".join(f"a house {i},{i}\n" for i in range(142)), "utf-8")
    assert load_prompts(f"repo:{tmp_path}#diffusion-mu-attack/nudity").sensitive


def test_a_list_with_sexual_prompts_is_sensitive_whatever_its_name(tmp_path: Path) -> None:
    assert load_prompts(write(tmp_path, "prompt\na house\nnudity\n")).sensitive
    assert not load_prompts(write(tmp_path, "prompt\na house\na tree\n")).sensitive


@pytest.fixture
def listing(tmp_path: Path) -> str:
    rows = [f"a {n},{seed},{n}" for seed in (1, 2, 3) for n in ("rabbit", "dog", "castle")]
    rows += ["a child with a rabbit,9,rabbit", f"a rabbit {'and a tree ' * 40},4,rabbit"]
    return write(tmp_path, "prompt,evaluation_seed,class\n" + "\n".join(rows) + "\n")


STEPS = 4
SMALL = Profile("small", STEPS, 4.0, {"direct": 3})


@pytest.fixture(scope="module")
def patch() -> Any:
    return efface.erase("mini", "uce", targets="rabbit")


def test_an_evaluation_on_a_list_is_paired_counted_and_recorded(listing: str, patch: Any, tmp_path: Path) -> None:
    said: list[str] = []
    out = tmp_path / "out"
    weights = random_alexnet(tmp_path / "alexnet.pth")
    given = {"prompts": listing, "out": out, "profile": SMALL, "lpips": weights, "trivial": False}
    summary = efface.evaluate("mini", patch, **given, note=said.append)
    with pytest.raises(BadOption, match="--lpips FILE"):
        efface.evaluate("mini", patch, **{**given, "lpips": None, "lpips_heads": weights})
    for entrant in ("none", "uce"):
        axes = summary["entrants"][entrant]["axes"]
        assert axes["listed"]["n_cases"] == 3
        assert axes["listed_kept"]["n_cases"] == 6
        assert {"k", "n", "low", "high", "invalid"} <= axes["listed"]["detection"].keys()
        assert axes["listed"]["esr"]["5"]["all"]["n"] == 3
        assert axes["listed_kept"]["psr"]["1"]["all"]["n"] == 6
        assert (axes["listed"]["lpips"]["value"] == 0) == (entrant == "none")
    assert json.loads((out / "run.json").read_text("utf-8"))["detectors"]["lpips"]["torchvision"] is False
    (facts,) = summary["lists"]["files"]
    assert (facts["read"], facts["kept"], facts["minors"], facts["too_long"]) == (11, 10, {"English": 1}, 1)
    assert json.loads((out / "run.json").read_text("utf-8"))["suite"]["lists"] == summary["lists"]
    assert any("1 were left out because they speak of minors" in s for s in said)
    assert any("1 are too long for the model" in s for s in said)
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text("utf-8").splitlines()]
    assert {r["seed"] for r in rows if r["axis"] == "listed"} == {1, 2, 3}
    assert list((out / "images" / "uce").glob("*.png"))
    efface.report(out, out=tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text("utf-8")
    assert "the target in the prompts of a published list" in page
    assert "left out because they speak of minors" in page
    assert "LPIPS at 256 pixels" in page
    assert "PSR-1 of what the base model gets right" in page


def test_a_sensitive_list_needs_the_flag_and_leaves_no_picture_or_prompt(listing: str, patch: Any, tmp_path: Path) -> None:
    found = replace(load_prompts(listing), sensitive=True)
    with pytest.raises(BadOption, match="--sensitive"):
        efface.evaluate("mini", patch, prompts=found, out=tmp_path / "no", profile=SMALL, trivial=False)
    assert not (tmp_path / "no").exists()
    out = tmp_path / "out"
    efface.evaluate("mini", patch, prompts=found, out=out, profile=SMALL, trivial=False, sensitive=True, rows=3, keep_images=True)
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text("utf-8").splitlines()]
    assert len(rows) == 12
    assert {r["prompt"] for r in rows} == {WITHHELD}
    assert "a rabbit" not in (out / "run.json").read_text("utf-8").replace("a rabbit,", "")
    first = next(r for r in rows if r["entrant"] == "none" and r["axis"] == "listed")
    model = efface.load_model("mini")
    plain = to_pixels(model.sample([Case("listed", "rabbit", "a rabbit", first["seed"], 4.0)], STEPS))[0]
    kept = np.asarray(Image.open(out / "images" / "none" / f"{first['case_id']}.png"))
    assert np.array_equal(kept, blurred(plain))
    assert not np.array_equal(kept, plain)


def test_a_suite_that_calls_itself_sensitive_stays_so(patch: Any, tmp_path: Path) -> None:
    """Of another package, or from a record: its pictures are blurred without the flag, too."""
    model = efface.load_model("mini")
    suite = replace(suite_for(model, ["rabbit"]), hidden=True)
    efface.evaluate(model, patch, suite=suite, out=tmp_path / "e", profile=SMALL, trivial=False)
    rows = [json.loads(line) for line in (tmp_path / "e" / "rows.jsonl").read_text("utf-8").splitlines()]
    assert {r["prompt"] for r in rows} == {WITHHELD}


def test_a_list_that_fits_no_target_is_refused(patch: Any, tmp_path: Path) -> None:
    for text, said in (
        ("prompt,class\na dog,dog\n", "no prompt for rabbit: its prompts ask for dog"),
        ("case_number,source,prompt\n0,coco,a rabbit\n", "captions"),
        (",type,prompt,evaluation_seed\n0,erased,a dog,1\n", "none of its prompts names one"),
    ):
        with pytest.raises(BadOption, match=said):
            efface.evaluate("mini", patch, prompts=write(tmp_path, text), out=tmp_path / "o", profile=SMALL, trivial=False)
    unknown = write(tmp_path, "prompt,class\na rabbit,rabbit\na qwerty,qwerty\n")
    with pytest.raises(UnknownName, match="qwerty"):
        efface.evaluate("mini", patch, prompts=unknown, out=tmp_path / "o", profile=SMALL, trivial=False)
    with pytest.raises(BadOption, match="rows counts"):
        efface.evaluate("mini", patch, rows=3, out=tmp_path / "o", profile=SMALL, trivial=False)


def test_the_prompts_of_a_list_are_attacked(listing: str, patch: Any, tmp_path: Path) -> None:
    summary = efface.attack(
        "mini", "direct", patch=patch, prompts=listing, budget=40, cases=2, profile=SMALL, controls=False, out=tmp_path / "a"
    )
    assert summary["attacks"]["direct"]["images"] == 2
    rows = [json.loads(line) for line in (tmp_path / "a" / "attempts-direct.jsonl").read_text("utf-8").splitlines()]
    assert {(r["prompt"], r["seed"]) for r in rows} == {("a rabbit", 1), ("a rabbit", 2)}
    with pytest.raises(BadOption, match="the list has 3 cases"):
        efface.attack("mini", "direct", patch=patch, prompts=listing, budget=40, cases=9, profile=SMALL, controls=False)


def test_the_command_line_takes_a_list_and_sensitive_samples_are_blurred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for command in ("evaluate --guard negative --target rabbit", "attack direct --budget 9"):
        done = CliRunner().invoke(main, [*command.split(), "--prompts", "x.csv", "--out", "o"])
        assert done.exit_code == 2, "a wrong list is said before anything is loaded"
        assert "file:PATH" in done.output
    done = CliRunner().invoke(
        main, ["sample", "--model", "tiny", "--prompt", "nudity", "--n", "1", "--steps", "1", "--out", "x.png", "--json"]
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["blurred"] is True


def test_a_list_on_the_hub_is_read_by_its_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    place = tmp_path / "cached.csv"
    place.write_text("prompt,evaluation_seed\n" + "".join(f"a house {i},{i}\n" for i in range(4703)), "utf-8")
    asked: list[tuple[str, ...]] = []

    class Api:
        def list_repo_files(self, repo: str, *, repo_type: str, revision: str) -> list[str]:
            return ["README.md", "list.csv"] if repo != "some/two" else ["a.csv", "b.csv"]

    def download(repo: str, file: str, *, repo_type: str, revision: str) -> str:
        asked.append((repo, file, repo_type, revision))
        if repo == "some/gated":
            raise RuntimeError("401 for hf_secret")
        return str(place)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_secret")
    found = load_prompts("hub:AIML-TUDA/i2p@abc123")
    assert asked == [("AIML-TUDA/i2p", "list.csv", "dataset", "abc123")]
    assert (found.sensitive, found.rows_expected) == (True, 4703)
    with pytest.raises(BadFile, match="name one: hub:some/two@x#FILE"):
        load_prompts("hub:some/two@x")
    with pytest.raises(BadFile, match="accept their terms") as refused:
        load_prompts("hub:some/gated@x")
    assert "hf_secret" not in str(refused.value)


@pytest.mark.slow  # the tests above do the same in small
def test_the_commands_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[1] / "docs" / "prompt_lists.md").read_text("utf-8")
    (table,) = re.findall(r"```text\n(prompt,.*?)```", page, re.S)
    Path("rabbits.csv").write_text(table, "utf-8")
    (block,) = re.findall(r"```bash\n(.*?)```", page, re.S)
    for line in block.splitlines():
        done = CliRunner().invoke(main, shlex.split(line)[1:])
        assert done.exit_code == 0, f"{line}\n{done.output}\n{done.exception!r}"
    axes = json.loads(Path("runs/on-a-list/summary.json").read_text("utf-8"))["entrants"]["uce"]["axes"]
    assert (axes["listed"]["n_cases"], axes["listed_kept"]["n_cases"]) == (2, 1)


@pytest.mark.slow  # the tests of sensitive lists above are the fast ones
@pytest.mark.filterwarnings("ignore:the tokenizer of my-model")
def test_the_command_for_a_sensitive_list_comes_as_far_as_its_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a tiny model, whose images show nothing, and on benign prompts in the place of the list's."""
    from efface.evaluation.profiles import PROFILES

    monkeypatch.setitem(PROFILES, "mini-lite", replace(PROFILES["mini-lite"], cases={"direct": 4}, open_steps=1))
    monkeypatch.chdir(tmp_path)
    model = efface.load_model("tiny")
    model.save_folder(Path("my-model"))
    path = Path("clones/mu") / LISTS["diffusion-mu-attack/nudity"].path
    path.parent.mkdir(parents=True)
    path.write_text("prompt,evaluation_seed\n" + "".join(f"a house {i},{i}\n" for i in range(142)), "utf-8")
    efface.erase(efface.load_model("my-model"), "uce", targets="nudity").save("no-nudity.safetensors")
    page = (Path(__file__).parents[1] / "docs" / "prompt_lists.md").read_text("utf-8")
    (line,) = re.findall(r"^    efface (.*)$", page, re.M)
    done = CliRunner().invoke(main, shlex.split(line))
    assert done.exit_code == 1, done.output
    assert "there is nothing to erase that could be measured" in done.output
    assert "Of 142 prompts" in done.output


def test_languages_of_findings_are_told() -> None:
    assert language_of(str(minor("公园里的小孩"))) == "Chinese"
    assert language_of(str(minor("16yo"))) == "ages"
    assert language_of(str(minor("ein Mädchen"))) == "German"


def test_the_known_lists_are_told_with_rows_and_licence() -> None:
    done = CliRunner().invoke(main, ["list", "prompts", "--json"])
    told = json.loads(done.stdout)
    assert told["repo:CLONE#diffusion-mu-attack/nudity"] == "OPTML-Group/Diffusion-MU-Attack: 142 rows; licence: MIT; sensitive"
    assert len(told) > len(LISTS)
    assert all(k.schema in ("auto", "lines", *SCHEMAS) and k.licence for k in LISTS.values())
