"""ImageNet (Russakovsky et al., IJCV 2015), as in the challenge of 2012: 1,331,167 photographs in 1000 classes.

Read where it lies, in one of the usual layouts: training images in `train/<class>/`; the 50,000 for validation, which
serve as the test set, in `val/<class>/`, or all in `val/` with the challenge's development kit or Kaggle's
`LOC_val_solution.csv` beside them. Labels follow the order of the classes' names (n01440764, …), as the weights of
torchvision expect. Its licence allows no download without an account.
"""

from __future__ import annotations

import csv
import os
import re
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np

from otkd.core.augment import Augment, ResizedCrop
from otkd.core.cards import DataCard
from otkd.core.datasets import Request
from otkd.core.errors import DataError
from otkd.core.scaling import IMAGENET_MEAN, IMAGENET_STD, Scaled
from otkd.data.listing import File, Listing, Scan, digest, labelled, listed
from otkd.data.source import EncodedSplits


class Options(Scaled):
    """How the images are scaled."""


def card(options: Options) -> DataCard:
    """ImageNet, scaled as the options say."""
    return replace(CARD, side=options.side, resize=options.resize)


CARD = DataCard(
    classes=1000,
    channels=3,
    side=224,
    train=1_281_167,
    test=50_000,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    augment=Augment(resized_crop=ResizedCrop(), flip=True),
    about="1.3 million photographs in 1000 classes, from a folder of yours; streamed",
    streamed=True,
    resize=256,
)

FOLDERS = ("imagenet", "ILSVRC2012", "ILSVRC/Data/CLS-LOC", "imagenet/ILSVRC/Data/CLS-LOC", "")
"""Where it may lie below the data folder."""
DEVKIT = "ILSVRC2012_devkit_t12"
SOLUTION = "LOC_val_solution.csv"
WNID = re.compile(r"n\d{8}")
"""A class's name: its number in WordNet."""


def sources(request: Request) -> list[Path]:
    """Both folders of images, and the file that says which class the validation images have, where one is needed."""
    root = _root(request.data_dir)
    if root is None:
        return []
    truth = [] if _has_classes(root / "val") else [path for path in _truths(root) if os.path.exists(path)][:1]
    return [root / "train", root / "val", *truth]


def index(request: Request) -> EncodedSplits:
    """Every image file.

    Raises:
        DataError: ImageNet is not there, or not whole; says how to get it, or what is missing.
    """
    root = _root(request.data_dir)
    if root is None:
        raise DataError(_ways_out(request.data_dir))
    if not os.path.isdir(root / "val"):
        raise DataError(_ways_out(request.data_dir, f"{root} has train and no val, the images to test on"))
    listing = listed(request._replace(options=Options()), root, _scanned)
    return EncodedSplits(listing.train, listing.test)


def _root(data_dir: Path | None) -> Path | None:
    if data_dir is None:
        return None
    return next((root for root in map(data_dir.joinpath, FOLDERS) if _has_classes(root / "train")), None)


def _has_classes(folder: Path) -> bool:
    try:
        return any(WNID.fullmatch(item.name) and item.is_dir() for item in folder.iterdir())
    except OSError:
        return False


def _scanned(root: Path) -> Listing:
    scan = Scan(root)
    scan.entries(root)
    train_found = scan.by_class("train")
    test_found = scan.by_class("val") if _has_classes(root / "val") else _by_truth(scan)
    classes = tuple(train_found)
    strange = [name for name in classes if not WNID.fullmatch(name)]
    if strange or len(classes) != CARD.classes:
        other = f", {strange[0]} for one, which is no class of ImageNet" if strange else ""
        raise DataError(f"{root / 'train'}: has {len(classes)} folders{other}; it should have {CARD.classes}.")
    return Listing(
        classes,
        labelled(root, "train", train_found, classes),
        labelled(root, "val", test_found, classes),
        digest(chain(*train_found.values(), *test_found.values())),
        scan.stamps,
    )


