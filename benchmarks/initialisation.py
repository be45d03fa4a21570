"""How fast a narrow model learns, by the scale that its weights begin with: the quickstart's three variants.

    python benchmarks/initialisation.py [STEPS]

Each variant is prepared once, then trained twice for STEPS steps: with the customary 0.02, and with 1/sqrt(width) as
`[model.scratch]` does it. The figure is the share of 300 test problems that are answered exactly.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from pathlib import Path

import attrs

from modelwright.core import runner
from modelwright.core.api import Job, files
from modelwright.core.api.components import EngineSpec, TrainerSpec
from modelwright.core.chat.renderer import Renderer
from modelwright.core.config import read_run
from modelwright.core.stages.evaluate.generate import generate
from modelwright.core.stages.evaluate.suites import read_suite, with_answer
from modelwright.core.stages.train.worker import scratch_config

QUICKSTART = Path(__file__).parents[1] / "examples" / "quickstart.toml"


def exact_share(run: runner.Run, std: float, steps: int, folder: Path) -> float:
    config, prepared = run.config, run.folder.stage("prepare")
    renderer = Renderer.from_folder(prepared / "tokenizer")
    initial = scratch_config(config.model.scratch, renderer, max_length=config.data.tokens.max_length)
    files.write_json(folder / "initial" / "config.json", initial | {"initializer_range": std})
    settings = attrs.evolve(config.train, max_steps=steps, checkpoint_every=steps)
    job = Job(
        folder=folder,
        model=folder / "initial",
        output=folder / "model",
        tokens=prepared / "train",
        holdout=None,
        settings=settings,
        seed=config.seed,
        fingerprint=str(std),
        emit=lambda *_: None,
        stopping=lambda: False,
    )
    run.plugins.get(TrainerSpec, "local").create(settings.options).train(job)
    renderer.save(job.output)
    return asyncio.run(accuracy(run, renderer, job.output))


async def accuracy(run: runner.Run, renderer: Renderer, model: Path) -> float:
    suite = run.config.evaluate[0]
    examples = [with_answer(example) for example in read_suite(suite, run.plugins, seed=run.config.seed)]
    engine = run.plugins.get(EngineSpec, "torch").create()
    engine.load(model)
    settings = {"settings": suite.generation, "samples": 1, "seed": 0, "context": 128, "progress": lambda _: None}
    outputs = await generate(engine, renderer, examples, **settings)
    engine.close()
    texts = [given.text.rpartition("#### ")[2].strip() for (given,) in outputs]
    return sum(text == example.answer for text, example in zip(texts, examples, strict=True)) / len(examples)


def main() -> None:
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["MODELWRIGHT_HOME"] = scratch
        read = read_run(QUICKSTART)
        for config in read.configs:
            run = runner.open_run(config, read.plugins)
            runner.execute(run, only="prepare")
            width = config.model.scratch.hidden_size
            for std in (0.02, width**-0.5):
                share = exact_share(run, std, steps, Path(scratch) / f"{config.name}-{std}")
                print(f"{config.name:22} initialised with {std:.3f}: {share:.3f} after {steps} steps", flush=True)


if __name__ == "__main__":
    main()
