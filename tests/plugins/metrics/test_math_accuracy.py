from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from attrs import evolve

from modelwright import Example, MissingDependencyError, Output
from modelwright.plugins.formats.math import MathFormat, MathOptions
from modelwright.plugins.metrics.grading import MathAccuracy, MathAccuracyOptions

MEGABYTES = 10_000_000


@pytest.fixture(scope="module")
def metric():
    """The metric with a time limit that an honest comparison keeps on a busy machine."""
    made = MathAccuracy(MathAccuracyOptions(time_limit=20))
    yield made
    made.close()


@pytest.fixture
def hasty():
    """The metric with a short time limit."""
    made = MathAccuracy(MathAccuracyOptions(time_limit=0.5))
    yield made
    made.close()


def grade(metric, reference, *texts):
    return metric.score(Example(answer=reference), [Output(text=text) for text in texts])


def worker_pid(metric):
    return metric._comparer._worker.pid


def is_alive(pid):
    """Whether the process runs; one that has ended and waits for its parent to notice does not."""
    try:
        if Path("/proc/self/stat").exists():
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        os.kill(pid, 0)
    except (FileNotFoundError, ProcessLookupError):
        return False
    return True


@pytest.mark.parametrize(
    ("reference", "text", "verdict"),
    [
        ("72", "Some steps.\n#### 72", "correct"),
        ("1,080", "#### 1080.00", "correct"),
        ("72", "72", "correct"),
        ("72", "Some steps.\nThe end.", "no_answer"),
        ("72", "", "no_answer"),
        ("72", "#### 73", "wrong"),
        ("2x+3", r"Thus $\boxed{3 + 2x}$.", "correct"),
        ("x^2-1", r"\boxed{(x-1)(x+1)}", "correct"),
        (r"\frac{\sqrt{2}}{2}", r"\boxed{\frac{1}{\sqrt{2}}}", "correct"),
        (r"\{1,2\}", r"\boxed{\{2,1\}}", "correct"),
        ("(1,2)", r"\boxed{(2,1)}", "wrong"),
        ("[0,1)", r"\boxed{[0,1]}", "wrong"),
        ("x^2", r"\boxed{x^2+1}", "wrong"),
        ("5", r"\boxed{5x}", "wrong"),
        ("5", r"\boxed{1/0}", "wrong"),
        ("5", r"\boxed{5 \text{ or } 6}", "wrong"),
        (r"so \boxed{7}", "7", "correct"),
        ("steps\n#### 7", "7", "correct"),
    ],
)
def test_answers_are_graded(metric, reference, text, verdict):
    """Numbers and expressions are correct, wrong or not there, and a reason is given."""
    score = grade(metric, reference, text)
    assert (score.verdict, score.value) == (verdict, float(verdict == "correct")), score.reason
    assert score.reason


def test_a_cut_off_output_without_an_answer_says_so(metric):
    """The samples show that max_tokens ended the output."""
    score = metric.score(Example(answer="7"), [Output(text="First\nI", finish="length")])
    assert score.verdict == "no_answer"
    assert "cut off at max_tokens" in score.reason


def test_several_outputs_count_with_their_share(metric):
    """The value of several samples is their mean; an answer that most lack is the verdict."""
    score = grade(metric, "7", "#### 7", "Well.\nHm.", "Well.\nHm.", "#### 8")
    assert (score.value, score.verdict) == (0.25, "no_answer")


@pytest.mark.parametrize("example", [Example(text="plain"), Example(answer=" ")])
def test_an_example_without_a_reference_is_an_error_verdict(metric, example):
    """What cannot be graded is not called wrong."""
    assert metric.score(example, [Output(text="7")]).verdict == "error"


def test_numbers_need_no_process(hasty):
    """A suite of numbers never starts Math-Verify."""
    assert grade(hasty, "1,000", "#### 1000.0").verdict == "correct"
    assert hasty._comparer._worker is None


def test_the_process_is_used_again(metric):
    """One worker serves many comparisons."""
    grade(metric, "x", r"\boxed{y}")
    first = worker_pid(metric)
    grade(metric, "x", r"\boxed{z}")
    assert worker_pid(metric) == first


@pytest.mark.parametrize("answer", ["9^{9^{9^{9}}}", "((100000!)!)!"])
def test_a_comparison_beyond_the_time_limit_is_wrong_and_its_process_replaced(hasty, answer):
    """Arithmetic without end is cut off; the next comparison has a new process and the right verdict."""
    hasty._comparer.time_limit = 20
    assert grade(hasty, "2x", r"\boxed{x+x}").verdict == "correct"
    stuck = worker_pid(hasty)
    hasty._comparer.time_limit = 0.5
    started = time.monotonic()
    score = grade(hasty, "5", rf"\boxed{{{answer}}}")
    assert time.monotonic() - started < 5
    assert score.verdict == "wrong"
    assert "time limit of 0.5 s" in score.reason
    assert not is_alive(stuck)
    hasty._comparer.time_limit = 20
    assert grade(hasty, "2x", r"\boxed{x+x}").verdict == "correct"


def test_a_process_that_dies_is_replaced(metric):
    """A crash costs one comparison at most, not the suite."""
    grade(metric, "x", r"\boxed{y}")
    os.kill(worker_pid(metric), signal.SIGKILL)
    lost = grade(metric, "2x", r"\boxed{x+x}")
    assert lost.verdict == "wrong"
    assert "process ended: exit status -9" in lost.reason
    assert grade(metric, "2x", r"\boxed{x+x}").verdict == "correct"


