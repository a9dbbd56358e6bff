"""The judge and the counter."""

import torch

from benchmarks.emoji.next import data, vision


def test_the_judge_has_a_head_for_each_question():
    verdict = vision.Judge(width=8)(torch.rand(3, 3, 64, 64))
    sizes = {name: logits.shape for name, logits in verdict._asdict().items()}
    assert sizes == {
        "animal": (3, len(data.ANIMALS)),
        "count": (3, 4),
        "style": (3, len(data.STYLES)),
        "pose": (3, len(data.POSES)),
    }


def test_the_counter_counts_one_animal_and_has_gradients():
    images = torch.rand(2, 3, 64, 64, requires_grad=True)
    counter = vision.Counter(width=8)
    count = counter.count(images, torch.tensor([0, 5]))
    count.sum().backward()
    assert count.shape == (2,) and (count >= 0).all()
    assert images.grad is not None and images.grad.abs().sum() > 0


def test_weights_are_kept_in_half_precision(tmp_path):
    judge = vision.Judge(width=8)
    vision.save(judge, tmp_path / "judge.safetensors")
    again = vision.load(vision.Judge(width=8), tmp_path / "judge.safetensors")
    pictures = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        pairs = zip(judge(pictures), again(pictures), strict=True)
    assert all(torch.allclose(a, b, atol=0.02) for a, b in pairs)
    assert not any(p.requires_grad for p in again.parameters())
