"""Streamed images: decoded and cut as torchvision does, in order, by any number of processes, whatever befalls them."""

import io
import itertools
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from otkd.core.augment import Augment, ResizedCrop
from otkd.core.cards import DataCard
from otkd.core.errors import DataError
from otkd.data import stream
from otkd.data.crops import boxes
from otkd.data.decode import LONGEST, decode, reason
from otkd.data.stores import Pixels, Want
from otkd.data.stream import Streamed, central

CARD = DataCard(
    classes=5,
    channels=3,
    side=13,
    train=23,
    test=0,
    mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.25, 0.3),
    augment=Augment(),
    about="made up",
    streamed=True,
    resize=17,
)
CROP = ResizedCrop()


class InMemory:
    """Encoded images in a list; counts how often they are read."""

    def __init__(self, files: list[bytes | OSError]) -> None:
        self.files, self.reads = files, 0
        self.labels = np.arange(len(files)) % 5

    def read(self, row: int) -> bytes:
        self.reads += 1
        file = self.files[row]
        if isinstance(file, OSError):
            raise file
        return file

    def where(self, row: int) -> str:
        return f"pictures/{row}.jpg"


def picture(seed: int, width: int = 31, height: int = 47, mode: str = "RGB") -> Image.Image:
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.frombytes(mode, (width, height), pixels.tobytes())


def encode(image: Image.Image, kind: str = "JPEG") -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def files(count: int = 23) -> list[bytes | OSError]:
    """Images of as many different sizes."""
    return [encode(picture(row, 20 + row, 41 - row)) for row in range(count)]


GOOD = files()


def streamed(
    contents: list[bytes | OSError] | None = None,
    *,
    workers: int = 0,
    skip: int = 0,
    card: DataCard = CARD,
    crop: ResizedCrop | None = CROP,
) -> Streamed:
    encoded = InMemory(GOOD if contents is None else contents)
    return Streamed(encoded, card, crop, device=torch.device("cpu"), workers=workers, skip=skip)


def draws(count: int, seed: int = 0) -> Tensor:
    return torch.rand((count, 22), generator=torch.Generator().manual_seed(seed))


def wants(*rows: list[int], crops: bool = True) -> list[Want]:
    return [Want(torch.tensor(each), draws(len(each), step) if crops else None) for step, each in enumerate(rows)]


def shuffled(batch: int = 5, count: int = 23) -> list[Want]:
    return wants(*(part.tolist() for part in torch.randperm(count, generator=torch.Generator()).split(batch)))


def endless(rows: int = 23) -> Iterator[Want]:
    return (Want(torch.tensor([step % rows, (step + 7) % rows])) for step in itertools.count())


def stack(pictures: list[Image.Image]) -> Tensor:
    return torch.stack([TF.pil_to_tensor(each) for each in pictures]).permute(0, 2, 3, 1)


def eventually(condition: Callable[[], bool], seconds: float = 10) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def childless() -> bool:
    return not multiprocessing.active_children()


# Pixels


@given(
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    side=st.integers(1, 40),
    more=st.integers(0, 20),
    mode=st.sampled_from(["RGB", "L"]),
)
def test_central_is_torchvisions(size: tuple[int, int], side: int, more: int, mode: str) -> None:
    image = picture(0, *size, mode)
    expected = TF.center_crop(TF.resize(image, [side + more]), [side, side])
    assert central(image, side + more, side).tobytes() == expected.tobytes()


def test_whole_images() -> None:
    (made,) = streamed().batches(wants([3, 22, 0], crops=False))
    opened = [Image.open(io.BytesIO(GOOD[row])) for row in (3, 22, 0)]
    assert torch.equal(made.pixels_BHWC, stack([central(image, 17, 13) for image in opened]))
    assert made.pixels_BHWC.dtype == torch.uint8
    assert made.kept_B is None


def test_crops_are_torchvisions() -> None:
    """Truth: torchvision's crop of the PIL image, where the draws say."""
    rows = [3, 22, 0, 11]
    (made,) = streamed(crop=ResizedCrop(scale=(0.2, 0.7))).batches(wants(rows))
    expected = []
    for place, row in enumerate(rows):
        image = Image.open(io.BytesIO(GOOD[row]))
        box = boxes(draws(4)[place : place + 1], ResizedCrop(scale=(0.2, 0.7)), image.height, image.width)
        expected.append(TF.resized_crop(image, *box[0].tolist(), size=[13, 13]))
    assert torch.equal(made.pixels_BHWC, stack(expected))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK"])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_kind_of_image_in_grey_or_colour(mode: str, channels: int) -> None:
    image = picture(1).convert(mode)
    encoded = encode(image, "TIFF" if mode == "CMYK" else "PNG")
    card = replace(CARD, channels=channels)
    (made,) = streamed([encoded] * 2, card=card).batches(wants([1, 0], crops=False))
    expected = stack([central(image.convert("L" if channels == 1 else "RGB"), 17, 13)] * 2)
    assert torch.equal(made.pixels_BHWC, expected)


