from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from megavideo.encoders.text.bytes_text import BytesTextEncoder
from megavideo.errors import ConfigError


@pytest.fixture
def encoder() -> BytesTextEncoder:
    return BytesTextEncoder(128, 32)


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.cosine_similarity(a, b, dim=0))


def test_shape_and_scale(encoder: BytesTextEncoder) -> None:
    text, empty = encoder.encode(["A red square, moving right.", ""])
    assert text.shape == (8, 128) and empty.shape == (1, 128)
    assert text.dtype == torch.float32
    assert (text.square().mean(dim=1).sqrt() - 1.0).abs().max() < 0.1
    assert encoder.count_tokens("A red square, moving right.") == 8
    assert encoder.count_tokens("") == 1


def test_a_word_is_the_same_wherever_it_stands(encoder: BytesTextEncoder) -> None:
    first, second = encoder.encode(["red square", "the big Red square"])
    assert cosine(first[0], second[2]) > 0.98
    assert torch.equal(encoder.encode(["red"])[0], encoder.encode(["RED"])[0])


def test_words_are_told_apart_and_stems_are_near(encoder: BytesTextEncoder) -> None:
    words = ["red", "green", "blue", "yellow", "circle", "square", "triangle", "left", "right", "up", "down"]
    vectors = [encoder.encode([word])[0][0] for word in words]
    far = [cosine(a, b) for i, a in enumerate(vectors) for b in vectors[:i]]
    assert max(far) < 0.5
    near = [encoder.encode([word])[0][0] for word in ("moves", "moving")]
    assert cosine(*near) > np.mean(far) + 0.05


def test_long_captions_keep_the_end(encoder: BytesTextEncoder) -> None:
    caption = "word " * 100
    cut = encoder.encode([caption])[0]
    assert cut.shape[0] == 32 and encoder.count_tokens(caption) == 101
    assert cosine(cut[-1], encoder.encode([""])[0][0]) > 0.97
    assert BytesTextEncoder(128, 1).encode([caption])[0].shape == (1, 128)


def test_other_scripts(encoder: BytesTextEncoder) -> None:
    assert encoder.encode(["红色方块"])[0].shape[0] == 5
    # Composed and decomposed letters are one.
    assert torch.equal(encoder.encode(["\u00e9t\u00e9"])[0], encoder.encode(["e\u0301te\u0301"])[0])


def test_fixed_on_every_machine_and_run(encoder: BytesTextEncoder) -> None:
    code = (
        "import hashlib; from megavideo.encoders.text.bytes_text import BytesTextEncoder as B;"
        "x = B(64, 32).encode(['a red square, moving'])[0].numpy();"
        "print(hashlib.sha256((x * 1000).round().astype('int32').tobytes()).hexdigest())"
    )
    here = BytesTextEncoder(64, 32).encode(["a red square, moving"])[0].numpy()
    expected = hashlib.sha256((here * 1000).round().astype("int32").tobytes()).hexdigest()
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == expected
    # Frozen: a change here would make every dataset's captions unreadable to its models.
    assert (here[1, :4] * 1000).round().astype(int).tolist() == FROZEN


FROZEN = [937, -447, 906, 218]


def test_save_and_load(encoder: BytesTextEncoder, tmp_path: Path) -> None:
    encoder.save(tmp_path)
    loaded = BytesTextEncoder.load(tmp_path)
    assert torch.equal(loaded.encode(["blue circle"])[0], encoder.encode(["blue circle"])[0])
    assert BytesTextEncoder(12, 4).encode(["odd width"])[0].shape == (3, 12)
    with pytest.raises(ConfigError, match=r"text_encoder.dim=4"):
        BytesTextEncoder(4, 4)