@pytest.mark.parametrize(
    ("reference", "text"),
    [
        ("5", "a" * MEGABYTES),
        ("5", "#" * MEGABYTES),
        ("5", "\n" * MEGABYTES),
        ("5", "#### " + "1" * MEGABYTES),
        ("5", "\\boxed{" * (MEGABYTES // 70)),
        ("5", "\\boxed{" + "{" * (MEGABYTES // 10)),
        ("5", "\\boxed{" * (MEGABYTES // 70) + "}" * (MEGABYTES // 70)),
        ("5", r"\boxed{9**9**9**9}"),
        ("x", "\\boxed{\0x}"),
        ("x", "\\boxed{\ud800}"),
        ("\ud800x", r"\boxed{x}"),
        ("5", "#### 5}{"),
        ("5", r"#### 5} \boxed{"),
        ("5x", r"\boxed{" + "9" * 1_900 + "x}"),
        ("5", r"\boxed{1e999999999}"),
    ],
    ids=[
        "letters",
        "hashes",
        "newlines",
        "digits",
        "boxes",
        "braces",
        "nested",
        "tower",
        "nul",
        "surrogate",
        "surrogate-reference",
        "closed-first",
        "boxed-after",
        "long-product",
        "exponent",
    ],
)
def test_no_output_hangs_or_breaks_the_metric(metric, reference, text):
    """Ten megabytes, towers of powers, open braces, NUL and lone surrogates get a verdict soon."""
    started = time.monotonic()
    assert grade(metric, reference, text).verdict in ("wrong", "no_answer")
    assert time.monotonic() - started < 25


def test_the_process_ends_with_close(metric):
    """`close` ends the worker; a later comparison starts another."""
    grade(metric, "x", r"\boxed{y}")
    pid = worker_pid(metric)
    metric.close()
    assert not is_alive(pid)
    assert grade(metric, "2x", r"\boxed{x+x}").verdict == "correct"


@pytest.mark.parametrize("busy", [False, True])
def test_the_process_ends_when_its_parent_is_killed(busy):
    """A killed evaluation leaves no worker behind, not even one amid a comparison without end."""
    program = f"""
        import os, signal, threading
        from modelwright.plugins.metrics.math_verify_process import Comparer
        comparer = Comparer(time_limit=3)
        comparer.compare("x", "y")
        print(comparer._worker.pid, flush=True)
        if {busy}:
            threading.Timer(1, os.kill, (os.getpid(), signal.SIGKILL)).start()
            comparer.compare("x", "9^{{9^{{9^{{9}}}}}}")
        os.kill(os.getpid(), signal.SIGKILL)
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, timeout=60, check=False
    )
    assert ended.returncode == -signal.SIGKILL
    pid = int(ended.stdout)
    deadline = time.monotonic() + 15
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not is_alive(pid)


def test_a_missing_math_verify_says_what_to_install(monkeypatch):
    """Without the package the metric refuses at once, not in the middle of a suite."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'modelwright\[train\]'"):
        MathAccuracy(MathAccuracyOptions())


@pytest.mark.parametrize("limit", [0, -1, float("inf"), float("nan")])
def test_a_time_limit_is_positive_and_finite(limit):
    """A limit that would be none is refused."""
    with pytest.raises(ValueError, match="time_limit"):
        evolve(MathAccuracyOptions(), time_limit=limit)


def test_listing_the_metrics_imports_no_algebra():
    """The descriptors' module imports neither sympy nor Math-Verify nor torch."""
    heavy = "('sympy', 'math_verify', 'torch')"
    program = f"import sys, modelwright.plugins.metrics; print([name for name in {heavy} if name in sys.modules])"
    listed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert listed.stdout.strip() == "[]"


def references(shared_rows, name):
    reader = MathFormat(MathOptions())
    return [example for row in shared_rows(name) for example in reader.read(row)]


def test_every_gsm8k_solution_is_correct_against_its_answer(metric, shared_rows):
    """All 7,473 reference solutions get full marks."""
    examples = references(shared_rows, "gsm8k/train.jsonl")
    scores = [metric.score(example, [Output(text=example.messages[-1].content)]) for example in examples]
    assert [score.reason for score in scores if score.verdict != "correct"] == []
    assert metric.aggregate(scores).n == 7_473


def test_every_math_solution_is_correct_against_its_answer(metric, shared_rows):
    """All 1,500 reference solutions get full marks; every tenth answer also as Math-Verify alone sees it."""
    examples = references(shared_rows, "math/sample.jsonl")
    scores = [metric.score(example, [Output(text=example.messages[-1].content)]) for example in examples]
    assert [score.reason for score in scores if score.verdict != "correct"] == []
    for example in examples[::10]:
        assert metric._comparer.compare(example.answer, example.answer).equal, example.answer


def test_another_problems_answer_is_wrong(metric, shared_rows):
    """Of neighbouring competition problems with different answers, almost none passes for the other."""
    answers = [example.answer for example in references(shared_rows, "math/sample.jsonl")][::5]
    pairs = [(one, other) for one, other in itertools.pairwise(answers) if one != other]
    passed = [pair for pair in pairs if grade(metric, pair[0], rf"\boxed{{{pair[1]}}}").value]
    assert passed == []


def test_verdicts_agree_with_graded_solutions(metric, shared_rows):
    """On 5,276 answers of four models the verdict is the one on record, every time."""
    rows = shared_rows("gsm8k/graded_solutions.jsonl")
    disagreements = []
    for row in rows:
        steps, marked, answer = row["prediction"].rpartition("\nA: ")
        text = f"{steps}\n#### {answer}" if marked else row["prediction"]
        if (grade(metric, row["gold"], text).verdict == "correct") != row["is_correct"]:
            disagreements.append((row["gold"], text[-60:]))
    assert len(rows) == 5_276
    assert disagreements == []
