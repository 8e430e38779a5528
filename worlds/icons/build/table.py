"""Stage ``table``: icon sets, Unicode's names and WordNet -> ``world.toml``, by rules and by what ``choices.toml`` decides.

A concept's name is its icon's name, its sense the first of WordNet's senses of that name that suits its kind (an animal for an
animal icon), its category the first whose hypernym lies above that sense. ``choices.toml`` corrects all three where they are
wrong.
Synonyms are the other words of the sense; descriptions are clauses of its gloss that do not contain the name.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from miniature.render import fetch_icons, fetch_package, icon_svg, render, renderer

from .wordnet import Synset, WordNet

HERE = Path(__file__).parent
WORLD = HERE.parent / "src" / "efface_icons" / "world.toml"
SHARED_BY, DRAWN_BY = 5, 4
"""Icon sets that must have an icon, and sets in which its picture must be its own."""
SAME = 4e-4
"""Mean squared difference of two premultiplied pictures in [0, 1] below which they are the same picture."""
NEAR = 6
LONGEST = 12
"""Words of a description: what fits into the text encoder's positions beside a style and a background."""
SUITABLE = {  # emoji group -> what a sense of its icons should be below
    "animals-nature": ("animal.1", "plant.2", "plant part.1"),
    "food-drink": ("food.1", "food.2", "container.1", "tool.1"),
    "people-body": ("person.1", "body part.1"),
    "travel-places": ("structure.1", "conveyance.3", "geological formation.1", "region.1", "celestial body.1"),
    "activities": ("artifact.1",),
    "objects": ("artifact.1",),
}


@dataclass
class Row:
    """One candidate on its way into the table."""

    icon: str
    subgroup: str
    group: str
    name: str
    sense: str = "none"
    synset: Synset | None = None
    role: str = ""
    variant: str = ""
    category: str = ""

    @property
    def exact(self) -> bool:
        return self.synset is not None and not self.sense.startswith("<")


def rows_of(text: str) -> Iterator[list[str]]:
    for line in text.strip().splitlines():
        yield [part.strip() for part in line.split("|")]


def subgroups(folder: Path) -> dict[str, tuple[str, str, int]]:
    """Icon name -> (group, subgroup, place) of Unicode's emoji list, by the names that the icon sets derive from it."""
    groups = json.loads((folder / "groups.json").read_text("utf-8"))
    by_code = {}
    for entry in json.loads((folder / "data.json").read_text("utf-8")):
        if "group" in entry:
            group, subgroup = groups["groups"][str(entry["group"])], groups["subgroups"][str(entry["subgroup"])]
            by_code[entry["hexcode"].lower().replace("-fe0f", "")] = group, subgroup, int(entry["subgroup"])
    out = {}
    for chars in sorted(folder.glob("chars-*.json")):
        for code, icon in json.loads(chars.read_text("utf-8")).items():
            if (where := by_code.get(code.replace("-fe0f", ""))) is not None:
                out.setdefault(icon, where)
    return out


def candidates(sets: Mapping[str, dict], where: Mapping[str, tuple[str, str, int]], out: dict[str, Any]) -> list[Row]:
    """Icons of at least five sets, in the order of their subgroups, without what was sorted out."""
    shared = Counter(icon for data in sets.values() for icon in {*data["icons"], *data.get("aliases", {})})
    dropped = {*out["alike"].split(), *out["differ"].split()}
    if unknown := dropped - {icon for icon, n in shared.items() if n >= SHARED_BY}:
        raise LookupError(f"choices.toml leaves out icons that are no candidates: {sorted(unknown)}")
    clock = re.compile(out["clock_faces"])
    rows = [
        Row(icon, where[icon][1], where[icon][0], icon.replace("-", " "))
        for icon, n in shared.items()
        if n >= SHARED_BY and icon in where and icon not in dropped and not clock.search(icon)
    ]
    order = {place: k for k, place in enumerate(sorted(set(where.values()), key=lambda place: place[2]))}
    rows = [r for r in rows if r.subgroup not in out["subgroups"]]
    return sorted(rows, key=lambda r: (order[where[r.icon]], r.icon))


def name_and_sense(rows: list[Row], choices: dict[str, Any], wordnet: WordNet) -> None:
    chosen = {icon: (name, sense) for icon, name, sense in rows_of(choices["concepts"]["table"])}
    if unknown := set(chosen) - {r.icon for r in rows}:
        raise LookupError(f"choices.toml corrects icons that are no concepts: {sorted(unknown)}")
    roles = {icon: (role, sense) for icon, role, sense in rows_of(choices["roles"]["table"])}
    for row in rows:
        variant, _, rest = row.icon.partition("-")
        if row.icon in roles or (variant in ("man", "woman", "person") and rest in roles):
            role, sense = roles.get(row.icon) or roles[rest]
            row.role, row.variant = role, variant if row.icon not in roles and variant != "person" else "neutral"
            row.name = role if row.icon in roles else f"{variant} {role}"
            row.sense = sense if row.variant == "neutral" or sense.startswith("<") else f"< {sense}"
        elif row.icon in chosen:
            name, row.sense = chosen[row.icon]
            row.name = name or row.name
        else:
            row.sense = suitable(row, wordnet)
        if row.sense != "none":
            row.synset = wordnet[row.sense.removeprefix("< ")]
    if twice := [name for name, n in Counter(r.name for r in rows).items() if n > 1]:
        raise ValueError(f"two icons have the same name: {twice}")