def _by_truth(scan: Scan) -> dict[str, list[File]]:
    """The images of `val/` by class, as the first list that is there says."""
    files = scan.images(scan.root / "val")
    truth = next((path for path in _truths(scan.root) if os.path.exists(path)), None)
    if truth is None:
        raise DataError(
            f"{scan.root / 'val'}: has no class folders (val/n01440764/…), and nothing says which class an image "
            f"has: put {DEVKIT} (unpacked from its archive, from image-net.org) or {SOLUTION} (from Kaggle) into "
            f"{scan.root}."
        )
    class_of = _solution(truth, scan) if truth.name == SOLUTION else _devkit(truth, scan)
    found: dict[str, list[File]] = {}
    for file in files:
        name = Path(file.path).stem
        if name not in class_of:
            raise DataError(f"{scan.root / file.path}: {truth} has no class for it. Is it an image of ImageNet?")
        found.setdefault(class_of[name], []).append(file)
    return dict(sorted(found.items()))


def _truths(root: Path) -> list[Path]:
    """Where lists of the validation images' classes may lie: with the images, or beside Kaggle's `ILSVRC`."""
    return [*(folder / DEVKIT for folder in (root, root.parent)), *(f / SOLUTION for f in (root, *root.parents[:3]))]


def _solution(file: Path, scan: Scan) -> dict[str, str]:
    """Image → class from Kaggle's list, whose second column is `<class> <box>` or several of these."""
    try:
        scan.stamps[str(file)] = file.stat().st_mtime_ns
        with file.open(newline="", encoding="utf-8") as stream:
            return {row["ImageId"]: row["PredictionString"].split()[0] for row in csv.DictReader(stream)}
    except (OSError, ValueError, KeyError, AttributeError, IndexError, csv.Error) as error:
        raise DataError(
            f"{file}: no list of ImageId, PredictionString as Kaggle's ({error!r}). Get the file anew."
        ) from error


def _devkit(folder: Path, scan: Scan) -> dict[str, str]:
    """Image → class from the development kit: the n-th line of its list is the number of the n-th image's class."""
    meta, numbers = folder / "data" / "meta.mat", folder / "data" / "ILSVRC2012_validation_ground_truth.txt"
    try:
        for file in (meta, numbers):
            scan.stamps[str(file)] = file.stat().st_mtime_ns
        wnids, lines = _wnids(meta), numbers.read_text(encoding="ascii").split()
        return {f"ILSVRC2012_val_{place:08d}": wnids[int(line)] for place, line in enumerate(lines, 1)}
    except Exception as error:  # a damaged .mat fails in whatever way its bytes happen to say
        raise DataError(
            f"{folder}: cannot read {meta.name} and {numbers.name} in its folder data ({error!r}). Unpack the archive "
            "anew."
        ) from error


def _wnids(meta: Path) -> dict[int, str]:
    """The challenge's number of a class → its name; synsets with children are no classes."""
    from scipy.io import loadmat

    synsets = np.atleast_1d(loadmat(str(meta), squeeze_me=True)["synsets"])
    return {int(s["ILSVRC2012_ID"]): str(s["WNID"]) for s in synsets if int(s["num_children"]) == 0}


def _ways_out(data_dir: Path | None, what: str = "") -> str:
    looked = f"below {data_dir}" if data_dir else "(no data folder was named)"
    lacking = what or f"no images {looked}"
    return (
        f"imagenet: {lacking}. Its licence allows no download by otkd; get it with an account from "
        "image-net.org (ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar, ILSVRC2012_devkit_t12.tar.gz) or from Kaggle "
        "(imagenet-object-localization-challenge), unpack it, and name the data folder (--data-dir folder, DATA=folder "
        "for make, or OTKD_DATA_DIR=folder) that has\n"
        "  - imagenet/train/n01440764/*.JPEG and so on for every class, and\n"
        "  - imagenet/val/n01440764/*.JPEG and so on, or all of them in imagenet/val/ with\n"
        f"    imagenet/{DEVKIT}/ (unpacked) or imagenet/{SOLUTION} beside it.\n"
        f"Other names of that folder: {', '.join(filter(None, FOLDERS[1:]))}, or the data folder itself.\n"
        "To try things out: folder/imagenette2-160, a small part of it, or `make demo`, which needs no data."
    )