def test_views_are_decoded_once_and_cut_anew() -> None:
    store = streamed()
    (made,) = store.batches(wants([4, 4, 4, 9, 9]))
    assert store.encoded.reads == 2
    one, other = made.pixels_BHWC[0], made.pixels_BHWC[1]
    assert not torch.equal(one, other)
    (alone,) = store.batches([Want(torch.tensor([4]), draws(5)[1:2])])
    assert torch.equal(alone.pixels_BHWC[0], other)


def test_card_must_scale_to_more_than_it_cuts() -> None:
    with pytest.raises(DataError, match="scaled to 12 pixels, and 13 are to be cut"):
        streamed(card=replace(CARD, resize=12))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("workers", [0, 1])
def test_pixels_reach_the_gpu(workers: int) -> None:
    encoded = InMemory([*GOOD[:-1], b"broken"])
    store = Streamed(encoded, CARD, CROP, device=torch.device("cuda"), workers=workers, skip=1)
    made, expected = list(store.batches(shuffled())), list(streamed(encoded.files, skip=1).batches(shuffled()))
    assert all(pixels.pixels_BHWC.is_cuda for pixels in made)
    for one, other in zip(made, expected, strict=True):
        assert torch.equal(one.pixels_BHWC.cpu(), other.pixels_BHWC)
        assert one.kept_B is None or torch.equal(one.kept_B, other.kept_B)


# Processes


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing(workers: int) -> None:
    spoilt = [*GOOD[:5], b"broken", *GOOD[6:]]
    state = torch.get_rng_state()
    alone, shared = (list(streamed(spoilt, workers=n, skip=1).batches(shuffled())) for n in (0, workers))
    assert [len(made.pixels_BHWC) for made in alone].count(4) == 1
    for one, other in zip(alone, shared, strict=True):
        assert torch.equal(one.pixels_BHWC, other.pixels_BHWC)
        assert (one.kept_B is None) == (other.kept_B is None)
        assert one.kept_B is None or torch.equal(one.kept_B, other.kept_B)
    assert torch.equal(torch.get_rng_state(), state)
    assert childless()


@pytest.mark.parametrize("workers", [0, 2])
def test_wants_are_asked_for_as_they_are_needed(workers: int) -> None:
    asked = itertools.count()
    made = streamed(workers=workers).batches(want for want in endless() if next(asked) >= 0)
    for _ in range(5):
        next(made)
    made.close()
    assert next(asked) <= 5 + 2 * workers


@pytest.mark.parametrize("end", ["close", "forget", "unreadable"])
def test_no_process_outlives_its_batches(end: str) -> None:
    made = streamed([*GOOD[:4], b"broken", *GOOD[5:]], workers=2).batches(endless())
    next(made)
    assert len(multiprocessing.active_children()) == 2
    if end == "close":
        made.close()
    elif end == "forget":
        del made
    else:
        with pytest.raises(DataError, match="unreadable"):
            list(made)
    assert eventually(childless)


class Slow(InMemory):
    """Takes its time, so that a process can be met at work."""

    def read(self, row: int) -> bytes:
        time.sleep(0.05)
        return super().read(row)


def test_a_killed_process_is_told() -> None:
    store = Streamed(Slow(GOOD), CARD, CROP, device=torch.device("cpu"), workers=2, skip=0)
    before = signal.getsignal(signal.SIGCHLD)
    made = store.batches(endless())
    next(made)
    victim = multiprocessing.active_children()[-1]
    os.kill(victim.pid, signal.SIGKILL)
    assert eventually(lambda: not victim.is_alive())  # nothing is raised here, in the middle of other work
    assert signal.getsignal(signal.SIGCHLD) is before
    with pytest.raises(DataError, match=r"a process that decodes images has ended .*fewer workers") as told:
        list(itertools.islice(made, 20))
    assert told.value.__cause__ is told.value.__context__ is None
    assert eventually(childless)


def test_errors_of_the_asker_pass_where_there_are_no_processes() -> None:
    def failing() -> Iterator[Want]:
        yield from wants([1, 2])
        raise RuntimeError("asker")

    with pytest.raises(RuntimeError, match="asker"):
        list(streamed().batches(failing()))


