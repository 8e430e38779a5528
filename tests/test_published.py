"""The rates by which papers count, and LPIPS, against published values and closed forms."""

from __future__ import annotations

import csv
import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from efface.detectors.exposed import CORE6, EXPOSED8, EXPOSED9
from efface.errors import BadFile, BadOption
from efface.evaluation.aggregate import axis_summary
from efface.evaluation.lpips import CONVOLUTIONS, Lpips, packaged_heads
from efface.evaluation.published import SPLITS, Rank, esr, imagenette, ner, over_splits, parts, psr
from efface.evaluation.records import Row
from efface.io.images import resized

# Of 500 images of each class by Stable Diffusion 1.4, how many a ResNet-50 calls by their class: six classes as recomputed from
# the authors' files; the other four so that the two pairs have the sums that the published table implies.
RIGHT = {
    **{"cassette player": 27, "church": 422, "garbage truck": 416, "chain saw": 382, "gas pump": 345, "tench": 380},
    **{"parachute": 490, "French horn": 484, "English springer": 480, "golf ball": 473},
}
# Among the first five names: the cassette player in 96.6 %, the others so that mean and deviation are the published ones.
AMONG_FIVE = {
    **{"cassette player": 483, "church": 499, "garbage truck": 500, "chain saw": 476, "gas pump": 476, "tench": 476},
    **{"parachute": 499, "French horn": 500, "English springer": 486, "golf ball": 485},
}


# Of the 2,500 images of erased classes in each of the four runs, how many are without their class among the first and the first
# five names, and of the 2,500 images of kept classes, how many are with it. The sums over the runs are those of the published
# means; how they are spread over the runs is ours, and gives the published deviations.
COUNTS = {
    "ESD": ((1633, 2273, 1793, 2115), (1238, 2076, 1447, 1870), (972, 1690, 1152, 1512), (1546, 2346, 1739, 2154)),
    "UCE": ((2500, 2500, 2500, 2500), (2500, 2500, 2500, 2499), (498, 720, 550, 671), (990, 1486, 1102, 1374)),
    "MACE": ((2473, 2493, 2478, 2490), (2401, 2477, 2420, 2461), (806, 1566, 996, 1377), (1488, 2150, 1653, 1988)),
    "AP": ((2430, 2500, 2446, 2487), (2315, 2487, 2359, 2446), (1064, 1698, 1222, 1540), (1910, 2082, 1949, 2045)),
}


def ranks(model: str) -> dict[str, dict[str, list[Rank]]]:
    """Run -> class -> places of its 500 images in random order: first name, among five, or neither."""
    rng = random.Random(0)

    def shuffled(first: int, five: int, n: int) -> list[Rank]:
        return rng.sample([*[1] * first, *[3] * (five - first), *[17] * (n - five)], n)

    if model == "SD 1.4":
        images = {name: shuffled(RIGHT[name], AMONG_FIVE[name], 500) for name in RIGHT}
        return dict.fromkeys(SPLITS, images)
    found = dict[str, dict[str, list[Rank]]]()
    for split, esr_1, esr_5, psr_1, psr_5 in zip(SPLITS, *COUNTS[model], strict=True):
        gone, kept = shuffled(2500 - esr_1, 2500 - esr_5, 2500), shuffled(psr_1, psr_5, 2500)
        classes = [*SPLITS[split], *(name for name in RIGHT if name not in SPLITS[split])]
        images = [*gone, *kept]
        found[split] = {name: images[500 * i : 500 * (i + 1)] for i, name in enumerate(classes)}
    return found


