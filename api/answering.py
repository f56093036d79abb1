"""Answer many images into one file or onto the terminal: which images, line by line, and what if it is stopped."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from vitrarium.answers import Form, other_command
from vitrarium.configs.errors import Interrupted, UserError
from vitrarium.data.files import SUFFIXES
from vitrarium.models.classifier import TransparentClassifier
from vitrarium.predicting import Answered, predict_batches

STDIN = "-"


def image_paths(given: Sequence[str]) -> Iterator[str]:
    """Image files as they are needed: files as named, folders with all below them in the order of their names.

    Hidden files and folders are skipped, so is what has no ending of an image; links to folders are not followed. A
    single ``-`` reads paths from standard input, one a line.

    Raises:
        UserError: at once for a path that does not exist, a folder without images, ``-`` beside others.
    """
    if STDIN in given:
        if len(given) > 1:
            raise UserError(f"'{STDIN}' stands beside other paths", f"give '{STDIN}' alone, or paths")
        return _lines(sys.stdin)
    for path in given:
        if not Path(path).exists():
            raise UserError(f"image '{path}' does not exist or is no file", "check the path")
        if Path(path).is_dir() and next(_below(path), None) is None:
            raise UserError(f"the folder '{path}' holds no image", f"endings: {', '.join(sorted(SUFFIXES))}")
    return (image for path in given for image in (_below(path) if Path(path).is_dir() else [path]))


def _lines(stream: TextIO) -> Iterator[str]:
    if isinstance(stream, io.TextIOWrapper):
        # Names of files are bytes; those that are no text come through unharmed.
        stream.reconfigure(errors="surrogateescape")
    return (line.rstrip("\r\n") for line in stream if line.strip())


def _below(folder: str) -> Iterator[str]:
    """Images of a folder; only the names of the folders on the way are held."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"the folder '{folder}' cannot be read ({error.strerror})", "check its permissions") from error
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _below(entry.path)
        elif Path(entry.name).suffix.lower() in SUFFIXES and entry.is_file():
            yield entry.path


@dataclass
class Tally:
    """What came of many images.

    Attributes:
        images: how many.
        failed: how many could not be read.
    """

    images: int = 0
    failed: int = 0

    def add(self, answered: Answered) -> None:
        """Count some more."""
        self.images += len(answered.images)
        self.failed += sum(error is not None for error in answered.errors)


def answer_paths(
    model: TransparentClassifier,
    images: Iterator[str],
    form: Form,
    out: str | Path | None = None,
    resume: bool = False,
    **options: Any,
) -> Tally:
    """Answer images into a file, or else onto standard output; on a terminal they are counted meanwhile.

    Args:
        model: any classifier.
        images: paths.
        form: of the lines.
        out: the file, see :func:`write_answers`.
        resume: see there.
        options: of :func:`vitrarium.predicting.predict_batches`.
    """

    def answer(wanted: Iterable[str]) -> Iterator[Answered]:
        return predict_batches(model, wanted, contributions="contributions" in form.columns, **options)

    if out is None:
        tally = print_answers(form, answer(images))
    else:
        with counting() as progress:
            tally = write_answers(Path(out), form, images, answer, resume, progress, maker(model, options.get("do")))
    if tally.failed:
        where = "their lines say" if out is None else f"the column error of '{out}' says"
        sys.stderr.write(f"vitrarium: {tally.failed:,} of {tally.images:,} images could not be read; {where} why\n")
    return tally


def maker(model: TransparentClassifier, do: Any = None) -> str:
    """What decides the answers, as a hash: weights and buffers, threshold, names and corrections."""
    known = (type(model).__qualname__, model.class_names, model.evidence.units.names, model.abstention, do)
    total = hashlib.sha256(repr(known).encode())
    for name, tensor in sorted(model.state_dict().items()):
        total.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()


def print_answers(form: Form, batches: Iterable[Answered]) -> Tally:
    """Lines on standard output, each batch as soon as it is answered."""
    tally = Tally()
    sys.stdout.write(form.head())
    for answered in batches:
        tally.add(answered)
        sys.stdout.write(form.lines(answered))
        sys.stdout.flush()
    return tally