def test_beside_the_main_thread() -> None:
    made: list[Pixels] = []
    thread = threading.Thread(target=lambda: made.extend(streamed(workers=1).batches(shuffled())))
    thread.start()
    thread.join(30)
    assert len(made) == len(shuffled())


# Unreadable images


def deep() -> bytes:
    return encode(Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30)), "PNG")


BROKEN: dict[str, tuple[bytes | OSError, str]] = {
    "truncated": (GOOD[0][: len(GOOD[0]) // 2], "truncated"),
    "garbage": (b"no picture at all", "it is none of JPEG, PNG"),
    "empty": (b"", "it is none of JPEG, PNG"),
    "gone": (FileNotFoundError(2, "No such file", "x.jpg"), "No such file: 'x.jpg'"),
    "another kind": (encode(picture(0), "TGA"), "it is none of JPEG, PNG"),
    "deep": (deep(), "more than 8 bits"),
    "long": (encode(picture(0, LONGEST + 1, 1)), f"{LONGEST + 1} × 1 pixels, too long"),
}


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", BROKEN)
def test_first_unreadable_image_ends_it(kind: str, workers: int) -> None:
    content, why = BROKEN[kind]
    spoilt = [*GOOD[:5], content, *GOOD[6:]]
    with pytest.raises(DataError) as told:
        list(streamed(spoilt, workers=workers).batches(shuffled()))
    for part in ("pictures/5.jpg: unreadable", why, "otkd data verify", "data: {skip: N}"):
        assert part in str(told.value)


def test_long_images_are_read_up_to_a_limit() -> None:
    assert decode(encode(picture(0, LONGEST, 1)), 3).size == (LONGEST, 1)


def test_bombs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match="decompression bomb"):
        list(streamed().batches(shuffled()))


def test_reasons_are_never_empty() -> None:
    assert reason(MemoryError()) == "MemoryError()"


def test_what_is_left(caplog: pytest.LogCaptureFixture) -> None:
    spoilt = [b"broken" if row in (2, 9) else file for row, file in enumerate(GOOD)]
    first, second, third = streamed(spoilt, skip=2).batches(wants([9, 4, 2, 7], [1, 3], [5, 6]))
    assert first.kept_B.tolist() == [1, 3]
    assert first.kept_B.dtype == torch.int64
    assert second.kept_B is third.kept_B is None
    (whole, _, _) = streamed().batches(wants([9, 4, 2, 7], [1, 3], [5, 6]))
    assert torch.equal(first.pixels_BHWC, whole.pixels_BHWC[[1, 3]])
    told = [record.getMessage() for record in caplog.records if record.name.startswith("otkd")]
    assert [message.partition(":")[0] for message in told] == ["pictures/9.jpg", "pictures/2.jpg"]


def test_one_more_ends_it_and_every_pass_counts_anew() -> None:
    spoilt = [b"broken" if row in (0, 8, 16) else file for row, file in enumerate(GOOD)]
    store = streamed(spoilt, skip=2)
    for _ in range(2):
        assert len(list(store.batches(wants([0, 1, 2], [7, 8, 9])))) == 2
    with pytest.raises(DataError, match=r"pictures/16.jpg.*2 before it have been left out"):
        list(store.batches(wants([0, 1, 2], [7, 8, 9], [15, 16, 17])))


def test_views_of_an_unreadable_image_count_once() -> None:
    (made,) = streamed([b"broken", *GOOD[1:]], skip=1).batches(wants([3, 3, 0, 0, 2, 2]))
    assert made.kept_B.tolist() == [0, 1, 4, 5]


@pytest.mark.parametrize(("rows", "left"), [([0, 3], [1]), ([0, 1], []), ([0], [])])
def test_few_or_none_of_a_batch_may_be_left(rows: list[int], left: list[int]) -> None:
    (made,) = streamed([b"broken", b"broken", *GOOD[2:]], skip=9).batches(wants(rows))
    assert made.kept_B.tolist() == left
    assert made.pixels_BHWC.shape == (len(left), 13, 13, 3)


def test_a_single_image_that_can_be_read_is_enough() -> None:
    (made,) = streamed().batches(wants([3]))
    assert made.pixels_BHWC.shape == (1, 13, 13, 3)


def test_only_some_are_told_one_by_one(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "otkd"):
        list(streamed([b"broken"] * 15 + GOOD[15:], skip=15).batches(wants(list(range(23)))))
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == stream.TOLD + 1
    assert "more unreadable images" in told[-1]
