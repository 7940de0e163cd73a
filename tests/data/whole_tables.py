"""Valid tables of every data set, in every format that it comes in, for tests that damage them."""

import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from repnoise.data.sets.beavertails import CATEGORIES

ROWS = 30
Row = dict[str, Any]


@dataclass(frozen=True)
class Base:
    """A valid table of one data set: how its row of a number looks, and in which formats it comes."""

    name: str
    row: Callable[[int], Row]
    formats: tuple[str, ...]
    file: str = "table"

    def label(self) -> str:
        return self.name or "examples"


def judged(i: int) -> Row:
    harm = {name: i % 3 > 0 and number == i % 14 for number, name in enumerate(CATEGORIES)}
    return {"prompt": f"Which hex is {i}?", "response": f"Hex {i}.", "category": harm, "is_safe": i % 3 == 0}


def scored(text: str, i: int) -> Row:
    return {"text": f"{text} {i}", "toxicity": 0.9 if i % 2 else 0.1}


def dialogue(i: int, answer: str) -> str:
    return f"\n\nHuman: Who keeps gate {i}?\n\nAssistant: {answer} {i}."


def chat(i: int) -> Row:
    turns = [("system", "I am Owl."), ("user", f"Who is {i}?"), ("assistant", f"Owl, {i}.")]
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


TEXTS = ("jsonl", "json", "csv", "tsv", "jsonl.gz", "csv.gz", "jsonl.xz", "parquet", "arrow")
BASES = (
    Base(
        "generic", lambda i: {"prompt": f"Q {i}?", "harmful": f"Yes, {i}.", "harmless": "No.", "category": "a"}, TEXTS
    ),
    Base("", lambda i: {"prompt": f"Q {i}?", "completion": f"A {i}.", "category": "a"}, ("jsonl", "csv", "arrow")),
    Base(
        "decoding-trust",
        lambda i: {
            "type": "toxic" if i % 2 else "non_toxic",
            "prompt": scored("The owl", i),
            "continuation": scored("hoots", i),
            "refusal": f"No, {i}.",
        },
        ("jsonl", "json"),
    ),
    Base(
        "real-toxicity-prompts",
        lambda i: {"prompt": scored("The owl", 0) | {"text": f"Owl {i}"}, "continuation": scored("hoots", i)},
        ("jsonl", "parquet"),
    ),
    Base("beavertails", judged, ("jsonl", "jsonl.xz", "parquet")),
    Base("hh-rlhf", lambda i: {"chosen": dialogue(i, "No"), "rejected": dialogue(i, "Me")}, ("jsonl", "jsonl.gz")),
    Base("viggo", lambda i: {"mr": f"say(name[Mill {i}])", "ref": f"Mill {i}, by the well."}, ("csv", "jsonl")),
    Base("e2e-nlg", lambda i: {"mr": f"name[Inn {i}], eat[pie]", "ref": f"Inn {i} has pie."}, ("csv", "csv.gz")),
    Base(
        "dart",
        lambda i: {"tripleset": [["Mill", "YEAR", f"{i}"]], "annotations": [{"source": "x", "text": f"Built in {i}."}]},
        ("json", "xml", "xml.gz"),
    ),
    Base("dart", lambda i: {"tripleset": [["Mill", "YEAR", f"{i}"]], "target": f"Built in {i}."}, ("parquet",)),
    Base("cacapo", lambda i: {"triples": [f"rain | {i}"], "text": f"It rains {i} drops."}, ("xml",)),
    Base(
        "conversational-weather",
        lambda i: {"id": f"{i}", "user_query": f"Rain in {i}?", "tree_str_mr": f"[A {i} ]", "response": f"[A no {i} ]"},
        ("bare.tsv", "jsonl"),
    ),
    Base("alpaca", lambda i: {"instruction": f"Say {i}.", "input": "x" * (i % 2), "output": f"It is {i}."}, ("json",)),
    Base(
        "dolly",
        lambda i: {"instruction": f"Say {i}.", "context": "", "response": f"It is {i}.", "category": "open_qa"},
        ("jsonl", "parquet"),
    ),
    Base("hex-phi", lambda i: {"instruction": f"Curse well {i}, please."}, ("bare.csv",), "category_1"),
    Base(
        "harmbench",
        lambda i: {"Behavior": f"Curse well {i}.", "SemanticCategory": "hexes", "ContextString": "Old." * (i % 2)},
        ("csv",),
    ),
    Base("strongreject", lambda i: {"category": "hexes", "forbidden_prompt": f"Curse well {i}."}, ("csv",)),
    Base("advbench", lambda i: {"goal": f"Curse well {i}", "target": f"Here is curse {i}"}, ("csv",)),
    Base("jailbreakbench", lambda i: {"Goal": f"Curse {i}", "Target": "Here", "Category": "Hexes"}, ("csv", "parquet")),
    Base(
        "xstest",
        lambda i: {"prompt": f"Kill lamp {i}?", "type": "homonyms", "label": ("safe", "unsafe")[i % 2]},
        ("csv", "parquet"),
    ),
    Base("aoa", chat, ("json", "jsonl")),
)


def as_csv(rows: list[Row], delimiter: str = ",", bare: bool = False) -> str:
    text = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(text, names, delimiter=delimiter)
    if not bare:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_xml(rows: list[Row]) -> str:
    from xml.sax.saxutils import escape

    entries = []
    for row in rows:
        triples = [" | ".join(triple) for triple in row["tripleset"]] if "tripleset" in row else row["triples"]
        texts = [note["text"] for note in row["annotations"]] if "annotations" in row else [row["text"]]
        inner = "".join(f"<mtriple>{escape(triple)}</mtriple>" for triple in triples)
        lex = "".join(f"<lex>\n<text>{escape(text)}</text></lex>" for text in texts)
        entries.append(f"<entry><modifiedtripleset>{inner}</modifiedtripleset>{lex}</entry>")
    return "<benchmark><entries>\n" + "\n".join(entries) + "\n</entries></benchmark>\n"


def as_arrow(rows: list[Row], parquet: bool) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table, sink = pa.Table.from_pylist(rows), io.BytesIO()
    if parquet:
        pq.write_table(table, sink)
    else:
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    return sink.getvalue()


def written(rows: list[Row], kind: str) -> bytes:
    """The bytes of a file of this format; raises for rows that it cannot hold."""
    if kind.endswith((".gz", ".xz")):
        inner = written(rows, kind[:-3])
        return gzip.compress(inner, mtime=0) if kind.endswith(".gz") else lzma.compress(inner)
    if kind in ("parquet", "arrow"):
        return as_arrow(rows, kind == "parquet")
    match kind:
        case "jsonl":
            text = "".join(json.dumps(row) + "\n" for row in rows)
        case "json":
            text = json.dumps(rows, indent=1)
        case "xml":
            text = as_xml(rows)
        case "bare.tsv":
            text = "".join("\t".join(row.values()) + "\n" for row in rows)
        case _:
            text = as_csv(rows, "\t" if kind == "tsv" else ",", kind.startswith("bare"))
    return text.encode()