def written(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(header)
        table.writerows(rows)
    return path


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("SD 1.4", ("22.02+-11.56", "2.40+-1.44", "77.98+-11.56", "97.60+-1.44")),
        ("ESD", ("78.14+-10.13", "66.31+-13.28", "53.26+-11.36", "77.85+-12.75")),
        ("UCE", ("100.00+-0.00", "99.99+-0.02", "24.39+-3.58", "49.52+-8.00")),
        ("MACE", ("99.34+-0.33", "97.59+-1.22", "47.45+-12.02", "72.79+-10.49")),
        ("AP", ("98.63+-1.15", "96.07+-2.73", "55.24+-10.03", "79.86+-2.79")),
    ],
)
def test_the_published_table_of_objects_is_reproduced(model: str, told: tuple[str, ...], tmp_path: Path) -> None:
    """Adversarial Preservation's table on Imagenette, ESR-1, ESR-5, PSR-1 and PSR-5, from a file with one line for each image."""
    rows = [(s, c, i, r) for s, mine in ranks(model).items() for c, found in mine.items() for i, r in enumerate(found)]
    path = written(tmp_path / "ranks.csv", ("split", "class", "case_number", "rank"), rows)
    read: dict[str, dict[str, list[Rank]]] = {s: {c: [] for c in RIGHT} for s in SPLITS}
    with path.open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            read[line["split"]][line["class"]].append(int(line["rank"]))
    one, five = (imagenette(read, k) for k in (1, 5))
    rates = one["esr"], five["esr"], one["psr"], five["psr"]
    assert tuple(f"{100 * mean:.2f}+-{100 * deviation:.2f}" for mean, deviation in rates) == told


def test_the_splits_are_complements_of_ten_classes() -> None:
    assert {*SPLITS["v1"], *SPLITS["v2"]} == {*SPLITS["v3"], *SPLITS["v4"]} == set(RIGHT)
    assert not {*SPLITS["v1"]} & {*SPLITS["v2"]} | {*SPLITS["v3"]} & {*SPLITS["v4"]}


def test_the_deviation_over_runs_is_that_of_the_population() -> None:
    # ESR-1 of UCE and of ESD's kind: four runs by hand, mean 3, squares 4 + 1 + 1 + 4 over 4 and not over 3.
    assert over_splits([1, 2, 4, 5]) == (3.0, pytest.approx(2.5**0.5))
    assert over_splits([1.0, 1.0, 1.0, 1.0]) == (1.0, 0.0)


def test_what_the_base_model_never_got_right_is_left_out_of_the_starred_rates() -> None:
    base: list[Rank] = [1, 1, 1, 8, None]
    mine: list[Rank] = [9, 1, None, 9, 9]
    right = [b is not None and b <= 1 for b in base]
    assert (esr(mine, 1).k, esr(mine, 1).n, esr(mine, 1).invalid) == (3, 5, 1)
    assert (esr(mine, 1, right).k, esr(mine, 1, right).n, esr(mine, 1, right).invalid) == (1, 3, 1)
    assert (psr(mine, 1, right).k, psr(mine, 1, right).n) == (1, 3)


@given(st.lists(st.one_of(st.none(), st.integers(1, 1000)), min_size=1, max_size=60), st.integers(1, 10))
def test_erased_kept_and_invalid_images_are_all_images(found: list[Rank], k: int) -> None:
    gone, kept = esr(found, k), psr(found, k)
    assert gone.k + kept.k + gone.invalid == gone.n == kept.n == len(found)
    assert esr(found, k + 1).k <= gone.k


def boxes(counts: dict[float, int], n: int) -> list[dict[str, list[float]]]:
    """n images, of which ``counts[t]`` have a strongest box of at least t; boxes of a face and weaker boxes lie beside it."""
    rng, images = random.Random(0), list[dict[str, list[float]]]()
    for t, least in sorted(counts.items(), reverse=True):
        while len(images) < least:
            images.append({rng.choice(EXPOSED8): [t + 0.01, 0.26], "FACE_FEMALE": [0.95]})
    images += [{"FACE_MALE": [0.9]} for _ in range(n - len(images))]
    return rng.sample(images, n)


@pytest.mark.parametrize(
    ("model", "counts", "told"),
    [
        ("SD 1.4", (785, 513, 257, 95), ("16.69", "10.91", "5.46", "2.02")),
        ("CA", (651, 436, 223, 79), ("13.84", "9.27", "4.74", "1.68")),
        ("UCE", (323, 161, 32, 10), ("6.87", "3.42", "0.68", "0.21")),
        ("ESD-u", (250, 111, 35, 11), ("5.32", "2.36", "0.74", "0.23")),
        ("AP", (171, 80, 19, 3), ("3.64", "1.70", "0.40", "0.06")),
    ],
)
def test_the_published_table_of_nudity_is_reproduced(
    model: str, counts: tuple[int, ...], told: tuple[str, ...], tmp_path: Path
) -> None:
    """NER-0.3, -0.5, -0.7 and -0.8 of 4,703 images with the eight classes, as Adversarial Preservation's notebook prints them,
    from a file with one line for each box; the counts are those that give the printed rates."""
    drawn = boxes(dict(zip((0.3, 0.5, 0.7, 0.8), counts, strict=True)), 4703)
    rows = [(i, name, score) for i, image in enumerate(drawn) for name, scores in image.items() for score in scores]
    path = written(tmp_path / "boxes.csv", ("image", "class", "score"), rows)
    images: list[dict[str, list[float]]] = [{} for _ in drawn]
    with path.open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            images[int(line["image"])].setdefault(line["class"], []).append(float(line["score"]))
    rates = [ner(images, EXPOSED8, t) for t in (0.3, 0.5, 0.7, 0.8)]
    assert tuple(f"{100 * r.value:.2f}" for r in rates) == told
    if model == "AP":
        assert (f"{100 * rates[-1].low:.2f}", f"{100 * rates[-1].high:.2f}") == ("0.02", "0.19")


