"""The sizes of images that are scaled as they are read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from otkd.core.scaling import Scaled


@given(st.integers(1, 3000))
def test_resize_follows_side(side: int) -> None:
    """Truth: ImageNet's usual 256 for 224."""
    assert Scaled(side=side).resize == round(side * 256 / 224)
    assert Scaled(side=side) == Scaled(side=side, resize=Scaled(side=side).resize)


def test_usual_sizes() -> None:
    assert (Scaled().side, Scaled().resize) == (224, 256)
    assert Scaled(side=160).resize == 183
    assert Scaled(side=64, resize=64).resize == 64


@pytest.mark.parametrize("given", [{"side": 0}, {"side": "64"}, {"side": 64, "resize": 63}, {"resize": 100}])
def test_impossible_sizes(given: dict[str, object]) -> None:
    with pytest.raises(ValidationError) as caught:
        Scaled.model_validate(given)
    assert caught.value.error_count() == 1
