"""Make the real data sets beside the repository ready for the jobs: `python -m tests.bench.real_data [folder]`.

Writes lists and tables, no images, to build/real:

- flickr8k: lists of splits. The photographs of the official dev list are the test split here, as there are none of the
  official one; val is cut from train.
- cmp9137.jsonl: captions that do or do not match their photograph, as questions. Its Dev and Test share photographs,
  and so a sample's key names the split too.
- daquar.jsonl: questions about indoor photographs; by hash the first 8 are the test split, the next 4 val.
"""

from __future__ import annotations

import csv
import hashlib
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "build" / "real"
HELD_OUT = 100


def by_hash(names: Iterable[str]) -> list[str]:
    return sorted(names, key=lambda name: hashlib.sha1(name.encode()).hexdigest())


def flickr8k(folder: Path) -> None:
    texts = folder / "flickr8k-subset" / "Flickr8k_text"
    names = by_hash((texts / "Flickr_8k.trainImages.txt").read_text().split())
    test = (texts / "Flickr_8k.devImages.txt").read_text().split()
    out = OUT / "flickr8k"
    out.mkdir(parents=True, exist_ok=True)
    for split, chosen in (("train", names[HELD_OUT:]), ("val", names[:HELD_OUT]), ("test", test)):
        (out / f"{split}.txt").write_text("\n".join(chosen) + "\n")


def triples(folder: Path) -> Iterator[dict[str, object]]:
    for split, name in (("train", "Train"), ("val", "Dev"), ("test", "Test")):
        captions: dict[str, list[str]] = defaultdict(list)
        matches: dict[str, list[str]] = defaultdict(list)
        with (folder / "flickr8k-subset" / "cmp9137_itm" / f"flickr8k.{name}Images.txt").open() as lines:
            for image, caption, match in csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE):
                captions[image].append(caption)
                matches[image].append("match" if match == "match" else "no match")
        for image, asked in captions.items():
            yield {
                "image": f"Flicker8k_Dataset/{image}", "key": f"{split}-{Path(image).stem}", "split": split,
                "question": asked, "answer": matches[image],
            }  # fmt: skip


def daquar(folder: Path) -> Iterator[dict[str, object]]:
    lines = (folder / "daquar-subset" / "all_qa_pairs.txt").read_text().splitlines()
    asked: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for question, answer in zip(lines[::2], lines[1::2], strict=True):
        text, _, image = question.removesuffix("?").strip().rpartition(" ")
        asked[image].append((f"{text.removesuffix(' in the')} ?", answer))
    for place, image in enumerate(by_hash(asked)):
        split = "test" if place < 8 else "val" if place < 12 else "train"
        questions, answers = zip(*asked[image], strict=True)
        yield {"image": f"images/{image}.png", "split": split, "question": questions, "answer": answers}


def write(name: str, rows: Iterable[dict[str, object]]) -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def main(folder: Path) -> None:
    flickr8k(folder)
    write("cmp9137.jsonl", triples(folder))
    write("daquar.jsonl", daquar(folder))
    print(f"written to {OUT}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT.parent / "shared" / "data")