def test_lists_of_classes_and_parts_are_counted_by_hand() -> None:
    assert (len(CORE6), len(EXPOSED8), len(EXPOSED9)) == (6, 8, 9)
    images = [{"BELLY_EXPOSED": [0.9, 0.55]}, {"ANUS_EXPOSED": [0.4]}, {"BUTTOCKS_EXPOSED": [0.5]}, {}, None]
    assert [ner(images, c, 0.5).k for c in (CORE6, EXPOSED8, EXPOSED9)] == [1, 2, 2]
    assert [ner(images, c, 0.4).k for c in (CORE6, EXPOSED8, EXPOSED9)] == [2, 2, 3]
    assert (ner(images, CORE6, 0.4).n, ner(images, CORE6, 0.4).invalid) == (5, 1)
    assert parts(images, 0.5)["BELLY_EXPOSED"] == {"detections": 2, "images": 1}
    assert parts(images, 0.6)["BELLY_EXPOSED"] == {"detections": 1, "images": 1}
    assert parts(images, 0.5)["ANUS_EXPOSED"] == {"detections": 0, "images": 0}


def row(case: int, **facts: Any) -> Row:
    valid = facts.pop("valid", True)
    name = facts.pop("axis", "direct")
    return Row("m", f"c{case}", name, "x", "x", 0, valid, None if valid else "uniform", "x", 0.9, None, None, **facts)


def test_an_axis_has_the_columns_that_its_rows_allow() -> None:
    rows = [row(0, rank=1), row(1, rank=3), row(2, rank=9), row(3, rank=9, valid=False)]
    base = [row(i, rank=r) for i, r in enumerate((1, 1, 2, 1))]
    found = axis_summary(rows, base)
    assert [(found["esr"][k]["all"]["k"], found["esr"][k]["all"]["n"]) for k in ("1", "5")] == [(2, 4), (1, 4)]
    assert [(found["esr"][k]["base_right"]["k"], found["esr"][k]["base_right"]["n"]) for k in ("1", "5")] == [(1, 3), (1, 4)]
    assert "psr" not in found
    assert "ner" not in found
    kept = axis_summary([replace(r, axis="near") for r in rows], [replace(b, axis="near") for b in base])
    assert (kept["psr"]["5"]["all"]["k"], kept["psr"]["5"]["all"]["n"]) == (2, 4)
    nude = axis_summary([row(0, parts={"BUTTOCKS_EXPOSED": [0.7]}), row(1, parts={})], [row(0), row(1)])
    assert nude["ner"]["core6"]["0.6"]["k"] == 1
    assert nude["parts"]["0.8"]["BUTTOCKS_EXPOSED"]["images"] == 0
    assert {"esr", "psr", "ner", "lpips"}.isdisjoint(axis_summary([row(0)], [row(0)]))
    far = axis_summary([row(0, lpips=0.2), row(1, lpips=0.9, valid=False)], [row(0), row(1)])
    assert (far["lpips"]["value"], far["lpips"]["n"], far["lpips"]["invalid"]) == (0.2, 1, 1)


def random_alexnet(path: Path) -> Path:
    """A file with the tensors of torchvision's AlexNet, fixed random numbers in them."""
    rng, state = torch.Generator().manual_seed(0), dict[str, Tensor]()
    for place, (inner, outer, kernel, _, _) in CONVOLUTIONS.items():
        state[f"features.{place}.weight"] = torch.randn(outer, inner, kernel, kernel, generator=rng) / (inner * kernel**2) ** 0.5
        state[f"features.{place}.bias"] = 0.1 * torch.randn(outer, generator=rng)
    torch.save({**state, "classifier.1.weight": torch.zeros(1)}, path)
    return path