def write_answers(
    out: Path,
    form: Form,
    images: Iterator[str],
    answer: Callable[[Iterator[str]], Iterable[Answered]],
    resume: bool = False,
    progress: Callable[[int], None] | None = None,
    made_by: str = "",
) -> Tally:
    """Write a file line by line as ``<out>.part``, which takes its name when all is done.

    Beside it lies ``<out>.part.by``, which says what made its lines: those of two models are never joined.

    Args:
        out: the file; older answers in it are replaced at the end, anything else is refused.
        form: of the lines.
        images: what is to be answered.
        answer: from images to answers.
        resume: go on behind the lines of an unfinished file; its images must be the first of ``images``.
        progress: called with the number of lines written so far.
        made_by: what :func:`maker` says; an unfinished file is gone on with only if it says the same.

    Raises:
        UserError: an unfinished file that nobody said to resume, or one of another command; a full disk. The lines so
            far stay.
        Interrupted: by Ctrl-C; the lines so far stay.
    """
    part, tally = out.with_name(out.name + ".part"), Tally()
    try:
        _take_up(out, part, form, images, resume, made_by, tally)
        out.parent.mkdir(parents=True, exist_ok=True)
        _by(part).write_text(made_by, encoding="utf-8")
        with part.open("a", encoding="utf-8", errors="surrogateescape", newline="") as file:
            try:
                file.write("" if file.tell() else form.head())
                for answered in answer(images):
                    file.write(form.lines(answered))
                    file.flush()
                    tally.add(answered)
                    if progress is not None:
                        progress(tally.images)
            except (Exception, KeyboardInterrupt):
                if not tally.images:  # a file without lines is nothing to go on with
                    part.unlink(missing_ok=True)
                    _by(part).unlink(missing_ok=True)
                raise
        part.replace(out)
        _by(part).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"'{out}' cannot be written ({error.strerror or error})", f"what is done stays in '{part}'"
        ) from error
    except KeyboardInterrupt as error:
        raise Interrupted(f"stopped after {tally.images} images; their lines are in '{part}'") from error
    return tally


def _by(part: Path) -> Path:
    """The file that says what made the lines of an unfinished one."""
    return part.with_name(part.name + ".by")


def _take_up(
    out: Path, part: Path, form: Form, images: Iterator[str], resume: bool, made_by: str, tally: Tally
) -> None:
    """Pass over the images that have their line in an unfinished file; refuse what would lose lines."""
    if out.is_dir():
        raise UserError(f"'{out}' is a folder", "name a file, such as answers.csv")
    _spare(out, form)
    if not part.exists() or not part.stat().st_size:
        if resume and out.exists():
            raise UserError(f"'{out}' is complete: there is nothing to resume", "leave --resume out to make it anew")
        return
    if not resume:
        raise UserError(
            f"'{part}' holds the lines of a prediction that was stopped",
            "add --resume to go on with it, or remove it; nothing was changed",
        )
    if (_by(part).read_text(encoding="utf-8") if _by(part).exists() else "") != made_by:
        raise UserError(*other_command(str(part)))
    _cut(part)
    with part.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        for image, failed in form.read(file) if part.stat().st_size else ():
            if next(images, None) != image:
                raise UserError(*other_command(str(part)))
            tally.images += 1
            tally.failed += failed


def _spare(out: Path, form: Form) -> None:
    """Answers are replaced by new ones; what else lies there, such as a table of labels, is not."""
    if not out.exists() or not out.stat().st_size:
        return
    with out.open(encoding="utf-8", errors="replace", newline="") as file:
        first = file.readline(1_000_000)
    if not form.made(first):
        raise UserError(
            f"'{out}' exists and holds no answers in this form", "name another file, or remove it; nothing was changed"
        )


def _cut(part: Path) -> None:
    """Take off a last line that was not written to its end."""
    with part.open("rb+") as file:
        end = file.seek(0, io.SEEK_END)
        while end:
            start = max(0, end - 65536)
            file.seek(start)
            found = file.read(end - start).rfind(b"\n")
            if found >= 0:
                end = start + found + 1
                break
            end = start
        file.truncate(end)


@contextlib.contextmanager
def counting() -> Iterator[Callable[[int], None] | None]:
    """A count in one line of a terminal; None where nobody looks."""
    if not sys.stderr.isatty():
        yield None
        return
    try:
        yield lambda done: (sys.stderr.write(f"\r{done:,} images"), sys.stderr.flush())[1]
    finally:
        sys.stderr.write("\n")
