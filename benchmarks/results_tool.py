"""Section of docs/results.md: what the tool itself costs."""

from __future__ import annotations

import statistics

from results_kit import Document, goal, section, table


@section("The tool itself", "self.json")
def tool(document: Document) -> list[str]:
    commands = document["commands"]
    rows = [
        (f"`{each['command']}`", f"{statistics.median(each['seconds']):.2f} s", f"{each['ratio']:.1f} × {each['to']}")
        for each in commands.values()
    ]
    costs = [
        (f"`{name}`", ", ".join(f"{cost['what']} {100 * cost['share']:.0f} %" for cost in each["costs"]))
        for name, each in commands.items()
    ]
    help_s = statistics.median(commands["help"]["seconds"])
    return [
        "Times of whole processes.", "", *table(("command", "time", "beside what it cannot do without"), rows), "",
        *table(("command", "its ten largest costs, libraries counted for who calls them"), costs), "",
        goal(f"`--help` answers within 0.3 s ({help_s:.2f} s)", help_s <= 0.3),
    ]  # fmt: skip
