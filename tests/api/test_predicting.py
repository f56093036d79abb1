"""Many images: which they are, in which order they come, how far ahead is looked, and what is written of them."""

from __future__ import annotations

import copy
import csv
import io
import json
import os
import queue
import threading

import numpy as np
import pytest
import torch
from PIL import Image

import vitrarium as vt
from vitrarium.answering import image_paths, maker, write_answers
from vitrarium.answers import choose_form
from vitrarium.cli import main
from vitrarium.configs.errors import Interrupted, UserError
from vitrarium.models.abstention import AbstentionRule
from vitrarium.predicting import predict_batches, predict_many


def draw(path, seed=0, size=(40, 36)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return str(path)


@pytest.fixture
def photos(tmp_path):
    """Images in folders, with a space and a letter outside ASCII, beside what is not to be taken."""
    root = tmp_path / "photos"
    names = ["b.png", "a/2.png", "a/1.JPG", "c é/x y.png", "z.png"]
    for seed, name in enumerate(names):
        draw(root / name, seed)
    draw(root / ".hidden" / "h.png")
    draw(root / ".h.png")
    (root / "notes.txt").write_text("nothing")
    return root


@pytest.fixture
def model(tiny_run):
    return vt.load(tiny_run.folder)


def table(text):
    return list(csv.DictReader(io.StringIO(text)))


class Counted:
    """Gives images and knows how many were taken."""

    def __init__(self, image, count):
        self.image, self.count, self.taken = image, count, 0

    def __iter__(self):
        for _ in range(self.count):
            self.taken += 1
            yield self.image


def test_folders_are_walked_in_the_order_of_names(photos):
    found = [os.path.relpath(p, photos) for p in image_paths([str(photos)])]
    assert found == ["a/1.JPG", "a/2.png", "b.png", "c é/x y.png", "z.png"]
    assert next(image_paths([str(photos / "z.png"), str(photos / "a")])) == str(photos / "z.png")


def test_paths_that_are_not_there(photos, tmp_path):
    (tmp_path / "empty").mkdir()
    for given, said in (
        ([str(photos), str(tmp_path / "none.png")], "does not exist"),
        ([str(tmp_path / "empty")], "holds no image"),
        (["-", str(photos)], "beside other paths"),
    ):
        with pytest.raises(UserError, match=said):
            image_paths(given)


@pytest.mark.parametrize("fold", [True, False])
def test_a_batch_says_what_single_images_get(model, photos, fold):
    paths = list(image_paths([str(photos)]))
    do = {"petal_colour": "red"}
    for answer, path in zip(predict_many(model, paths, do, batch_size=3, fold=fold), paths, strict=True):
        alone = model.predict(path, do)
        assert answer.image == path
        assert answer.prediction.label == alone.label
        assert answer.prediction.corrected == alone.corrected
        assert answer.prediction.additive is alone.additive
        for name in ("probabilities", "units", "contributions"):
            assert getattr(answer.prediction, name) == pytest.approx(getattr(alone, name), abs=1e-5), name
        shown = list(answer.prediction.probabilities.values())
        assert shown == sorted(shown, reverse=True)
        assert answer.prediction.confidence == pytest.approx(alone.confidence, abs=1e-5)


def test_images_of_any_kind_and_an_error_for_what_is_none(model, photos):
    array = np.random.default_rng(0).integers(0, 255, (20, 20, 3), dtype=np.uint8)
    given = [array, Image.fromarray(array), photos / "b.png", photos / "notes.txt", photos / "none.png"]
    answers = list(predict_many(model, given, batch_size=2))
    assert answers[0].prediction.probability == pytest.approx(answers[1].prediction.probability, abs=1e-6)
    assert [a.error is None for a in answers] == [True, True, True, False, False]
    assert "is no image file" in answers[3].error
    assert "does not exist" in answers[4].error
    with pytest.raises(UserError, match="is no image file"):
        list(predict_many(model, given, strict=True))
    # What comes before the broken one is answered first.
    strict = predict_many(model, given, strict=True)
    assert [next(strict).error for _ in range(3)] == [None] * 3
    strict.close()  # the error above has this frame in its traceback: its threads would outlive the test


@pytest.mark.parametrize("batch_size", [1, 4])
def test_no_more_is_taken_than_a_few_batches(model, photos, batch_size):
    images = Counted(str(photos / "b.png"), 1000)
    answers = predict_many(model, images, batch_size=batch_size, workers=3)
    assert images.taken == 0
    for done in range(1, 10):
        next(answers)
        assert images.taken <= done + (3 + 1) * batch_size
    answers.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("predict")]


