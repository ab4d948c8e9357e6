"""Derive `hierarchy.csv`, two partitions of the 1000 classes, from WordNet's hypernyms.

Run it on the noun database of WordNet 3.0 (`data.noun`; Debian's package wordnet-base has it):

    python -m benchmark.data.make_hierarchy /usr/share/wordnet/data.noun

Two rules:

superclass
    The nearest hypernym ancestor of a class, itself included, out of `SUPERCLASSES`: fewest steps, and the
    earlier entry on a tie.
group
    The most specific ancestor that covers `MIN_GROUP` to `MAX_GROUP` classes of the same superclass (fewest
    classes, then fewest steps) and lies at or below the superclass's own synset; below it where that is a
    catch-all ("other …"). The kinds of dog in `BROAD_GROUPS` may cover more. A class without such an
    ancestor, or of the superclass "other", is a group of its own: anything broader would be too broad to call
    a mistake fine-grained.
"""

from __future__ import annotations

import csv
import sys
from collections import Counter
from pathlib import Path

from annotations.classes import class_names, wnids

MIN_GROUP = 3
MAX_GROUP = 18
BROAD_GROUPS = {"02092468", "02087551", "02103406"}  # terrier, hound, working dog

# WordNet 3.0 noun offset, and the name that readers see. Several offsets may share a name.
SUPERCLASSES = {
    "02084071": "dog",
    "02083346": "wild canine",
    "02120997": "feline",
    "02131653": "bear",
    "02075296": "other carnivore",
    "02469914": "primate",
    "02370806": "hoofed mammal",
    "02329401": "rodent or rabbit",
    "02323902": "rodent or rabbit",
    "01861778": "other mammal",
    "01503061": "bird",
    "01661091": "reptile",
    "01627424": "amphibian",
    "02512053": "fish",
    "02159955": "insect",
    "01769347": "spider or scorpion",
    "01974773": "crustacean",
    "01905661": "other invertebrate",
    "12992868": "fungus",
    "11669921": "flower or seed",
    "13134947": "flower or seed",
    "07707451": "vegetable",
    "07705931": "fruit",
    "00021265": "food",
    "07555863": "food",
    "07881800": "drink",
    "09287968": "landscape",
    "00007846": "person",
    "03800933": "musical instrument",
    "04576211": "wheeled vehicle",
    "03100490": "other vehicle",
    "04530566": "boat or ship",
    "02686568": "aircraft",
    "03051540": "clothing",
    "03502509": "headwear",
    "03513137": "headwear",
    "03380867": "footwear",
    "03381126": "footwear",
    "03405265": "furniture",
    "02766320": "furniture",
    "02913152": "building",
    "03297735": "shop",
    "04341686": "structure",
    "02796623": "fence or barrier",
    "03278248": "electronics",
    "03082979": "electronics",
    "03277771": "electronics",
    "04470953": "electronics",
    "03620052": "household appliance",
    "02729837": "household appliance",
    "03926148": "optical instrument",
    "03852280": "optical instrument",
    "03709206": "optical instrument",
    "03733925": "measuring instrument",
    "04565375": "weapon or armour",
    "02739668": "weapon or armour",
    "03414162": "sports or game equipment",
    "04285146": "sports or game equipment",
    "03964744": "sports or game equipment",
    "04451818": "tool",
    "03563967": "tool",
    "03621049": "kitchenware",
    "04381994": "kitchenware",
    "03133538": "kitchenware",
    "04531098": "vessel or bottle",
    "02883344": "box or bag",
    "02773037": "box or bag",
    "02801938": "box or bag",
    "03094503": "other container",
    "04447443": "toiletry",
    "03309808": "fabric or cover",
    "03932670": "fabric or cover",
    "03366823": "fabric or cover",
    "03122748": "fabric or cover",
    "03699975": "machine",
    "03738472": "mechanism",
    "04081844": "fastener or restraint",
    "03183080": "other device",
    "03574816": "other device",
    "00001740": "other",
}


def read_nouns(path: Path) -> dict[str, list[str]]:
    """Hypernyms (and instance hypernyms) of every noun synset, offset to offsets.

    The format is that of WordNet's manual page wndb(5WN): offset, file, type, a hexadecimal number of words,
    pairs of word and id, a decimal number of pointers, and four fields a pointer.
    """
    hypernyms: dict[str, list[str]] = {}
    for line in path.read_text(encoding="latin-1").splitlines():
        if line.startswith("  "):  # the licence
            continue
        fields = line.split(" | ")[0].split()
        start = 4 + 2 * int(fields[3], 16)
        pointers = [fields[start + 1 + 4 * i : start + 5 + 4 * i] for i in range(int(fields[start]))]
        hypernyms[fields[0]] = [target for symbol, target, *_ in pointers if symbol in ("@", "@i")]
    return hypernyms


def read_words(path: Path) -> dict[str, str]:
    """First word of every noun synset, by offset, with spaces for underscores."""
    lines = (line for line in path.read_text(encoding="latin-1").splitlines() if not line.startswith("  "))
    return {fields[0]: fields[4].replace("_", " ") for fields in (line.split(" ", 5) for line in lines)}


def ancestors(offset: str, hypernyms: dict[str, list[str]]) -> dict[str, int]:
    """A synset and all its ancestors, each with the fewest steps to it."""
    steps = {offset: 0}
    frontier = [offset]
    while frontier:
        found = [(parent, steps[child] + 1) for child in frontier for parent in hypernyms[child]]
        frontier = []
        for parent, step in found:
            if parent not in steps:
                steps[parent] = step
                frontier.append(parent)
    return steps


def derive(path: Path) -> list[tuple[int, str, str, str]]:
    """Rows of `hierarchy.csv`: class index, wnid, superclass, group."""
    hypernyms, words = read_nouns(path), read_words(path)
    order = {offset: i for i, offset in enumerate(SUPERCLASSES)}
    above = [ancestors(wnid[1:], hypernyms) for wnid in wnids()]
    anchors = [min(order.keys() & steps.keys(), key=lambda o: (steps[o], order[o])) for steps in above]
    covered = Counter(
        (SUPERCLASSES[anchor], offset) for anchor, steps in zip(anchors, above) for offset in steps
    )
    rows = []
    for index, (wnid, anchor, steps) in enumerate(zip(wnids(), anchors, above)):
        name = SUPERCLASSES[anchor]
        fitting = [
            offset
            for offset in steps
            if covered[name, offset] >= MIN_GROUP
            and (covered[name, offset] <= MAX_GROUP or offset in BROAD_GROUPS)
            and name != "other"
            and anchor in ancestors(offset, hypernyms)
            and not (offset == anchor and name.startswith("other"))
        ]
        if fitting:
            best = min(fitting, key=lambda offset: (covered[name, offset], steps[offset], offset))
            group = f"{words[best]} ({best})"
        else:
            group = class_names()[index]
        rows.append((index, wnid, name, group))
    return rows


def main(path: Path) -> None:
    """Write `hierarchy.csv` beside this file."""
    with Path(__file__).with_name("hierarchy.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("class_index", "wnid", "superclass", "group"))
        writer.writerows(derive(path))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m benchmark.data.make_hierarchy PATH/TO/data.noun")
    main(Path(sys.argv[1]))
