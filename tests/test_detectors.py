"""The miniature's judges: their contract on any weights, and the shipped weights where the package has them."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from efface.detectors import mini
from efface.detectors.clip_score import ClipScorer
from efface.detectors.mini import ARCHITECTURES, Labels, MiniDetector, validity
from efface.errors import BadFile, EvaluationError, PromptTooLong, UnknownName
from efface.models.mini.world import load_world

LABELS = Labels.of(load_world())


@pytest.fixture(params=sorted(ARCHITECTURES))
def detector(request):
    """Shipped if present, else random weights: the contract is the same."""
    if (mini.packaged_folder() / f"{request.param}.safetensors").exists():
        return MiniDetector.load(request.param)
    torch.manual_seed(0)
    return MiniDetector(request.param, ARCHITECTURES[request.param](LABELS), LABELS)


@pytest.fixture
def scorer():
    return ClipScorer()


def images(n: int) -> torch.Tensor:
    return torch.rand(n, 3, 48, 48, generator=torch.Generator().manual_seed(3))


def test_labels_follow_the_world_and_end_with_none():
    world = load_world()
    assert LABELS.concepts[:-1] == tuple(c.name for c in world.concepts)
    assert LABELS.styles[:-1] == world.styles
    assert LABELS.backgrounds[:-1] == world.backgrounds
    assert LABELS.concepts[-1] == LABELS.styles[-1] == LABELS.backgrounds[-1] == "none"
    assert set(world.reserved) | set(world.novel) <= set(LABELS.concepts)


def test_shapes_and_probabilities(detector):
    s = detector.score(images(3))
    assert s.concept.shape == (3, len(LABELS.concepts))
    assert s.style.shape == (3, len(LABELS.styles))
    assert s.background.shape == (3, len(LABELS.backgrounds))
    assert len(s.features) == 3
    for p in (s.concept, s.style, s.background):
        torch.testing.assert_close(p.sum(1), torch.ones(3))


def test_rows_do_not_depend_on_the_batch(detector, monkeypatch):
    x = images(7)
    monkeypatch.setattr(mini, "CHUNK", 4)
    together = detector.score(x)
    for i in range(7):
        alone = detector.score(x[i : i + 1])
        torch.testing.assert_close(alone.concept[0], together.concept[i], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(alone.features[0], together.features[i], atol=1e-4, rtol=1e-4)
    assert detector.score(x[:0]).concept.shape == (0, len(LABELS.concepts))


def test_always_evaluation_mode_without_gradients(detector):
    x = images(2).requires_grad_()
    detector.net.train()
    before = {k: v.clone() for k, v in detector.net.state_dict().items()}
    s = detector.score(x)
    assert not detector.net.training
    assert not s.concept.requires_grad
    assert all(torch.equal(before[k], v) for k, v in detector.net.state_dict().items())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_images_have_no_class_and_do_not_spread(detector, bad):
    x = images(3)
    clean = detector.score(x)
    x[1, 2, 5, 5] = bad
    s = detector.score(x)
    for part in (s.concept, s.style, s.background, s.features):
        assert part[1].isnan().all()
    assert int(s.top()[1]) == -1
    assert validity(x, s)[1] == "non-finite"
    torch.testing.assert_close(s.concept[[0, 2]], clean.concept[[0, 2]], atol=1e-5, rtol=1e-4)


def test_uniform_images_are_invalid(detector):
    x = torch.cat([torch.full((1, 3, 48, 48), v) for v in (0.0, 0.5, 1.0)])
    x[1] += 0.005 * torch.randn(3, 48, 48, generator=torch.Generator().manual_seed(0))
    assert validity(x, detector.score(x)) == ["uniform"] * 3


def test_none_class_makes_an_image_invalid(detector):
    x = images(2)
    s = detector.score(x)
    s.concept[:] = 0
    s.concept[0, -1], s.concept[1, 4] = 1, 1
    assert validity(x, s) == ["none", None]


def test_shipped_detectors_call_noise_none():
    for name in ARCHITECTURES:
        x = images(8)
        assert validity(x, MiniDetector.load(name).score(x)) == ["none"] * 8


def test_the_two_architectures_share_no_weights():
    nets = {name: build(LABELS) for name, build in ARCHITECTURES.items()}
    shapes = [{tuple(p.shape) for p in net.trunk.parameters() if p.ndim == 4} for net in nets.values()]
    assert not shapes[0] & shapes[1]
    kinds = [{type(m).__name__ for m in net.trunk.modules()} for net in nets.values()]
    assert "BatchNorm2d" in kinds[0]
    assert "BatchNorm2d" not in kinds[1]
    for net in nets.values():
        assert 250_000 <= sum(p.numel() for p in net.parameters()) <= 320_000


def test_wrong_shapes_names_and_files_are_refused(detector, tmp_path):
    with pytest.raises(EvaluationError, match="48"):
        detector.score(torch.rand(1, 3, 64, 64))
    with pytest.raises(EvaluationError):
        validity(images(2), detector.score(images(1)))
    with pytest.raises(UnknownName, match="report"):
        MiniDetector.load("reports")
    with pytest.raises(BadFile, match=r"report\.safetensors"):
        MiniDetector.load("report", tmp_path)
    (tmp_path / "report.safetensors").write_bytes(b"no weights")
    with pytest.raises(BadFile):
        MiniDetector.load("report", tmp_path)
    save_file(ARCHITECTURES["report"](LABELS).state_dict(), tmp_path / "report.safetensors", metadata={"labels": "other"})
    with pytest.raises(BadFile, match="another list of names"):
        MiniDetector.load("report", tmp_path)


def test_half_precision_file_round_trip(tmp_path):
    torch.manual_seed(1)
    net = ARCHITECTURES["selection"](LABELS).half()
    save_file(net.state_dict(), tmp_path / "selection.safetensors", metadata={"labels": LABELS.digest()})
    loaded = MiniDetector.load("selection", tmp_path)
    assert all(torch.equal(v.float(), loaded.net.state_dict()[k]) for k, v in net.state_dict().items())
    assert (tmp_path / "selection.safetensors").stat().st_size <= 650_000


def test_clip_scorer_agrees_with_the_model(scorer):
    x, texts = images(3), ["a cat", "a delivery truck on a red background", ""]
    tokens = scorer.tokenizer(texts, padding="max_length", max_length=scorer.limit, return_tensors="pt")
    with torch.no_grad():
        out = scorer.model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, pixel_values=x * 2 - 1)
    torch.testing.assert_close(scorer.embed_images(x), out.image_embeds, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(scorer.embed_texts(texts), out.text_embeds, atol=1e-5, rtol=1e-4)
    expected = (100 * (out.image_embeds * out.text_embeds).sum(1).clamp(min=0)).tolist()
    assert scorer.clip_t(x, texts) == pytest.approx(expected, abs=1e-3)
    torch.testing.assert_close(scorer.zero_shot(x, texts, "{}"), out.logits_per_image.softmax(1), atol=1e-4, rtol=1e-3)


def test_clip_scorer_resizes_and_refuses(scorer):
    assert scorer.preprocess(torch.rand(2, 3, 96, 64)).shape == (2, 3, 48, 48)
    small = images(1)
    torch.testing.assert_close(scorer.preprocess(small), small * 2 - 1)
    broken = images(2)
    broken[0, 0, 0, 0] = torch.nan
    assert scorer.embed_images(broken).isnan().all(1).tolist() == [True, False]
    score = scorer.clip_t(broken, ["a cat", "a dog"])
    assert score[0] != score[0]
    with pytest.raises(PromptTooLong, match="tokens"):
        scorer.embed_texts(["cat " * 60])
    with pytest.raises(BadFile):
        ClipScorer("/nowhere/at/all")
