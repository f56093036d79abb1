"""Your own images: draw a tiny folder, train a concept bottleneck on it, predict, explain, correct.

Run ``python own_folder.py [FOLDER]``; without a folder, output goes to a temporary one.
"""

import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw

import vitrarium as vt

out = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())

# A folder for each class, and a line of concepts for each image.
rows = ["image,colour,shape"]
for kind, colour, wide in (("apple", "red", 12), ("lime", "green", 12), ("chilli", "red", 4), ("bean", "green", 4)):
    (out / "fruit" / kind).mkdir(parents=True, exist_ok=True)
    for number in range(20):
        picture, x = Image.new("RGB", (32, 32), (255 - number,) * 3), 12 + number % 9
        ImageDraw.Draw(picture).ellipse((x - wide, 4, x + wide, 27), colour)
        picture.save(out / "fruit" / kind / f"{number:02d}.png")
        rows.append(f"{kind}/{number:02d}.png,{colour},{'round' if wide > 4 else 'narrow'}")
(out / "fruit" / "concepts.csv").write_text("\n".join(rows) + "\n")

quick = ["data.size=32", "train.epochs=10", "train.batch_size=8", "train.lr=0.01", "backbone.widths=[8,16]"]
run = vt.fit("model=cbm", "data=folder", f"data.root={out / 'fruit'}", *quick, out=out / "run", resume=True)
model, image = vt.load(run.folder), out / "fruit" / "apple" / "00.png"

said = model.predict(image)
print(f"{said.label} ({said.probability:.0%}):", {name: round(value, 2) for name, value in said.units.items()})
print(vt.explain(model, image).sentence())
print("if it were narrow:", model.predict(image, do={"shape": "narrow"}).label)
vt.explain(model, image).save(out / "why.html")
print("written:", out / "why.html")
