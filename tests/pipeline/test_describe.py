"""A graph as text and as a Mermaid flowchart."""

from __future__ import annotations

from attent.pipeline.combinators import repeat, sequence, when
from attent.pipeline.describe import describe, to_mermaid
from attent.pipeline.stage import Stage
from tests.pipeline.test_stage import assign

STEP = Stage(
    name="step",
    reads=["x", ("clock", "step"), ("clock", "seen")],
    writes=[("clock", "step")],
    apply=lambda s: s,
    note='adds "one"',
)
MARK = assign("mark", "y", ["x"], lambda x: x)
LOG = assign("log", "z", [], lambda: None)
TICK = sequence(
    "tick",
    repeat("twice", STEP, 2),
    when(("plan", "due"), sequence("both", MARK, LOG)),
    when("tired", assign("rest", "x", ["x"], lambda x: x), name="maybe"),
)


def test_describe():
    assert describe(STEP) == 'step: clock/{seen, step}, x -> clock/step  [adds "one"]'
    assert describe(TICK) == "\n".join(
        [
            "tick (sequence)",
            "  twice (repeat)  [2 times]",
            '    step: clock/{seen, step}, x -> clock/step  [adds "one"]',
            "  when plan/due: both",
            "    both (sequence)",
            "      mark: x -> y",
            "      log: nothing -> z",
            "  maybe (when tired)",
            "    rest: x -> x",
        ]
    )


def test_mermaid():
    assert to_mermaid(MARK) == 'flowchart TD\n  n0["mark"]'
    assert to_mermaid(TICK) == "\n".join(
        [
            "flowchart TD",
            '  subgraph n0 ["tick"]',
            '    subgraph n1 ["twice (2 times)"]',
            '      n2["step<br/>adds #quot;one#quot;"]',
            "    end",
            '    subgraph n3 ["when plan/due: both"]',
            '      subgraph n4 ["both"]',
            '        n5["mark"]',
            '        n6["log"]',
            "      end",
            "    end",
            '    subgraph n7 ["maybe"]',
            '      n8["rest"]',
            "    end",
            "  end",
            "  n2 -->|if plan/due| n5",
            "  n5 --> n6",
            "  n6 -->|if tired| n8",
        ]
    )


def test_every_subgraph_of_a_mermaid_chart_ends():
    graph = TICK
    for depth in range(3):
        graph = when("on", repeat(f"again {depth}", sequence(f"s {depth}", graph, MARK), 2))
    open_at = 0
    for line in to_mermaid(graph).splitlines()[1:]:
        word = line.split()[0]
        open_at += (word == "subgraph") - (word == "end")
        assert open_at >= 0
        assert open_at > 0 or "-->" in line or word == "end"  # stages are inside the graph
    assert open_at == 0
