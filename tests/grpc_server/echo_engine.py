"""A third-party engine plugin for the tests: it repeats its prompt, after a mark that says which model it is.

Its text can be foretold, it takes as long as its model's config.json says, and its journal tells what was asked of it.
"""

import asyncio
import json

from modelwright import Delta, EngineSpec, hookimpl

journal = []
prompts = []  # the token ids of each request


class EchoEngine:
    def __init__(self, _options):
        self.running = {}
        self.closed = False

    def load(self, folder):
        from tokenizers import Tokenizer

        config = json.loads((folder / "config.json").read_text())
        if config.get("broken"):
            raise RuntimeError("these weights are broken")
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.mark = config["mark"]
        self.seconds = config.get("seconds_per_token", 0.0)
        self.mute = config.get("mute", False)
        journal.append(("load", self.mark))

    async def submit(self, request):
        assert not self.closed, "a closed engine was asked"
        if self.mute:
            raise RuntimeError("it does not speak")
        prompts.append(tuple(request.prompt))
        said = [token for token in request.prompt if self.tokenizer.decode([token])]
        tokens = self.tokenizer.encode(f"{self.mark}:", add_special_tokens=False).ids + said
        self.running[request.id] = asyncio.Event()
        finish, text = "stop", ""
        try:
            for number, token in enumerate(tokens, 1):
                await asyncio.sleep(self.seconds)
                if self.running[request.id].is_set():
                    finish = "cancelled"
                    break
                text += self.tokenizer.decode([token])
                if text.endswith(request.sampling.stop or ("\0",)):
                    break
                logprobs = (-0.5,) if request.logprobs else None
                yield Delta(text=self.tokenizer.decode([token]), token_ids=(token,), logprobs=logprobs)
                if number == request.sampling.max_tokens:
                    finish = "length"
                    break
            yield Delta(finish=finish)
            journal.append(("finish", self.mark, finish))
        finally:
            del self.running[request.id]

    def cancel(self, request_id):
        journal.append(("cancel", self.mark))
        if request_id in self.running:
            self.running[request_id].set()

    def close(self):
        journal.append(("close", getattr(self, "mark", None), len(self.running)))
        self.closed = True
        for stopped in self.running.values():
            stopped.set()


@hookimpl
def modelwright_engines():
    yield EngineSpec(
        name="echo", summary="repeats its prompt", factory="echo_engine:EchoEngine", abilities={"stop", "logprobs"}
    )
