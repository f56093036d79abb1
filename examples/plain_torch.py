"""A model is plain torch.nn: a training loop of your own, saving, loading, correcting. No Lightning anywhere.

Run ``python plain_torch.py [FOLDER]``; without a folder, output goes to a temporary one.
"""

import sys
import tempfile
from pathlib import Path

import torch
from torch.nn import functional

from vitrarium.data import build_source
from vitrarium.data.batch import collate
from vitrarium.data.preprocessing import Preprocessing
from vitrarium.models import build, load_model, save_model

out = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
torch.manual_seed(0)

SIZES = {"train": 300, "test": 60}
source = build_source({"name": "flowers", "size": 32, "val": 40, **SIZES})
train, test = (collate([[source.splits[name].sample(i)] for i in range(size)]) for name, size in SIZES.items())
spec = {"backbone": "convnet", "evidence": "concepts", "readout": "linear"}
model = build(spec, source.class_names, source.concepts, Preprocessing(source.size), seed=0)
optimiser = torch.optim.AdamW(model.parameters(), lr=0.003)

for epoch in range(8):
    model.train()
    for rows in torch.randperm(len(train)).split(25):
        output = model(train.image[rows])
        # Every concept value as a yes/no question; vitrarium.train.terms.concepts has the loss of the presets.
        concepts = functional.binary_cross_entropy(output.evidence.probabilities, train.concepts[rows])
        loss = functional.cross_entropy(output.logits, train.label[rows]) + concepts
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    print(f"epoch {epoch + 1}: loss {loss.item():.3f}")

save_model(model, out / "model")
model = load_model(out / "model")
with torch.no_grad():
    seen = model(test.image).evidence.probabilities
colours = list(source.concepts.group("petal_colour").members)
right = seen[:, colours].argmax(1) == test.concepts[:, colours].argmax(1)
print(f"petal colour right: {right.float().mean():.0%}")

# The first test flower, as it is and as if its petals were red: by name, and as a tensor.
flower = source.splits["test"].sample(0).image
red = {"petal_colour": "red"}
for what, said in (("as it is", model.predict(flower)), ("with red petals", model.predict(flower, do=red))):
    print(f"{what}: {said.label} ({said.probability:.0%})")
output = model(test.image[:1].requires_grad_(), model.intervention(red))
print("differentiable under the intervention:", output.logits.requires_grad)
print("Lightning was imported:", "pytorch_lightning" in sys.modules)
