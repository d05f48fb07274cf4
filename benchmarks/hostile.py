"""Hostile input, in bulk: damaged and crafted bundles, ONNX files, device files, texts, models and loaders that fail.

    python benchmarks/hostile.py --count 200

Every case is drawn from its number. The command must end with a documented exit code; a refusal is one line and a
hint; what was given stays as it was; nothing that came as data is executed; nothing hangs. tests/cli runs a few.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import pickle
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.cli.app import app
from secateur.cli.run import run
from secateur.core.files import canonical_json, write_json
from secateur.core.machine import describe, versions
from secateur.core.shipped import shipped

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "hostile.json"
QUICK = ("--budget", "flops<=70%", "--rounds", "1", "--epochs", "1", "--drop", "90%")
LIMIT_S = 400
DOCUMENTED = (0, 2, 3, 4)
CANARY = "executed"
"""A file that only code inside of the data would make."""


@dataclass(frozen=True)
class Given:
    """What cases are made from: a sound bundle of `toys:pair`, and the folder that a case may fill."""

    bundle: Path
    folder: Path

    def copy(self, source: Path | None = None) -> Path:
        return Path(shutil.copytree(source or self.bundle, self.folder / "bundle"))


Family = Callable[[random.Random, Given], list[str]]
FAMILIES: dict[str, Family] = {}


def family(function: Family) -> Family:
    """Register what makes a case and returns the command that is given it."""
    FAMILIES[function.__name__.replace("_", " ")] = function
    return function


class Bomb:
    """What pickle would execute."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path.cwd() / CANARY,)


def values(rng: random.Random) -> Any:
    """A value that no field expects."""
    deep: Any = 0
    for _ in range(rng.choice((3, 900))):
        deep = [deep]
    return rng.choice(
        (None, True, -1, 0, 10**30, 2**63, 1e308, -0.0, 3.5, "", "x" * 5000, "../../etc/passwd", "/etc/passwd", "C:\\x",
         "points/../../x", "a\0b", "\u202ex", "\ud83d\ude00", [], {}, deep, {"": {"": []}}, ["../x"], {"__x__": "a"})
    )  # fmt: skip


def mutated(document: Any, rng: random.Random) -> Any:
    """A document with one value somewhere in it replaced, dropped or doubled."""
    if isinstance(document, dict) and document and rng.random() < 0.85:
        key = rng.choice(sorted(document))
        if rng.random() < 0.1:
            return {name: value for name, value in document.items() if name != key}
        return {**document, key: mutated(document[key], rng)}
    if isinstance(document, list) and document and rng.random() < 0.85:
        index = rng.randrange(len(document))
        if rng.random() < 0.1:
            return [*document, *document]
        return [*document[:index], mutated(document[index], rng), *document[index + 1 :]]
    return values(rng)


def sealed(path: Path, document: dict[str, Any]) -> None:
    """Write a manifest whose own hash is right."""
    plain = {key: value for key, value in document.items() if key != "seal"}
    seal = hashlib.sha256(canonical_json(plain).encode("utf-8", "surrogatepass")).hexdigest()
    path.write_bytes(canonical_json({**plain, "seal": seal}).encode("utf-8", "surrogatepass"))


def damaged(content: bytes, rng: random.Random) -> bytes:
    """A file cut short, with flipped bytes, with a huge header, or replaced by a pickle, deep JSON or noise."""
    how = rng.randrange(8)
    if how < 2:
        return content[: rng.randrange(len(content) + 1)]
    if how < 4:
        changed = bytearray(content)
        for _ in range(rng.choice((1, 5, 200))):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        return bytes(changed)
    return (
        pickle.dumps(Bomb()),
        b"[" * 200_000,
        rng.choice((2**63, 2**40, 8)).to_bytes(8, "little") + content[8:],
        b'{"a":{"dtype":"F32","shape":[9999999999,99],"data_offsets":[0,4]}}'.join(
            (b"\x42\0\0\0\0\0\0\0", b"\0\0\0\0")
        ),
    )[how - 4]


READERS = (("verify",), ("report",), ("inspect",), ("export", "--to", "onnx"), ("select", "--budget", "flops<=90%"))


def reader(rng: random.Random, bundle: Path) -> list[str]:
    verb, *options = rng.choice(READERS)
    return [verb, str(bundle), *options]


@family
def manifests_with_a_right_seal(rng: random.Random, given: Given) -> list[str]:
    path = given.copy() / "manifest.json"
    document = mutated(json.loads(path.read_text()), rng)
    sealed(path, document if isinstance(document, dict) else {"schema_version": document})
    return reader(rng, path.parent)


@family
def manifests_as_text(rng: random.Random, given: Given) -> list[str]:
    path = given.copy() / "manifest.json"
    text = path.read_text()
    twice = text.replace('"seed":', '"seed": 7,\n "seed":')
    path.write_bytes(rng.choice((twice.encode(), b"\xff\xfe" + text.encode(), damaged(text.encode(), rng))))
    return reader(rng, path.parent)


