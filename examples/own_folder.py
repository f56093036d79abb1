"""Your own images in 20 lines: look at a folder, train a concept bottleneck on it, predict, explain, correct.

Run ``python own_folder.py [FOLDER]``; without a folder, output goes to a temporary one. The images are drawn here, so
that it runs anywhere; put your own folder in the place of ``photos``, and leave out the word ``*quick``.
"""

import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw

import vitrarium as vt


def main(photos: Path, out: Path) -> None:
    check = vt.check_data(photos, size=32)
    for finding in check.findings:
        print(f"{finding.severity}: {finding.message}")
    vt.show_data(photos, size=32).save(out / "sheet.png")

    quick = ["data.size=32", "train.epochs=10", "train.batch_size=8", "train.lr=0.01", "backbone.widths=[8,16]"]
    run = vt.fit("model=cbm", "data=folder", f"data.root={photos}", *quick, out=out / "run", resume=True)
    print(f"test accuracy {vt.evaluate(run).value('accuracy'):.0%}")

    model = vt.load(run.folder)
    image = photos / "apple" / "00.png"
    answer = model.predict(image)
    print(f"{answer.label} ({answer.probability:.0%}):", {name: round(v, 2) for name, v in answer.units.items()})
    print("if it were narrow:", model.predict(image, do={"shape": "narrow"}).label)
    explanation = vt.explain(model, image)
    print(explanation.sentence())
    explanation.save(out / "why.html")


def draw(photos: Path) -> Path:
    """A folder for each class, and a line of concepts for each image: what your own data look like."""
    rows = ["image,colour,shape"]
    for kind, colour, wide in (("apple", "red", 12), ("lime", "green", 12), ("chilli", "red", 4), ("bean", "green", 4)):
        (photos / kind).mkdir(parents=True, exist_ok=True)
        for number in range(20):
            picture, x = Image.new("RGB", (32, 32), (255 - number,) * 3), 12 + number % 9
            ImageDraw.Draw(picture).ellipse((x - wide, 4, x + wide, 27), colour)
            picture.save(photos / kind / f"{number:02d}.png")
            rows.append(f"{kind}/{number:02d}.png,{colour},{'round' if wide > 4 else 'narrow'}")
    (photos / "concepts.csv").write_text("\n".join(rows) + "\n")
    return photos


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
    main(draw(folder / "fruit"), folder)
