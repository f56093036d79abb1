"""CIFAR-10 and GTSRB in their real formats, tiny: pickles as Python 2 wrote them, PPM with tables, npz with JPEG."""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CIFAR_CLASSES = ("airplane", "automobile", "bird")
SIGN_CLASSES = (0, 1, 14)
GT_HEADER = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"


def python2_pickle(value: Any) -> bytes:
    """Protocol 2 as cPickle of Python 2 wrote it: byte strings everywhere, arrays by ``numpy.core.multiarray``."""
    return b"\x80\x02" + _python2(value) + b"."


def _python2(value: Any) -> bytes:
    if isinstance(value, str | bytes):
        raw = value.encode("latin1") if isinstance(value, str) else value
        return b"U" + bytes([len(raw)]) + raw if len(raw) < 256 else b"T" + struct.pack("<i", len(raw)) + raw
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, list):
        return b"](" + b"".join(map(_python2, value)) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(_python2(k) + _python2(v) for k, v in value.items()) + b"u"
    assert isinstance(value, np.ndarray)
    kind = value.dtype.str[1:]
    start = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    shape = b"(" + b"".join(_python2(side) for side in value.shape) + b"t"
    dtype = b"cnumpy\ndtype\n" + _python2(kind) + b"K\x00K\x01\x87R(K\x03U\x01|NNN" + _python2(-1) * 2 + b"K\x00tb"
    return start + b"(K\x01" + shape + dtype + b"\x89" + _python2(value.tobytes()) + b"tb"


def cifar_batch(name: str, count: int, seed: int) -> dict[str, Any]:
    """What a batch holds: image ``i`` has class ``i % 3``."""
    return {
        "batch_label": f"batch {name}",
        "labels": [i % 3 for i in range(count)],
        "data": np.random.default_rng(seed).integers(0, 256, (count, 3072)).astype(np.uint8),
        "filenames": [f"{name}_{i:06d}.png" for i in range(count)],
    }


def write_cifar10(root: Path, count: int = 6) -> dict[str, dict[str, Any]]:
    """``cifar-10-batches-py``: five batches and a test batch of ``count`` images; returns what they hold."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    batches = {name: cifar_batch(name, count, seed) for seed, name in enumerate(names)}
    meta = {"num_cases_per_batch": count, "label_names": list(CIFAR_CLASSES), "num_vis": 3072}
    for name, held in {**batches, "batches.meta": meta}.items():
        (folder / name).write_bytes(python2_pickle(held))
    return batches


def noise(width: int, height: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def write_gtsrb(root: Path, tracks: int = 4, frames: int = 3, tests: int = 6) -> None:
    """``gtsrb/`` as torchvision unpacks it: classes 0, 1 and 14; widths from 20, heights one more, margins 5 pixels."""
    base = root / "gtsrb"
    seed = 0
    for c in SIGN_CLASSES:
        folder = base / "GTSRB" / "Training" / f"{c:05d}"
        folder.mkdir(parents=True)
        lines = [GT_HEADER]
        for track in range(tracks):
            for frame in range(frames):
                name, width = f"{track:05d}_{frame:05d}.ppm", 20 + (seed % 7)
                Image.fromarray(noise(width, width + 1, seed)).save(folder / name)
                lines.append(f"{name};{width};{width + 1};5;6;{width - 5};{width - 5};{c}")
                seed += 1
        (folder / f"GT-{c:05d}.csv").write_text("\n".join(lines) + "\n")
    images = base / "GTSRB" / "Final_Test" / "Images"
    images.mkdir(parents=True)
    lines = [GT_HEADER]
    for index in range(tests):
        Image.fromarray(noise(24, 25, 1000 + index)).save(images / f"{index:05d}.ppm")
        lines.append(f"{index:05d}.ppm;24;25;5;5;19;20;{SIGN_CLASSES[index % 3]}")
    (base / "GT-final_test.csv").write_text("\n".join(lines) + "\n")


def write_packed(path: Path, images: list[np.ndarray], **fields: np.ndarray) -> None:
    """An npz file with JPEG files end to end."""
    files = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=92, subsampling=0)
        files.append(buffer.getvalue())
    offsets = np.cumsum([0, *map(len, files)])
    np.savez(path, jpeg=np.frombuffer(b"".join(files), np.uint8), offsets=offsets, **fields)


def write_packed_signs(root: Path, changes: Mapping[str, np.ndarray] | None = None) -> None:
    """The packed copy of GTSRB: classes 0, 1 and 14, four tracks of three frames each, six test images."""
    root.mkdir(parents=True, exist_ok=True)
    labels = np.repeat(np.array(SIGN_CLASSES, np.uint8), 12)
    fields = {
        "labels": labels,
        "track": np.repeat(np.arange(12, dtype=np.int32), 3),
        "roi_xyxy": np.tile(np.array([5.5, 6.4, 26.5, 26.7], np.float32), (36, 1)),
        "files": np.array([f"{c:05d}/{i // 3 % 4:05d}_{i % 3:05d}.ppm" for i, c in enumerate(labels)]),
    } | dict(changes or {})
    write_packed(root / "gtsrb32_train_jpeg.npz", [noise(32, 32, i) for i in range(36)], **fields)
    fields = {
        "labels": np.array([0, 1, 14] * 2, np.uint8),
        "track": np.full(6, -1, np.int32),
        "roi_xyxy": np.tile(np.array([4, 4, 28, 28], np.float32), (6, 1)),
        "files": np.array([f"{i:05d}.ppm" for i in range(6)]),
    }
    write_packed(root / "gtsrb32_test_jpeg.npz", [noise(32, 32, 100 + i) for i in range(6)], **fields)