def test_however_many_work_the_answers_are_the_same_and_in_order(model, photos):
    images = [str(photos / name) for name in ("b.png", "notes.txt", "z.png", "a/2.png")] * 6
    threads = torch.get_num_threads()
    one, several = (list(predict_many(model, images, batch_size=2, workers=workers)) for workers in (1, 3))
    assert [a.image for a in several] == images
    assert [a.error for a in several] == [a.error for a in one]
    for a, b in zip(one, several, strict=True):
        if a.prediction is not None:
            assert a.prediction.probabilities == pytest.approx(b.prediction.probabilities, abs=1e-6)
    assert torch.get_num_threads() == threads


def test_a_stream_is_answered_while_it_waits(model, photos):
    """Each image comes only after the one before was answered: waiting for a whole batch would never end."""
    asked: queue.Queue[str | None] = queue.Queue()
    answers = predict_many(model, iter(asked.get, None), batch_size=32, eager=True)
    for name in ("b.png", "z.png", "a/2.png"):
        asked.put(str(photos / name))
        assert next(answers).image == str(photos / name)
    asked.put(None)
    assert list(answers) == []


def test_a_stream_looks_no_further_than_a_batch_ahead(model, photos):
    images = Counted(str(photos / "b.png"), 1000)
    answers = predict_many(model, images, batch_size=4, eager=True)
    next(answers)
    # A batch that is answered, a batch that waits, and the one that the thread holds.
    assert images.taken <= 4 + 4 + 1
    answers.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("decode")]


def test_a_stream_passes_on_what_goes_wrong_in_it(model, photos):
    def broken():
        yield str(photos / "b.png")
        raise RuntimeError("the line is dead")

    answers = predict_many(model, broken(), eager=True)
    with pytest.raises(RuntimeError, match="the line is dead"):
        list(answers)


def test_mistakes_are_said_before_the_first_image(model):
    with pytest.raises(UserError, match="batch_size is 0"):
        predict_many(model, [], batch_size=0)
    with pytest.raises(UserError, match="did you mean 'petal_colour'"):
        predict_many(model, [], {"petal_color": "red"})


def test_a_folder_into_a_table(tiny_run, model, photos, tmp_path, capsys):
    out = tmp_path / "new" / "answers.csv"
    assert main(["predict", str(tiny_run.folder), str(photos), "-o", str(out), "--do", "thorns=yes"]) == 0
    assert "(5 images)" in capsys.readouterr().out.replace("\n", "")
    rows = table(out.read_text(encoding="utf-8"))
    assert [os.path.relpath(row["image"], photos) for row in rows][3] == "c é/x y.png"
    for row in rows:
        said = model.predict(row["image"], {"thorns": "yes"})
        assert (row["label"], row["error"]) == (said.label, "")
        assert row["abstained"] == str(said.abstained)
        assert float(row["probability"]) == pytest.approx(said.probability, abs=1e-5)
        assert float(row["confidence"]) == pytest.approx(said.confidence, abs=1e-5)
        for begins, values in (
            ("probability:", said.probabilities),
            ("unit:", said.units),
            ("contribution:", said.contributions),
        ):
            assert {k.removeprefix(begins) for k in row if k.startswith(begins)} == set(values)
            for name, value in values.items():
                assert float(row[begins + name]) == pytest.approx(value, abs=1e-5, rel=1e-4)
    assert not out.with_name("answers.csv.part").exists()


