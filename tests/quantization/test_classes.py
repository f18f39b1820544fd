from __future__ import annotations

from typing import Any

import pytest
from diffusers import DiTTransformer2DModel, UNet2DModel

from dq_deploy.errors import UsageError
from dq_deploy.quantization.calibration.classes import ClassSpace, class_space, parse_classes
from tests.tiny import tiny_unet
from tests.tiny_pipelines import tiny_dit


def test_numbers_and_ranges() -> None:
    assert parse_classes("0-3, 7,5-5") == [0, 1, 2, 3, 7, 5]


@pytest.mark.parametrize("text", ["", "1,", "a", "3-1", "-1", "1-", "1.5"])
def test_what_is_no_list_of_classes(text: str) -> None:
    with pytest.raises(UsageError, match=f"such as 0-9,3, not '{text}'"):
        parse_classes(text)


def test_spaces_of_diffusers_models() -> None:
    dit: Any = tiny_dit()
    assert isinstance(dit, DiTTransformer2DModel)
    assert class_space(dit, dit.config) == ClassSpace(5, null=5)
    # The row of the null class is really there.
    assert dit.transformer_blocks[0].norm1.emb.class_embedder.embedding_table.num_embeddings == 6
    unet: UNet2DModel = tiny_unet(num_class_embeds=7)
    assert class_space(unet, unet.config) == ClassSpace(7, null=None)
    assert class_space(tiny_unet(), tiny_unet().config) is None
    embedded = tiny_unet(class_embed_type="identity")
    assert class_space(embedded, embedded.config) is None


def test_classes_default_to_all_and_must_exist() -> None:
    space = ClassSpace(4, null=4)
    assert space.choose(None) == [0, 1, 2, 3]
    assert space.choose("2-3") == space.choose([2, 3]) == [2, 3]
    with pytest.raises(UsageError, match="no class 4, 9: the model has classes 0 to 3\nthe null class is calibrated with a guidance scale"):
        space.choose("3-4,9")
    with pytest.raises(UsageError, match="no class -1: the model has classes 0 to 3"):
        space.choose([-1])
    with pytest.raises(UsageError, match="no class is given"):
        space.choose([])
    with pytest.raises(UsageError, match="the model has no null class"):
        ClassSpace(4, null=None).null_conditions()