@family
def files_with_right_hashes(rng: random.Random, given: Given) -> list[str]:
    bundle = given.copy()
    document = json.loads((bundle / "manifest.json").read_text())
    name = rng.choice(sorted(document["files"]))
    content = (bundle / name).read_bytes()
    if name.endswith(".json") and rng.random() < 0.6:
        changed = canonical_json(mutated(json.loads(content), rng)).encode("utf-8", "surrogatepass")
    else:
        changed = damaged(content, rng)
    (bundle / name).write_bytes(changed)
    document["files"][name] = hashlib.sha256(changed).hexdigest()
    sealed(bundle / "manifest.json", document)
    return reader(rng, bundle)


@family
def links_and_pipes(rng: random.Random, given: Given) -> list[str]:
    bundle = given.copy()
    victim = rng.choice(sorted(path for path in bundle.rglob("*") if path.name != "manifest.json"))
    if victim.is_dir():
        shutil.move(victim, given.folder / "elsewhere")
        victim.symlink_to(given.folder / "elsewhere")
    else:
        victim.unlink()
        make = rng.choice((lambda: victim.symlink_to("/etc/hostname"), lambda: victim.symlink_to(victim), victim.mkdir,
                           lambda: os.mkfifo(victim), lambda: victim.symlink_to("/dev/zero")))  # fmt: skip
        make()
    return reader(rng, bundle)


@family
def elastic_tables(rng: random.Random, given: Given) -> list[str]:
    source = shipped("scenes-elastic")
    assert source is not None
    bundle = given.copy(source)
    document = json.loads((bundle / "manifest.json").read_text())
    name = rng.choice(("elastic.json", "operators.json"))
    changed = canonical_json(mutated(json.loads((bundle / name).read_text()), rng)).encode("utf-8", "surrogatepass")
    (bundle / name).write_bytes(changed)
    document["files"][name] = hashlib.sha256(changed).hexdigest()
    sealed(bundle / "manifest.json", document)
    target = rng.choice(("cpu", "mobile:raspberry-pi-5", "fpga:zcu102"))
    return ["select", str(bundle), "--budget", rng.choice(("flops<=50%", "latency<=2ms")), "--target", target]


@family
def onnx_files(rng: random.Random, given: Given) -> list[str]:
    path = given.folder / "model.onnx"
    path.write_bytes(damaged((given.bundle / "artefacts" / "model.onnx").read_bytes(), rng))
    target = rng.choice(("cpu", "mobile:raspberry-pi-4", "fpga:zcu102", "gpu:a100"))
    return ["benchmark", str(path), "--target", target]


YAMLS = (
    "!!python/object/apply:pathlib.Path.touch [executed]", "a: &a [*a]", "&x {a: *x}", "- " * 4000, "[" * 50_000, "\t",
    "a: &a [1,1,1]\nb: &b [*a,*a,*a]\nc: &c [*b,*b,*b]\nd: &d [*c,*c,*c]\ne: [*d,*d,*d]\n" * 3, "\0", "", "é" * 90_000,
    "name: x\nname: y", "? {a: b}\n: c", "2001-01-01", "!!binary aGVsbG8=", "%TAG ! tag:x,2000:\n---\n!y z",
)  # fmt: skip


@family
def device_files(rng: random.Random, given: Given) -> list[str]:
    path = given.folder / "device.yaml"
    names = ("mobile.rk3566", "cpu", "fpga.zcu102", "gpu.a100", "fpga.edge-moe")
    sound = (ROOT / "targets" / "devices" / f"{rng.choice(names)}.yaml").read_text()
    path.write_text(rng.choice((*YAMLS, *(_with_a_value(sound, rng) for _ in YAMLS))), encoding="utf-8")
    return rng.choice((["targets", str(path)], ["benchmark", str(given.bundle), "--target", str(path)]))


@family
def farm_files(rng: random.Random, given: Given) -> list[str]:
    path = given.folder / "farm.yaml"
    sound = (
        "leases: leases\ndevices:\n  - name: a\n    key: b\n    reach: {ssh: a@b, program: no-ssh}\n"
        "    runner: r\n    threads: 1\n    cores: big\n    limit_s: 1\n"
    )
    (given.folder / "r").touch()
    path.write_text(rng.choice((*YAMLS, *(_with_a_value(sound, rng) for _ in YAMLS))), encoding="utf-8")
    return ["farm", str(path), str(given.bundle), "-o", str(given.folder / "farm.json")]


def _with_a_value(text: str, rng: random.Random) -> str:
    """One line of a YAML file with another value, or key."""
    lines = text.splitlines()
    index = rng.randrange(len(lines))
    key, _, _ = lines[index].partition(":")
    value = json.dumps(values(rng))[:2000]
    lines[index] = rng.choice((f"{key}: {value}", f"{key}x: 1", f"{lines[index]}\n{lines[index]}", f" {lines[index]}"))
    return "\n".join(lines)


WORDS = ("flops", "latency", "params", "energy", "<=", "<", "=", "%", "ms", "K", "40", "-1", "1e999", "nan", "inf", "0",
         " ", "\u0663", ",", "depth", "kind", "*", "drop.", "\t", "\u0661\u0660%", "--", "0x10", "1_0", "'", "\\",
         "\uff19",
         "",
         "cpu", "mobile:", "..")  # fmt: skip