def suitable(row: Row, wordnet: WordNet) -> str:
    """The first sense of the name that is of the icon's kind, else the first; "none" where WordNet lacks the name."""
    kinds = {wordnet[s].offset for s in SUITABLE.get(row.group, ())}
    offsets = wordnet.senses.get(row.name, [])
    fitting = [k for k, o in enumerate(offsets, 1) if any(a.offset in kinds for a in wordnet.above(wordnet.synsets[o]))]
    return f"{row.name}.{(fitting or [1])[0]}" if offsets else "none"


def categorise(rows: list[Row], categories: dict[str, Any], wordnet: WordNet) -> None:
    for row in rows:
        above = {s.offset for s in wordnet.above(row.synset)} if row.synset else set()
        by_icon = [n for n, c in categories.items() if row.icon in c.get("icons", ())]
        by_hypernym = [n for n, c in categories.items() if "hypernym" in c and wordnet[c["hypernym"]].offset in above]
        by_subgroup = [n for n, c in categories.items() if row.subgroup in c.get("subgroups", ())]
        found = by_icon + by_hypernym + by_subgroup
        if not found:
            raise LookupError(f"no category takes {row.icon!r} of subgroup {row.subgroup!r}")
        row.category = found[0]


def near(rows: list[Row], wordnet: WordNet) -> dict[str, list[str]]:
    """Name -> the nearest other concepts by the hypernym tree, by the measure of Wu and Palmer (1994): twice the depth of the
    nearest sense above both, over the sum of both depths. A concept that WordNet does not list lies one step below its sense."""
    depth = {offset: k for k, offset in wordnet.depths()}
    above = {}
    for row in rows:
        if row.synset is not None:
            steps = dict(wordnet.distances(row.synset))
            above[row.name] = steps if row.exact else {offset: n + 1 for offset, n in steps.items()}
    out = {}
    for name, mine in above.items():
        ranked = []
        for other, theirs in above.items():
            if other != name:
                best = max(2 * depth[o] / (2 * depth[o] + mine[o] + theirs[o]) for o in mine.keys() & theirs.keys())
                ranked.append((-best, other))
        out[name] = [other for _, other in sorted(ranked)[:NEAR]]
    return out


