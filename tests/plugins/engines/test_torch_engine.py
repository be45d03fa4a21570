"""Engine `torch` on real, tiny models: what it generates, and who waits for whom."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
import time

import pytest

from modelwright.core.api.errors import ModelwrightError, UsageError
from modelwright.core.testing.engine import collect, join, patiently, request, run_all


def families(small_llama, vocabulary=320):
    """Configs of several model families: other positions, other attention, other caches."""
    import transformers as hf

    llama = small_llama().to_dict()
    common = {
        key: llama[key]
        for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    }
    grouped = {**common, "num_key_value_heads": 2, "max_position_embeddings": 256}
    return {
        "llama": small_llama(),
        "gpt2": hf.GPT2Config(
            vocab_size=vocabulary, n_embd=32, n_layer=2, n_head=4, n_positions=256, bos_token_id=2, eos_token_id=1
        ),
        "bloom": hf.BloomConfig(vocab_size=vocabulary, hidden_size=32, n_layer=2, n_head=4),  # takes no position_ids
        "mistral": hf.MistralConfig(**grouped, sliding_window=8),
        "gemma3": hf.Gemma3TextConfig(
            **grouped, head_dim=8, sliding_window=8, layer_types=["sliding_attention", "full_attention"]
        ),
        "lfm2": hf.Lfm2Config(**grouped, layer_types=["conv", "full_attention"]),  # a state beside the cache
    }


FAMILIES = ("llama", "gpt2", "bloom", "mistral", "gemma3", "lfm2")


def prompts(count, longest=60):
    numbers = random.Random(7)
    return [tuple(numbers.randrange(3, 320) for _ in range(numbers.randint(1, longest))) for _ in range(count)]


def generated_by_transformers(folder, prompt, count):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    tokens = torch.tensor([prompt])
    done = model.generate(
        tokens, attention_mask=torch.ones_like(tokens), do_sample=False, max_new_tokens=count, pad_token_id=0
    )
    return tuple(done[0, len(prompt) :].tolist())


def watch(engine):
    """The shapes of what the model is fed from now on, as (rows, new tokens)."""
    shapes = []

    def hook(_module, _arguments, keywords):
        shapes.append(tuple(keywords["input_ids"].shape))

    engine._running.model.model.register_forward_pre_hook(hook, with_kwargs=True)
    return shapes


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_is_what_transformers_generates(family, small_llama, make_model, start, tmp_path):
    """Prompts of many lengths that come in waves give what each gives alone in `model.generate`."""
    folder = make_model(tmp_path / family, families(small_llama)[family])
    engine = start(folder, max_batch=6)
    requests = [request(prompt, max_tokens=4 + 5 * (index % 4)) for index, prompt in enumerate(prompts(12))]

    async def scenario():
        tasks = []
        for index, one in enumerate(requests):
            tasks.append(asyncio.create_task(collect(engine.submit(one))))
            if index % 4 == 3:
                await asyncio.sleep(0.005)  # the others run on meanwhile
        return [await task for task in tasks]

    for one, output in zip(requests, patiently(scenario()), strict=True):
        assert output.token_ids == generated_by_transformers(folder, one.prompt, one.sampling.max_tokens)


def test_the_model_varies(llama, start):
    """The random model of these tests is not constant: else they would prove little."""
    outputs = run_all(start(llama), [request(prompt) for prompt in prompts(6)])
    assert len({token for output in outputs for token in output.token_ids}) > 10


def test_logprobs_are_the_models_own(llama, start):
    """The sum over an answer is what the model gives for the same tokens in one pass."""
    import torch
    from transformers import AutoModelForCausalLM

    prompt = prompts(3)[2]
    output = run_all(start(llama), [request(prompt, logprobs=True, temperature=1.4, seed=5)])[0]
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.tensor([prompt + output.token_ids])).logits[0]
    expected = logits.log_softmax(-1)[len(prompt) - 1 : -1].gather(1, torch.tensor(output.token_ids)[:, None])
    assert output.logprobs == pytest.approx(expected[:, 0].tolist(), abs=1e-4)


def test_a_short_request_does_not_wait_for_a_long_one(llama, start):
    """A request that comes while a long one runs joins it at the next iteration and is done first."""
    engine = start(llama)

    async def scenario():
        long = engine.submit(request(prompts(1)[0], id="long", max_tokens=600))
        seen = [await anext(long) for _ in range(5)]
        output = await collect(engine.submit(request(prompts(2)[1], max_tokens=5)))
        running = "long" in engine._running.scheduler._by_id
        seen += [delta async for delta in long]
        return output, running, join(seen)

    short, running, long = patiently(scenario())
    assert len(short.token_ids) == 5
    assert running, "the long request should have hundreds of tokens to go"
    assert len(long.token_ids) == 600


def test_requests_that_come_one_by_one_share_their_steps(llama, start):
    """Rows that joined at different times are stepped together, not one after the other."""
    engine = start(llama)
    shapes = watch(engine)

    async def scenario():
        tasks = []
        for prompt in prompts(6, longest=30):
            stream = engine.submit(request(prompt, max_tokens=200))
            first = await anext(stream)
            tasks.append(asyncio.create_task(collect(stream)))
            assert first.finish is None
        await asyncio.gather(*tasks)

    patiently(scenario())
    assert max(rows for rows, new in shapes if new == 1) == 6


def test_max_batch_limits_rows_and_keeps_the_order(llama, start):
    """No more than max_batch rows run at once; the rest begin in the order in which they came."""
    engine = start(llama, max_batch=2)
    shapes = watch(engine)
    begun = []

    async def one(number, stream):
        async for _ in stream:
            if number not in begun:
                begun.append(number)

    async def scenario():
        streams = [engine.submit(request(prompts(1)[0] + (number,), max_tokens=3)) for number in range(7)]
        await asyncio.gather(*(one(number, stream) for number, stream in enumerate(streams)))

    patiently(scenario())
    assert begun == list(range(7))
    assert max(rows for rows, _ in shapes) == 2


def test_prompts_of_very_different_lengths_are_not_padded_to_the_longest(llama, start):
    """A long prompt among short ones is run apart, and its cache stays apart while that saves much."""
    engine = start(llama)
    shapes = watch(engine)
    short = [(5 + number,) * 10 for number in range(20)]
    alone = [run_all(engine, [request(prompt)])[0].token_ids for prompt in (short[3], (9, 8) * 400)]
    del shapes[:]
    outputs = run_all(engine, [request(prompt, max_tokens=100) for prompt in ((9, 8) * 400, *short)])
    assert [outputs[4].token_ids[:12], outputs[0].token_ids[:12]] == alone
    assert {(rows, new) for rows, new in shapes if new not in {1, 10}} == {(1, 800)}
    assert {rows for rows, new in shapes if new == 1} >= {1, 20}, (
        "the 20 short ones share a cache, without the long one"
    )
    assert 21 not in {rows for rows, _ in shapes}


def test_a_seed_repeats_in_any_company(llama, start):
    """What a seed gives does not depend on who runs beside it, nor on when they come and go."""
    engine = start(llama, max_batch=5)
    mine = [
        {"prompt": prompt, "temperature": 1.2, "top_p": 0.9, "seed": index, "max_tokens": 20}
        for index, prompt in enumerate(prompts(4))
    ]
    alone = [run_all(engine, [request(**one)])[0] for one in mine]
    crowd = [request(prompt, temperature=0.9, max_tokens=3 + 2 * n) for n, prompt in enumerate(prompts(9))]
    together = run_all(engine, [*crowd[:4], *(request(**one) for one in mine), *crowd[4:]])
    assert together[4:8] == alone


def test_without_a_seed_samples_differ(llama, start):
    """Requests without seeds draw fresh numbers."""
    outputs = run_all(start(llama), [request(prompts(1)[0], temperature=1.5) for _ in range(4)])
    assert len({output.token_ids for output in outputs}) > 1


def test_stop_texts_are_cut_wherever_they_lie(llama, start):
    """Any part of an answer, as a stop text, ends it there; nothing of it leaks into an earlier delta."""
    engine = start(llama)
    prompt = prompts(5)[4]
    text = run_all(engine, [request(prompt, max_tokens=40)])[0].text
    stops = [text[start:][:length] for start in range(0, len(text) - 3, 4) for length in (1, 3)]
    outputs = run_all(engine, [request(prompt, max_tokens=40, stop=("never seen", stop)) for stop in stops])
    for stop, output in zip(stops, outputs, strict=True):
        assert (output.text, output.finish) == (text[: text.index(stop)], "stop")


def test_a_full_context_ends_with_length(small_llama, make_model, start, tmp_path):
    """Prompt and answer together fill the context to the last token, not beyond."""
    engine = start(make_model(tmp_path / "model", small_llama(max_position_embeddings=32)))
    assert engine.context == 32
    for size in (20, 31):
        output = run_all(engine, [request((7,) * size, max_tokens=100)])[0]
        assert (len(output.token_ids), output.finish) == (32 - size, "length")


def test_requests_that_cannot_run_are_refused_at_once(llama, start):
    """Each with a sentence that says what is wrong; the engine goes on."""
    engine = start(llama)

    async def scenario():
        with pytest.raises(UsageError, match="1024 tokens and the model's context 1024; at most 1023"):
            engine.submit(request((5,) * 1024))
        with pytest.raises(UsageError, match="token 320 of its prompt is unknown; the model has tokens 0 to 319"):
            engine.submit(request((5, 320)))
        with pytest.raises(UsageError, match="token -1"):
            engine.submit(request((-1,)))
        with pytest.raises(UsageError, match="a stop string is empty"):
            engine.submit(request((5,), stop=("x", "")))
        return await collect(engine.submit(request((5,))))

    assert patiently(scenario()).finish == "length"


def test_an_error_of_the_model_fails_those_in_the_step_alone(llama, start):
    """Who was in the failing step hears why; who waits is served, and the engine goes on."""
    engine = start(llama, max_batch=2)
    fail = threading.Event()

    def hook(*_):
        if fail.is_set():
            fail.clear()
            raise RuntimeError("out of\nmemory")

    engine._running.model.model.register_forward_pre_hook(hook)

    async def scenario():
        running = [engine.submit(request(prompt, max_tokens=300)) for prompt in prompts(2)]
        waiting = engine.submit(request((5, 6)))
        for stream in running:
            await anext(stream)
        fail.set()
        for stream in running:
            with pytest.raises(ModelwrightError, match="the model failed in a batch of 2: RuntimeError: out of memory"):
                await collect(stream)
            with pytest.raises(StopAsyncIteration):
                await anext(stream)
        return await collect(waiting)

    assert patiently(scenario()).finish == "length"
    fail.set()  # now while prompts are taken in
    with pytest.raises(ModelwrightError, match="out of memory"):
        run_all(engine, [request((5, 6))])
    assert run_all(engine, [request((5, 6))])[0].finish == "length"


def test_weights_that_are_no_numbers_are_an_error(llama, small_llama, make_model, start, tmp_path):
    """A model whose training diverged says so instead of writing nonsense."""
    from safetensors.torch import load_file, save_file

    folder = make_model(tmp_path / "model", small_llama())
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][:] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelwrightError, match="logits are not finite"):
        run_all(start(folder), [request((5, 6))])


def ended(engine, patience=30.0):
    """Whether no request runs any more, after at most `patience` seconds."""
    scheduler = engine._running.scheduler
    until = time.monotonic() + patience
    while time.monotonic() < until:
        if not scheduler._cohorts and not scheduler._waiting and not scheduler._by_id:
            return True
        time.sleep(0.005)
    return False


def test_a_request_whose_client_left_is_not_served_on(llama, start):
    """A dropped iterator, a cancelled task, a closed event loop: each frees its row long before its answer's end."""
    engine = start(llama)
    shapes = watch(engine)
    kept = []  # iterators that are not dropped

    def submit():
        return engine.submit(request((5, 6), max_tokens=1000))

    async def dropped():
        async for _ in submit():
            break
        gc.collect()
        assert await asyncio.to_thread(ended, engine)

    async def cancelled():
        kept.append(submit())
        task = asyncio.create_task(collect(kept[-1]))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(ended, engine)

    async def left():
        kept.append(submit())

    for leave in (dropped, cancelled, left):
        del shapes[:]
        patiently(leave())
        assert ended(engine)
        assert len(shapes) < 900, leave.__name__