@pytest.fixture(scope="module")
def alexnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_alexnet(tmp_path_factory.mktemp("lpips") / "alexnet.pth")


@pytest.fixture(scope="module")
def net(alexnet: Path) -> Lpips:
    return Lpips(alexnet)


def images(n: int, side: int = 64, seed: int = 1) -> Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(seed))


def test_lpips_is_zero_for_equal_images_symmetric_and_grows_with_the_change(net: Lpips) -> None:
    x, y = images(3), images(3, seed=2)
    assert net(x, x).tolist() == [0.0, 0.0, 0.0]
    assert torch.equal(net(x, y), net(y, x))
    assert net(x, y).shape == (3,)
    near = net(x, (x + 0.02 * y).clamp(0, 1))
    assert bool((near > 0).all())
    assert bool((near < net(x, y)).all())
    assert torch.allclose(net(x, y)[1], net(x[1:2], y[1:2])[0], rtol=1e-5), "a pair does not depend on its batch"


def test_lpips_is_that_of_torchmetrics_on_the_same_weights(alexnet: Path, net: Lpips, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their network, with our stand-in for the layers that it takes from torchvision."""
    lpips: Any = pytest.importorskip("torchmetrics.functional.image.lpips")

    def features(name: str, pretrained: bool = False) -> nn.Sequential:
        convolution = {p: nn.Conv2d(i, o, k, s, d) for p, (i, o, k, s, d) in CONVOLUTIONS.items()}
        pool = nn.MaxPool2d(3, 2)
        order = [convolution[0], nn.ReLU(), pool, convolution[3], nn.ReLU(), pool, convolution[6], nn.ReLU()]
        order += [convolution[8], nn.ReLU(), convolution[10], nn.ReLU(), pool]
        layers = nn.Sequential(*order)
        state = torch.load(alexnet, weights_only=True)
        layers.load_state_dict({k.removeprefix("features."): v for k, v in state.items() if k.startswith("features.")})
        return layers

    monkeypatch.setattr(lpips, "_get_tv_model_features", features)
    theirs = lpips._LPIPS(pretrained=True, net="alex", pnet_rand=False).eval()
    x, y = images(4, 96), images(4, 96, seed=2)
    with torch.no_grad():
        expected = theirs(x, y, normalize=True).flatten()
    # The same formula in another order of sums, in float32.
    assert torch.allclose(net(x, y), expected, rtol=1e-4)


def test_lpips_has_a_known_value_at_both_sizes(net: Lpips) -> None:
    x, y = images(2, 48), images(2, 48, seed=2)
    found = [net.between(x, y, side) for side in (256, 64)]
    assert all(d is not None and d > 0 for row in found for d in row)
    assert found[0] != found[1]
    bad = x.clone()
    bad[1, 0, 0, 0] = float("nan")
    assert net.between(bad, y, 64)[1] is None
    assert net.between(bad, y, 64)[0] == pytest.approx(found[1][0])
    assert resized(images(1, 48), 256).shape == (1, 3, 256, 256)
    assert net.facts["torchvision"] is False


def test_lpips_refuses_other_files_by_name(alexnet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = torch.load(alexnet, weights_only=True)
    for name, value, said in (
        ("missing", {k: v for k, v in state.items() if k != "features.6.bias"}, "features.6.bias is missing"),
        ("shape", {**state, "features.0.weight": torch.zeros(64, 3, 3, 3)}, r"has the shape \(64, 3, 3, 3\)"),
        ("list", [1, 2], "no state dict"),
        ("object", nn.Linear(1, 1), "holds more than tensors"),
    ):
        path = tmp_path / f"{name}.pth"
        torch.save(value, path)
        with pytest.raises(BadFile, match=said):
            Lpips(path)
    (tmp_path / "text.pth").write_text("no weights")
    for name in ("text.pth", "nowhere.pth", "nowhere.safetensors"):
        with pytest.raises(BadFile, match=name.split(".")[0]):
            Lpips(tmp_path / name)
    with pytest.raises(BadFile, match="lin0"):
        Lpips(alexnet, alexnet)
    assert packaged_heads().is_file()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BadOption, match="--lpips-heads"):
        Lpips(alexnet)
