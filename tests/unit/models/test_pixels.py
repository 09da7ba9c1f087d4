"""Images as a pretrained model was trained on them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rayfed.errors import ConfigError
from rayfed.models import pixels
from tests.configs import refusal
from tests.tiny import make_places, make_vit
from tests.unit.adapters.kinds import resident


@pytest.fixture
def places(spread_places: dict[str, Path]) -> dict[str, Path]:
    return spread_places


def processed(tmp_path: Path, channels: int, **says: Any) -> Callable[[tuple[int, ...]], tuple[Any, Any, Any]]:
    """(our pixels for images of a shape, transformers' processor, its settings) of a folder."""
    from types import SimpleNamespace

    # Not from transformers itself, whose older releases ask for torchvision first.
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    settings = {
        "image_processor_type": "ViTImageProcessor", "do_resize": True, "size": {"height": 12, "width": 12}, "resample": 2,
        "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.4, 0.5, 0.6],
        "image_std": [0.2, 0.3, 0.4], **says,
    }  # fmt: skip
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    about = SimpleNamespace(num_channels=channels, image_size=12)
    return lambda shape: (
        pixels.build(about, settings, shape, "m"),
        AutoImageProcessor.from_pretrained(tmp_path),
        settings,
    )


CROP = {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 14}, "do_center_crop": True,
        "crop_size": {"height": 12, "width": 12}}  # fmt: skip


@pytest.mark.parametrize(
    "says", [{}, {"resample": 3}, {**CROP, "resample": 3}, CROP], ids=["bilinear", "bicubic", "crop3", "crop2"]
)
@pytest.mark.parametrize("size", [(8, 8), (12, 12), (28, 20), (17, 40)])
def test_pixels_are_those_of_transformers_processor(
    tmp_path: Path, says: dict[str, Any], size: tuple[int, int]
) -> None:
    """But for its rounding to whole grey levels, once in each direction."""
    ours, theirs, settings = processed(tmp_path, 3, **says)((3, *size))
    x = np.random.default_rng(0).integers(0, 256, (3, *size)).astype(np.uint8)
    want = torch.as_tensor(np.asarray(theirs(x.transpose(1, 2, 0), return_tensors="np")["pixel_values"]))
    got = ours(torch.as_tensor(x / 255.0)[None])
    assert got.shape == want.shape
    levels = ((got - want) * 255 * torch.tensor(settings["image_std"])[:, None, None]).abs().max()
    assert levels < (1e-3 if size == (12, 12) and not says.get("do_center_crop") else 2.1)


@pytest.mark.parametrize("how", [2, 3])
@pytest.mark.parametrize("n", [5, 8, 28, 40])
def test_resizing_is_pillows(n: int, how: int) -> None:
    from PIL import Image

    x = np.random.default_rng(n).random((n, n + 3)).astype(np.float32)
    want = np.asarray(Image.fromarray(x).resize((16, 12), resample=how))
    rows, columns = pixels._resize(n, 12, pixels.FILTERS[how]), pixels._resize(n + 3, 16, pixels.FILTERS[how])
    np.testing.assert_allclose((rows @ torch.as_tensor(x).double() @ columns.T).numpy(), want, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_logits_of_other_sizes_and_channels_are_transformers(tmp_path: Path, channels: int) -> None:
    """Digits of 8x8 and one channel to a ViT of 12x12: Pillow resizes, the folder's processor normalises, the plain model reads."""
    from PIL import Image
    from transformers import AutoModelForImageClassification
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    folder = tmp_path / "m"
    make_vit(folder, image_size=12, num_channels=channels)
    processed(folder, channels, image_mean=[0.3] * channels, image_std=[0.2] * channels)
    res = resident({**make_places(tmp_path), "vit": folder}, "vit", {"kind": "full"})
    params, x = res.task.fresh_params(0), res.data["x"][:7]
    big = np.stack([np.asarray(Image.fromarray(i[0].numpy()).resize((12, 12), resample=2)) for i in x])
    given = AutoImageProcessor.from_pretrained(folder)(
        [np.repeat(i[..., None], channels, -1) for i in big], do_resize=False, do_rescale=False, return_tensors="pt",
        input_data_format="channels_last",
    )  # fmt: skip
    plain = AutoModelForImageClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        for n, p in plain.named_parameters():
            p.copy_(params[f"network.{n}"])
        want = plain(**given).logits
    torch.testing.assert_close(res.task.apply(params, x), want, rtol=0, atol=1e-4)
    assert float(want.std()) > 0.1


def test_images_that_cannot_be_reconciled(tmp_path: Path, places: dict[str, Path]) -> None:
    def problem(shape: tuple[int, ...], channels: int = 3, **says: Any) -> str:
        return refusal(lambda: processed(tmp_path, channels, **says)(shape))

    assert "takes images of 3 channels, those of task.data have 2; allowed: 1 or 3" in problem((2, 8, 8))
    assert "takes images of 1 channel, those of task.data have 3; allowed: 1" in problem((3, 8, 8), 1)
    assert "makes images of 20x20, its config.json takes 12x12" in problem((3, 8, 8), size={"height": 20, "width": 20})
    assert "needs images, task.data has examples of shape (8,)" in problem((8,))
    assert "resample 1 found, allowed: 2 (bilinear), 3 (bicubic)" in problem((3, 8, 8), resample=1)
    assert "image_mean has 3 values, the model 1 channels" in problem((1, 8, 8), 1)
    assert "crop_size 12 found, the resized images have 10" in problem(
        (3, 8, 8), **{**CROP, "size": {"shortest_edge": 10}}
    )
    broken = tmp_path / "broken"
    shutil.copytree(places["vit"], broken)
    (broken / "preprocessor_config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"preprocessor_config.json is not readable"):
        resident({**places, "vit": broken}, "vit", {"kind": "head"})
