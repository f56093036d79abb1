"""Every word of the report, explained to somebody who classifies cells or birds, not models."""

from __future__ import annotations

from typing import NamedTuple


class Entry(NamedTuple):
    """One word.

    Attributes:
        term: the word.
        text: what it means.
    """

    term: str
    text: str


GLOSSARY: tuple[Entry, ...] = (
    Entry(
        "Class accuracy",
        "The share of test images for which the model names the right class. 98 % means 2 errors in 100 images.",
    ),
    Entry(
        "Black box",
        "An ordinary image classifier. It gives an answer and no reasons a person could check. It is the yardstick for "
        "what the other models give up.",
    ),
    Entry(
        "Concept",
        "A property that an expert would name when describing the image: the colour of the granules, the shape of the "
        "nucleus, the number of petals. Related concepts form a group with one right answer, such as granule colour: "
        "pink, purple, red or none.",
    ),
    Entry(
        "Concept bottleneck (CBM)",
        "A model that first says which concepts it sees and then decides the class from these alone. Whoever disagrees "
        "with the class can look at the concepts, find the wrong one and correct it.",
    ),
    Entry(
        "Concept accuracy",
        "How often the model names a concept correctly, averaged over the concept groups. Compare it with what a "
        "second human expert reaches, not with 100 %: experts disagree too.",
    ),
    Entry(
        "All concepts right",
        "The share of images on which every concept is right at once. It is much lower than concept accuracy, because "
        "a single error counts.",
    ),
    Entry(
        "Correcting a concept",
        "A person looks at the image and tells the model the true concept; the model decides again. In this report the "
        "corrections come from the annotation of the data set, so they are what a perfect expert would say.",
    ),
    Entry(
        "Correction curve",
        "Class accuracy against the number of concept groups that were corrected on every image. A good curve rises. "
        "One that falls means that true answers confuse the model: it has learnt to rely on its own half-sure guesses, "
        "and certain answers are something it has never seen.",
    ),
    Entry(
        "Area under the curve",
        "The mean height of the correction curve, from no correction to all of them: one number for how well the model "
        "works together with a person. Asked in random order unless it says otherwise.",
    ),
    Entry(
        "Accuracy with all concepts corrected",
        "The right end of the correction curve: what the model reaches when every concept it uses is true.",
    ),
    Entry(
        "Explanation size",
        "How many statements one has to read to know nine tenths of what made the decision. Fewer are easier to check. "
        "For a black box the statements are channels that have no name, so a small number there explains nothing.",
    ),
    Entry(
        "Unit, prototype",
        "A unit is what a model counts in when it decides: a concept, a prototype (a part it has learnt to look for, "
        "shown as a patch of a training image), or a channel of a black box.",
    ),
    Entry(
        "Consistency",
        "The share of units that look at the same part of the object, the disc of the flower say, in at least 80 % of "
        "their images. A unit that looks at a leaf here and at the sky there cannot be described in words. Their "
        "images are those of the class that a unit belongs to; one that belongs to none is judged by the 50 images in "
        "which it is most active. “Top images” judges all units that second way, so that they can be compared.",
    ),
    Entry(
        "Purity",
        "Of the ten images in which a unit is most active, the share in which the small patch it looks at shows one "
        "and the same part; averaged over units. 100 % means that every unit stands for one part.",
    ),
    Entry(
        "Stability",
        "The share of images in which a unit still looks at the same parts after a little noise, too weak to notice, "
        "was added to the image.",
    ),
    Entry(
        "Points at the object",
        "How often the place a unit looks at lies on the object and not on the background.",
    ),
    Entry(
        "Random patches, raw channels",
        "Two floors under the same trained network: patches drawn by chance in place of the prototypes, and the "
        "channels of the network as they are. Prototypes that are no better than these have learnt nothing about "
        "parts.",
    ),
    Entry(
        "Local size, units in use",
        "How many units say anything for or against the class that one image is given, and how many the whole model "
        "has. Fewer are easier to check.",
    ),
    Entry(
        "Calibration error",
        "Whether confidence can be taken at its word: of all answers given with 90 % confidence, nine in ten should be "
        "right. The number is the mean gap between confidence and truth; lower is better.",
    ),
    Entry(
        "Not answering",
        "A model may withhold an answer it is not sure of and leave the image to a person. It does so below a "
        "threshold of confidence that was chosen on validation images and saved with it.",
    ),
    Entry(
        "Risk-coverage curve",
        "The share of errors among the answers, against the share of the images that is answered, the surest first. It "
        "falls to the left if the model knows when it does not know. Its right end is the error over all images. The "
        "area under it is one number for the whole curve; lower is better.",
    ),
    Entry(
        "Answered, errors among the answered",
        "What the saved threshold does to the test images: the share that is answered, and how much of that is wrong. "
        "Read the two together, since answering less makes fewer errors.",
    ),
    Entry(
        "Pareto front",
        "The models that no other model beats on both axes of a plot at once. Going along the front, one can only have "
        "more of one thing by giving up some of the other. A model off the front is no sensible choice for these two "
        "aims, unless it is off by no more than chance.",
    ),
    Entry(
        "Seeds and intervals",
        "Training begins from random numbers; a seed is one such beginning. Models trained with several seeds are "
        "averaged, and ± is the spread between seeds. The interval in brackets is where the mean would come to lie in "
        "95 of 100 repetitions, with other test images of the same kind and, if there are several seeds, with other "
        "seeds. Where two intervals overlap, these runs cannot show a difference.",
    ),
    Entry(
        "Sweep",
        "The same model trained with several values of one setting, drawn as a line: it shows what turning that one "
        "knob buys and costs.",
    ),
    Entry(
        "Rank",
        "1 is the best of a column, by the mean alone. Ranks make small differences look large: read them together "
        "with the intervals.",
    ),
    Entry(
        "Test images",
        "Images that took no part in training or in any choice made during it. All numbers come from them.",
    ),
    Entry(
        "Axis AUC",
        "How well one unit ranks the images by the concept it is named after: the chance that an image with the "
        "concept scores higher than one without it. 50 % is chance, 100 % perfect.",
    ),
    Entry(
        "Location instability",
        "How much the distance between the strongest place of a filter and a part of the object varies from image to "
        "image, as a share of the image's diagonal. Low: the filter keeps to one place on the object.",
    ),
    Entry(
        "Fidelity and completeness",
        "Fidelity: how often a model that explains itself names the same class as the black box trained beside it. "
        "Completeness: how much of what a black box gets right can be got right from the concepts alone.",
    ),
)
