"""Sections of docs/results.md: what was thrown at it, and what came of that."""

from __future__ import annotations

from results_kit import Document, goal, section, table


@section("Hostile input", "hostile.json")
def hostile(document: Document) -> list[str]:
    rows = [(family, sum(codes.values()), *(codes.get(str(code), 0) for code in (0, 2, 3, 4)))
            for family, codes in document["exit_codes"].items()]  # fmt: skip
    wrong = document["wrong"]
    return [
        "Each case is drawn from its number; 0 means that it was harmless, 2 to 4 that it was refused in one line.", "",
        *table(("given", "cases", "exit code 0", "2", "3", "4"), rows), "",
        goal(f"every case ends as documented, changes nothing, executes nothing ({document['cases'] - len(wrong)} of "
             f"{document['cases']})", not wrong),
    ]  # fmt: skip


@section("Random graphs", "random_graphs.json")
def random_graphs(document: Document) -> list[str]:
    failed = document["failed"]
    return [
        f"{document['graphs']:,} graphs of {len(document['kinds'])} kinds of steps, attention among them, in "
        f"{document['seconds'] / 60:.0f} minutes: masked == cut in double precision, twice each, costs as counted, "
        f"and {document['exported']:,} cut models the same in ONNX Runtime. Of {document['groups']:,} groups "
        f"{document['prunable']:,} were prunable and {document['outputs']:,} outputs of the model; the others stay "
        "whole (a single channel, or sizes that the code fixes).", "",
        goal(f"no wrong model and no error ({len(failed)} of {document['graphs']:,})", not failed),
        goal(f"10,000 graphs ({document['graphs']:,})", document["graphs"] >= 10_000, "There was no more time."),
    ]  # fmt: skip


@section("kill -9 at random moments", "killed.json")
def killed(document: Document) -> list[str]:
    methods = document["methods"]
    rows = [(name, each["kills"], each["runs"], each["same"]) for name, each in methods.items()]
    kills, same = min(each["kills"] for each in methods.values()), all(e["same"] == e["runs"] for e in methods.values())
    return [
        "The same: of a model its weights and channel maps, byte by byte; of a calibration the operators and networks, "
        "each measured as often; of a farm one outcome for each job, the one that was noted first.", "",
        *table(("method", "kills", "runs", "ended the same"), rows), "",
        goal(f"20 kills of each method (least: {kills})", kills >= 20),
        goal(f"all six methods tried ({', '.join(methods)})", len(methods) == 6, "There was no more time."),
        goal("a resumed run ends in the same as one that nobody stopped", same),
    ]  # fmt: skip


@section("Long use of one process", "long_use.json")
def long_use(document: Document) -> list[str]:
    uses = {name: document[name] for name in ("selections", "benchmarks")}
    rows = [(name, each["times"], each["mib"][0], each["mib"][-1], f"{each['second_half_mib']:+.1f}")
            for name, each in uses.items()]  # fmt: skip
    most = max(each["second_half_mib"] for each in uses.values())
    return [
        *table(("used", "times", "MiB after a tenth", "at the end", "of which in the second half"), rows), "",
        goal(f"no growing memory (second half: {most:+.1f} MiB at most)", most < 5),
    ]  # fmt: skip