def test_columns_are_chosen_by_name(tiny_run, photos, capsys):
    command = ["predict", str(tiny_run.folder), str(photos), "--columns"]
    assert main([*command, "abstained, label"]) == 0
    assert list(table(capsys.readouterr().out)[0]) == ["image", "label", "abstained", "error"]
    assert main([*command, "units", "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out.splitlines()[0])) == ["image", "units", "corrected"]
    assert main([*command, "unit"]) == 2
    assert "did you mean 'units'" in capsys.readouterr().err


def test_units_without_names_are_left_out_unless_asked_for(tmp_path):
    from vitrarium.data.preprocessing import Preprocessing
    from vitrarium.models import build

    spec = {"backbone": {"name": "convnet", "widths": [4]}, "evidence": "features", "readout": "linear"}
    nameless = build(spec, ["a", "b"], None, Preprocessing(16))
    plain = choose_form(nameless).head()
    assert "unit:" not in plain
    assert "probability:a" in plain
    assert "unit:channel_0" in choose_form(nameless, columns="units").head()


def test_broken_images_have_a_line_and_the_rest_goes_on(tiny_run, photos, tmp_path, capsys):
    (photos / "a" / "broken, one.png").write_bytes(b"no image")
    out = tmp_path / "answers.csv"
    assert main(["predict", str(tiny_run.folder), str(photos), "-o", str(out)]) == 3
    assert "1 of 6 images could not be read" in capsys.readouterr().err
    rows = table(out.read_text(encoding="utf-8"))
    broken = [row for row in rows if row["error"]]
    assert len(rows) == 6
    assert len(broken) == 1
    assert broken[0]["image"].endswith("broken, one.png")
    assert "is no image file" in broken[0]["error"]
    assert not any(broken[0][name] for name in broken[0] if name not in ("image", "error"))
    assert main(["predict", str(tiny_run.folder), str(photos), "--json"]) == 3
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [set(line) == {"image", "error"} for line in lines].count(True) == 1


def test_strict_stops_and_goes_on_when_mended(tiny_run, photos, tmp_path, capsys):
    whole, out = tmp_path / "whole.csv", tmp_path / "answers.csv"
    broken = photos / "c é" / "x y.png"
    good = broken.read_bytes()
    command = ["predict", str(tiny_run.folder), str(photos), "--batch-size", "2", "-o"]
    assert main([*command, str(whole)]) == 0
    broken.write_bytes(b"no image")
    assert main([*command, str(out), "--strict"]) == 2
    assert not out.exists()
    part = tmp_path / "answers.csv.part"
    assert len(table(part.read_text(encoding="utf-8"))) == 3
    capsys.readouterr()
    assert main([*command, str(out)]) == 2
    assert "add --resume" in capsys.readouterr().err
    broken.write_bytes(good)
    assert main([*command, str(out), "--resume"]) == 0
    assert [row["image"] for row in table(out.read_text())] == [row["image"] for row in table(whole.read_text())]
    assert not part.exists()
    assert main([*command, str(out), "--resume"]) == 2
    assert "nothing to resume" in capsys.readouterr().err


def test_paths_on_standard_input(tiny_run, photos, monkeypatch, capsys):
    paths = [str(photos / "z.png"), str(photos / "none.png"), str(photos / "c é" / "x y.png")]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(paths) + "\n\n"))
    assert main(["predict", str(tiny_run.folder), "-", "--columns", "label"]) == 3
    rows = table(capsys.readouterr().out)
    assert [row["image"] for row in rows] == paths
    assert [bool(row["label"]) for row in rows] == [True, False, True]
    monkeypatch.setattr("sys.stdin", io.StringIO(paths[0] + "\n"))
    assert main(["predict", str(tiny_run.folder), "-", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["image"] == paths[0]


@pytest.mark.parametrize("as_json", [False, True])
def test_stopped_by_hand_the_lines_stay_and_are_gone_on_with(model, photos, tmp_path, as_json):
    out, form = tmp_path / "answers", choose_form(model, as_json)
    part = tmp_path / "answers.part"

    def until(count):
        def answer(images):
            for number, batch in enumerate(predict_batches(model, images, batch_size=1)):
                if number == count:
                    raise KeyboardInterrupt
                yield batch

        return answer

    def paths():
        return image_paths([str(photos)])

    with pytest.raises(Interrupted, match="after 2 images"):
        write_answers(out, form, paths(), until(2))
    with part.open("a") as file:
        file.write('{"image": "half')  # a line that was not written to its end
    with pytest.raises(Interrupted, match="after 4 images"):
        write_answers(out, form, paths(), until(2), resume=True)
    assert write_answers(out, form, paths(), until(99), resume=True).images == 5
    fresh = tmp_path / "fresh"
    write_answers(fresh, form, paths(), until(99))
    assert out.read_text() == fresh.read_text()


def test_what_another_command_began_is_not_gone_on_with(model, photos, tmp_path):
    out, form = tmp_path / "answers.csv", choose_form(model)
    part = tmp_path / "answers.csv.part"

    def answer(images):
        return predict_batches(model, images)

    write_answers(out, form, image_paths([str(photos)]), answer)
    out.rename(part)
    before = part.read_text()
    for others, shape in (([str(photos / "z.png")], form), ([str(photos)], choose_form(model, columns="label"))):
        with pytest.raises(UserError, match="another command"):
            write_answers(out, shape, image_paths(others), answer, resume=True)
    assert part.read_text() == before


def test_lines_of_other_corrections_or_another_model_are_never_joined(model, photos, tmp_path):
    out, form = tmp_path / "answers.csv", choose_form(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        next(other.readout.parameters()).add_(1)

    def go_on(model, do=None, stop=False):
        def answer(images):
            for number, batch in enumerate(predict_batches(model, images, do=do, batch_size=1)):
                if stop and number:
                    raise KeyboardInterrupt
                yield batch

        made_by = maker(model, do)
        return write_answers(out, form, image_paths([str(photos)]), answer, resume=not stop, made_by=made_by)

    do = {model.evidence.units.names[0]: 1.0}
    with pytest.raises(Interrupted):
        go_on(model, do, stop=True)
    for wrong, correction in ((model, None), (model, {**do, model.evidence.units.names[-1]: 0.0}), (other, do)):
        with pytest.raises(UserError, match="corrections or model are others"):
            go_on(wrong, correction)
    go_on(model, do)
    assert [path.name for path in tmp_path.glob("answers*")] == ["answers.csv"]


@pytest.mark.parametrize("as_json", [False, True])
def test_only_answers_are_replaced(model, photos, tmp_path, as_json):
    out, form = tmp_path / "answers", choose_form(model, as_json)

    def write():
        return write_answers(out, form, image_paths([str(photos)]), lambda images: predict_batches(model, images))

    out.touch()
    write()
    once = out.read_bytes()
    write()
    assert out.read_bytes() == once
    for precious in (b"image,colour\na.png,red\n", b"\x89PNG\r\n", b'"\n', b"\n"):
        out.write_bytes(precious)
        with pytest.raises(UserError, match="holds no answers in this form; name another file"):
            write()
        assert out.read_bytes() == precious
    assert [path.name for path in tmp_path.glob("answers*")] == ["answers"]


def test_a_stop_before_the_first_line_leaves_nothing(model, photos, tmp_path):
    def answer(images):
        raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        write_answers(tmp_path / "a.csv", choose_form(model), image_paths([str(photos)]), answer)
    assert not list(tmp_path.glob("a.csv*"))


def test_options_that_do_not_go_together(tiny_run, photos, tmp_path, capsys):
    assert main(["predict", str(tiny_run.folder), str(photos), "--resume"]) == 2
    assert "name it with -o" in capsys.readouterr().err
    assert main(["predict", str(tiny_run.folder), str(photos), "-o", str(tmp_path)]) == 2
    assert "is a folder" in capsys.readouterr().err


class TestThreshold:
    @pytest.fixture
    def copy(self, tiny_run, tmp_path):
        import shutil

        shutil.copytree(tiny_run.folder, tmp_path / "copy")
        return vt.Run(tmp_path / "copy")

    def test_training_saves_one_from_the_validation_split(self, tiny_run):
        from vitrarium.eval.collect import collect

        model = tiny_run.model
        collected = collect(model, tiny_run.data(256).loader("val"))
        assert model.abstention == AbstentionRule().choose(collected.logits, collected.labels)
        card = (tiny_run.folder / "model" / "README.md").read_text()
        assert "## When it does not answer" in card
        assert f"{model.abstention.threshold:.4g}" in card
        assert "Test split: it answers" in card

    def test_set_anew(self, copy):
        chosen = vt.set_threshold(copy, coverage=0.5)
        assert chosen.coverage >= 0.5
        assert copy.model.abstention == chosen
        card = (copy.folder / "model" / "README.md").read_text()
        # What was measured on the test split belongs to the old threshold.
        assert "Test split: it answers" not in card
        evaluation = vt.evaluate(copy)
        record = next(r for r in evaluation.records if r.metric == "coverage_at_threshold" and r.scope == "all")
        assert record.choices["threshold"] == chosen.threshold
        assert "Test split: it answers" in (copy.folder / "model" / "README.md").read_text()

    def test_from_the_command_line(self, copy, capsys):
        command = ["evaluate", str(copy.folder), "--split", "val"]
        assert main([*command, "--abstain-risk", "0.2", "--abstain-confidence", "0.9"]) == 0
        assert "with 90% confidence" in capsys.readouterr().out.replace("\n", " ")
        assert copy.model.abstention.target == 0.2
        assert main([*command, "--abstain-risk", "0.2", "--abstain-coverage", "0.9"]) == 2
        assert "both given" in capsys.readouterr().err

    def test_configured_before_training_is_checked_before_training(self, tiny, tmp_path, capsys):
        command = ["train", "model=blackbox", *tiny, "-o", str(tmp_path / "run")]
        assert main([*command, "abstain.risk=0.1", "abstain.coverage=0.9"]) == 2
        assert "both given" in capsys.readouterr().err
        assert not (tmp_path / "run").exists()
        assert main([*command, "train.epochs=1", "abstain.score=margin", "abstain.coverage=0.9"]) == 0
        chosen = vt.load(tmp_path / "run").abstention
        assert (chosen.score, chosen.rule, chosen.target) == ("margin", "coverage", 0.9)

    def test_another_threshold_is_no_other_run(self, copy):
        from vitrarium.runs import differences

        other = {**copy.config, "abstain": {**copy.config["abstain"], "risk": 0.01}}
        assert differences(copy.config, other) == []

    def test_explanations_and_tables_say_that_it_does_not_answer(self, copy, photos, tmp_path, capsys):
        from vitrarium.models.folder import save_abstention

        chosen = copy.model.abstention
        always = type(chosen)(**{**chosen.to_dict(), "threshold": 1.0})
        save_abstention(copy.folder, always)
        why = vt.explain(copy.folder, photos / "b.png")
        assert why.abstained is not None
        page = why.save(tmp_path / "why.html").read_text()
        assert "The model does not answer" in page
        again = type(why).load(why.save(tmp_path / "why.json"))
        assert again.abstained == why.abstained
        why.save(tmp_path / "why.png")
        assert main(["predict", str(copy.folder), str(photos / "b.png")]) == 0
        assert "abstains" in capsys.readouterr().out
        assert main(["predict", str(copy.folder), str(photos / "b.png"), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["abstained"] is True

    def test_the_comparison_shows_it(self, tiny_run, tmp_path):
        comparison = vt.compare([tiny_run], examples=0)
        numbers = comparison.numbers()[0]
        assert numbers["aurc"] is not None
        assert numbers["coverage_at_threshold"] is not None
        page = comparison.report(tmp_path / "report").read_text()
        assert "Knowing when not to answer" in page
        assert (tmp_path / "report" / "figures" / "risk_coverage.png").exists()