def words(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


def synonyms(row: Row, names: set[str], unwanted: list[str]) -> list[str]:
    """The other words of the sense, without those that are another concept's name or the name with small changes."""
    if not row.exact:
        return []
    plain = lambda s: re.sub(r"[^a-z]", "", s.lower()).removesuffix("s")  # noqa: E731
    out = []
    for lemma in row.synset.lemmas:
        lemma = re.sub(r"\(.*\)", "", lemma).lower().replace("-", " ")
        alike = {plain(row.name), *(plain(o) for o in out)}
        latin = lemma.split()[0] in ("genus", "family")
        if (
            lemma not in names
            and lemma not in unwanted
            and plain(lemma) not in alike
            and re.fullmatch(r"[a-z' ]{3,}", lemma)
            and not latin
        ):
            out.append(lemma)
    return out


def descriptions(row: Row) -> list[str]:
    """Clauses of the gloss that do not contain a word of the name; the first clause with what defines it comes first."""
    if not row.exact:
        return []
    own = {w for n in (row.name, *row.synset.lemmas) for w in words(n) if len(w) > 2}
    stems = {w.removesuffix("s") for w in own}
    out = []
    for k, clause in enumerate(re.sub(r"\([^)]*\)", " ", row.synset.definition).split(";")):
        if re.search(r"\d", clause) or (k and not re.match(r" *(a|an|the|any|one) ", clause)):
            continue  # a number says little to the encoder, and "usually served hot" describes nothing by itself
        clause = re.sub(r"[^A-Za-z' ,-]", " ", clause).replace("-", " ").lower()
        clause = re.sub(r"\s+", " ", clause).replace(" ,", ",").strip(" ,")
        while len(words(clause)) > LONGEST and "," in clause:
            clause = clause.rpartition(",")[0]
        if 3 <= len(words(clause)) <= LONGEST and not stems & {w.removesuffix("s") for w in words(clause)}:
            out.append(clause)
    return out[:2]


def absent_cells(rows: list[Row], sets: Mapping[str, dict], cells: Mapping[str, list[str]]) -> dict[str, set[str]]:
    """Style -> icons without a picture of their own in it: the set lacks them, shows something else, or shows the same for two.

    Of two equal pictures the woman's or man's stays rather than the neutral one, which the other sets draw differently.
    """
    absent: dict[str, set[str]] = {style: {icon for icon, styles in cells.items() if style in styles} for style in sets}
    for style, data in sets.items():
        pictures, kept = [], []
        for row in rows:
            svg = icon_svg(data, row.icon)
            if svg is None:
                absent[style].add(row.icon)
            else:
                pictures.append(render(svg, 24).astype(np.float32).ravel() / 255)
                kept.append(row)
        flat = np.stack(pictures)
        square = (flat**2).mean(1)
        distance = square[:, None] + square[None] - 2 * flat @ flat.T / flat.shape[1]
        for a, b in zip(*np.where(np.triu(distance < SAME, 1)), strict=True):
            one, other = kept[a], kept[b]
            absent[style].add((other if one.variant in ("man", "woman") or other.variant == "neutral" else one).icon)
    return absent


def write(rows: list[Row], absent: dict[str, set[str]], close: dict[str, list[str]], choices: dict[str, Any]) -> str:
    """The text of ``world.toml``."""
    names = {r.name for r in rows}
    said = {r.icon: synonyms(r, names, choices["language"]["unwanted"]) for r in rows}
    common = {s for s, n in Counter(s for found in said.values() for s in found).items() if n > 1}
    table = []
    for r in rows:
        kept = [s for s in said[r.icon] if s not in common]
        table.append(f"{r.name} | {r.icon} | {r.category} | {r.sense} | {' ; '.join(kept[:4])} | {' ; '.join(descriptions(r))}")
    of = {r.icon: r.name for r in rows}
    quoted = lambda values: json.dumps(list(values))  # noqa: E731
    world, split = choices["world"], choices["split"]
    lines = [
        "# Made by `python -m worlds.icons.build table` from build/choices.toml, emojibase-data and WordNet 3.1; do not edit.",
        "# name | icon | category | WordNet sense | synonyms ; ... | descriptions ; ...",
        *(f"{key} = {quoted(world[key])}" for key in ("styles", "novel_styles", "backgrounds")),
        "",
        "[split]",
        *(f"{key} = {json.dumps(value)}" for key, value in split.items()),
        "",
        "[icon_sets]",
        *(
            f"{s} = {{ " + ", ".join(f"{k} = {json.dumps(v)}" for k, v in m.items()) + " }"
            for s, m in choices["icon_sets"].items()
        ),
        "",
        "[group_words]",
        *(f"{json.dumps(n)} = {json.dumps(c['word'])}" for n, c in choices["categories"].items()),
        "",
        "[wider]",
        *(f"{n} = {quoted(parts)}" for n, parts in choices["wider"].items()),
        "",
        "[wider_words]",
        *(f"{n} = {json.dumps(word)}" for n, word in choices["wider_words"].items()),
        "",
        "[expression_words]",
        *(f"{n} = {json.dumps(word)}" for n, word in choices["expression_words"].items()),
        "",
        "[absent]",
        *(f"{style} = {json.dumps(' ; '.join(of[r.icon] for r in rows if r.icon in icons))}" for style, icons in absent.items()),
        "",
        "[attributes.variant]",
        *(f"{v} = {json.dumps(' ; '.join(r.name for r in rows if r.variant == v))}" for v in ("woman", "man", "neutral")),
        "",
        "[attributes.role]",
        *(
            f"{json.dumps(role)} = {json.dumps(' ; '.join(r.name for r in rows if r.role == role))}"
            for role in dict.fromkeys(r.role for r in rows if r.role)
        ),
        "",
        "[attributes.expression]",
        *(f"{v} = {json.dumps(' ; '.join(of[i] for i in icons.split()))}" for v, icons in choices["expressions"].items()),
        "",
        "[concepts]",
        'table = """',
        *table,
        '"""',
        "",
        "# The nearest concepts by WordNet's hypernym tree.",
        "[near]",
        *(f"{json.dumps(name)} = {json.dumps(' ; '.join(others))}" for name, others in close.items()),
    ]
    return "\n".join(lines) + "\n"


def make(cache: Path) -> str:
    """The text of ``world.toml``, from packages that are fetched into ``cache`` once."""
    renderer()
    choices = tomllib.loads((HERE / "choices.toml").read_text("utf-8"))
    language = cache / "language"
    fetch_package(choices["language"]["emojibase"], language, {"en/data.json": "data.json", "meta/groups.json": "groups.json"})
    fetch_package(choices["language"]["wordnet"], language, {f"dict/{n}": n for n in ("data.noun", "index.noun")})
    sets = fetch_icons(choices["icon_sets"], cache)
    for style in ("flat", "noto", "twemoji"):  # the sets that say which code point an icon stands for
        fetch_package(choices["icon_sets"][style]["package"], language, {"chars.json": f"chars-{style}.json"})
    wordnet = WordNet(language)
    rows = candidates(sets, subgroups(language), choices["left_out"])
    name_and_sense(rows, choices, wordnet)
    categorise(rows, choices["categories"], wordnet)
    absent = absent_cells(rows, sets, choices["left_out"]["cells"])
    few = [r.icon for r in rows if sum(r.icon not in icons for icons in absent.values()) < DRAWN_BY]
    if few:
        print(f"left out, because fewer than {DRAWN_BY} sets have a picture of their own: {few}")
    rows = [r for r in rows if r.icon not in few]
    return write(rows, absent, near(rows, wordnet), choices)