def test_a_waiting_request_can_be_cancelled(llama, start):
    """A request that has not begun ends as cancelled with nothing, and the queue moves on."""
    engine = start(llama, max_batch=1)

    async def scenario():
        first = engine.submit(request((5, 6), max_tokens=30))
        second = engine.submit(request((7, 8), id="second"))
        third = engine.submit(request((9,)))
        engine.cancel("second")
        return [await collect(stream) for stream in (second, first, third)]

    second, first, third = patiently(scenario())
    assert (second.text, second.token_ids, second.finish) == ("", (), "cancelled")
    assert (first.finish, third.finish) == ("length", "length")


def test_several_event_loops_share_an_engine(llama, start):
    """Threads with loops of their own each get their own answers."""
    engine = start(llama)
    expected = [run_all(engine, [request(prompt)])[0] for prompt in prompts(4)]
    got = {}

    def work(number):
        got[number] = run_all(engine, [request(prompts(4)[number])])[0]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [got[number] for number in range(4)] == expected


def test_a_dropped_engine_ends_its_thread(llama):
    """An engine that nobody closed takes its thread with it."""
    from modelwright.plugins.engines import TorchOptions
    from modelwright.plugins.engines.torch_engine import TorchEngine

    engine = TorchEngine(TorchOptions(device="cpu"))
    engine.load(llama)
    thread = engine._running.scheduler._thread
    assert thread.is_alive()
    del engine
    gc.collect()
    assert not thread.is_alive()


def test_an_engine_is_loaded_once(llama, start):
    """Using it before load, loading twice, or after close, are errors that say so."""
    from modelwright.plugins.engines import TorchOptions
    from modelwright.plugins.engines.torch_engine import TorchEngine

    with pytest.raises(ModelwrightError, match="call load"):
        TorchEngine(TorchOptions()).submit(request((5,)))
    engine = start(llama)
    with pytest.raises(ModelwrightError, match="one model, once"):
        engine.load(llama)
    engine.close()
    engine.close()
    engine.cancel("nobody")
    with pytest.raises(ModelwrightError, match="closed"):
        engine.submit(request((5,)))


def test_a_test_set_takes_seconds(small_llama, make_model, start, tmp_path):
    """300 prompts of a 0.2 M-parameter model, 10 tokens each, stay far below a minute of one core."""
    folder = make_model(tmp_path / "model", small_llama(hidden_size=64, intermediate_size=256))
    engine = start(folder)
    begun = time.process_time()
    outputs = run_all(engine, [request(prompt, max_tokens=10) for prompt in prompts(300)])
    assert sum(len(output.token_ids) for output in outputs) == 3000
    assert time.process_time() - begun < 8