OPTIONS = {
    "select": ("--budget", "--prefer", "--target", "--tasks", "--drop", "--objective", "-o"),
    "compress": ("--budget", "--drop", "--front", "--widths", "--set", "--target", "--method", "--tasks", "--epochs"),
    "benchmark": ("--target", "--against", "--shape"),
    "export": ("--to", "--precision", "--opset", "--arch", "--board", "--capability"),
}


@family
def texts(rng: random.Random, given: Given) -> list[str]:
    verb = rng.choice(sorted(OPTIONS))
    text = "".join(rng.choices(WORDS, k=rng.randrange(1, 7)))
    if rng.random() < 0.2:
        ranges = ((32, 127), (160, 0x2FFF))
        text = "".join(chr(rng.randrange(*rng.choice(ranges))) for _ in range(rng.randrange(1, 40)))
    thing = "toys:pair" if verb == "compress" else str(given.bundle)
    command = [verb, thing, f"{rng.choice(OPTIONS[verb])}={text}"]
    if verb == "compress":
        return [
            *command,
            "--epochs",
            "0",
            "--drop",
            "1",
            "-o",
            str(given.folder / "out"),
        ]  # a wrong drop ends all that pass
    return command


@family
def models_and_loaders_that_fail(rng: random.Random, given: Given) -> list[str]:
    where = rng.choice(("model", "loss", "metric", "train", "calibration", "test", "short", "shapes"))
    os.environ["FRAGILE"] = f"{where}:{rng.choice((1, 2, 3, 5, 9, 20, 60, 150))}"
    return ["compress", "fragile:workload", *QUICK, "-o", str(given.folder / "out")]


def play(number: int, name: str, bundle: Path) -> tuple[list[str], int, str | None]:
    """Make a case and run its command: (command, exit code, what was wrong or None)."""
    with tempfile.TemporaryDirectory(prefix="hostile-") as temporary, contextlib.chdir(temporary):
        given = Given(bundle, Path(temporary))
        command = FAMILIES[name](random.Random(f"{name} {number}"), given)
        before = fingerprint(given)
        code, out, err = ended(command)
        return command, code, judged(code, out, err, before, given)


def ended(command: list[str]) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), limited():
        code = run(app, command)
    return code, out.getvalue(), err.getvalue()


def judged(code: int, out: str, err: str, before: dict[str, str], given: Given) -> str | None:
    lines = err.splitlines()
    if code not in DOCUMENTED:
        return f"exit code {code}: {err[-300:]}"
    if "Traceback" in out + err:
        return "a traceback"
    if (given.folder / CANARY).exists():
        return "data were executed"
    if code and [line[:5] for line in lines if line.startswith(("error", "hint"))] not in (
        ["error", "hint:"],
        ["error"],
    ):
        return f"no clear line: {err[-300:]}"
    after = fingerprint(given)
    changed = [path for path, content in before.items() if after.get(path) != content]
    return f"changed: {changed}" if changed and code else None


def fingerprint(given: Given) -> dict[str, str]:
    """Hash of every plain file that was given."""
    paths = [path for top in (given.folder, given.bundle) for path in top.rglob("*")]
    plain = [path for path in paths if path.is_file() and not path.is_symlink()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in plain if "leases" not in path.parts}


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """SIGINT to ourselves after LIMIT_S: exit code 130, which is not among the documented ones of a refusal."""
    before = signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    signal.alarm(LIMIT_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def sound_bundle(folder: Path) -> Path:
    """The bundle that cases spoil copies of."""
    sys.path[:0] = [str(ROOT / "tests" / "cli")]
    path = folder / "sound"
    code, _, err = ended(["compress", "toys:pair", *QUICK, "-o", str(path)])
    assert code == 0, err
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="of cases, over all families")
    parser.add_argument("--only", choices=FAMILIES, help="this family")
    parser.add_argument("--start", type=int, default=0, help="number of the first case")
    args = parser.parse_args()
    names = [args.only] if args.only else list(FAMILIES)
    began, codes, wrong = time.time(), {name: Counter[str]() for name in names}, []
    with tempfile.TemporaryDirectory() as temporary:
        bundle = sound_bundle(Path(temporary))
        for number in range(args.start, args.start + args.count):
            name = names[number % len(names)]
            command, code, problem = play(number, name, bundle)
            codes[name][str(code)] += 1
            if problem:
                wrong.append({"family": name, "number": number, "command": command, "problem": problem})
                print(f"{name} {number}: {problem}\n   {command}", flush=True)
    cases = {name: dict(sorted(found.items())) for name, found in codes.items()}
    print(json.dumps(cases, indent=1), f"{len(wrong)} wrong of {args.count}, {time.time() - began:.0f} s")
    if not args.only:
        document = {"cases": args.count, "exit_codes": cases, "wrong": wrong}
        command = f"python benchmarks/hostile.py --count {args.count}"
        write_json(RESULT, {"command": command, "machine": describe(), "versions": versions(), **document})


if __name__ == "__main__":
    main()
