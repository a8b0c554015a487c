"""The engine's way on CUDA, walked on a CPU: what is captured is recorded operation by operation, and replayed."""

from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from player import device_memory
from player.engine import Engine, RenderOptions
from player.generator import load_generator

_HOST_ASKS = ("aten._local_scalar_dense", "aten.nonzero", "aten.is_nonzero", "aten.equal")


class Recorder(TorchDispatchMode):
    """Records operations as a graph does: with the tensors they read and write, whatever the values; the host may ask
    for none of those meanwhile."""

    def __init__(self, graph):
        super().__init__()
        self._graph = graph

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        assert not str(operation).startswith(_HOST_ASKS), f"{operation} would wait for the device in a capture"
        output = operation(*args, **(kwargs or {}))
        self._graph.append((operation, args, kwargs or {}, output))
        return output


class Graph:
    """In the place of torch.cuda.CUDAGraph."""

    made = 0

    def __init__(self):
        Graph.made += 1
        self.steps, self.replays = [], 0

    def replay(self):
        self.replays += 1
        for operation, args, kwargs, output in self.steps:
            for own, new in zip(_tensors(output), _tensors(operation(*args, **kwargs)), strict=True):
                if own.data_ptr() != new.data_ptr():  # a view is up to date with what it looks at
                    own.copy_(new)


def _tensors(value):
    found = []
    tree_map(lambda leaf: found.append(leaf) if isinstance(leaf, torch.Tensor) else None, value)
    return found


class Stream:
    """In the place of a CUDA stream; notes what waits for it."""

    def __init__(self, device=None):
        self.waited_for = []

    def wait_stream(self, other):
        self.waited_for.append(other)


@pytest.fixture
def cuda(monkeypatch):
    """CUDA's control flow without a device."""
    current, streams = Stream(), []

    @contextmanager
    def capture(graph, capture_error_mode):
        assert capture_error_mode == "thread_local"
        assert current.waited_for, "the warm-up's stream was not waited for"
        with Recorder(graph.steps):
            yield

    def use(stream):
        streams.append(stream)
        return nullcontext()

    Graph.made = 0
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", use)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: current)
    monkeypatch.setattr(Engine, "_captures", True)
    return streams


@pytest.fixture(scope="module")
def plain(plain_folder):
    return load_generator(str(plain_folder), device="cpu")


def prompts(generator, count, seed):
    return torch.randn(count, generator.tokens, generator.width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("options", [{}, {"reuse": False, "merge_keys": False}])
def test_a_replayed_graph_shows_the_prompts_it_is_given(plain, cuda, options):
    engine, expected = Engine(plain, RenderOptions(batch=3, **options)), Engine(plain, RenderOptions(batch=3))
    expected.__class__ = type("Plain", (Engine,), {"_captures": False})
    for count, seed in ((6, 0), (6, 1), (5, 2)):  # the last is filled up to the graph's size
        embeddings = prompts(plain, count, seed)
        shown, wanted = engine.render(embeddings), expected.render(embeddings)
        assert shown.shape == (count, 64, 64, 3)
        assert np.abs(shown.astype(int) - wanted).max() <= 1
    (graph,) = engine._graphs.values()
    assert (Graph.made, graph._graph.replays) == (1, 6)
    assert len(cuda) == 1
    assert cuda[0].waited_for  # the warm-up waits for what came before it


def test_frames_in_flight_are_not_those_of_the_next_replay(plain, cuda):
    engine = Engine(plain, RenderOptions(batch=2))
    first, second = (prompts(plain, 2, seed) for seed in (0, 1))
    ahead = engine.submit(first)
    other = engine.submit(second)
    np.testing.assert_array_equal(ahead.result(), engine.render(first))
    assert np.any(ahead.result() != other.result())


def test_another_size_is_another_graph_and_the_old_one_goes(plain, cuda):
    engine = Engine(plain, RenderOptions(batch=4))
    engine.render(prompts(plain, 4, 0))
    engine.render(prompts(plain, 2, 0))
    assert list(engine._graphs) == [2]
    assert Graph.made == 2


@pytest.mark.filterwarnings("ignore")  # torch's compiler meets its own warnings
def test_the_step_compiles_without_a_break(plain):
    """As `--compile` asks for it: one graph of fixed shapes; the compiler's front end alone, run by plain torch."""
    engine = Engine(plain)
    embeddings = prompts(plain, 2, 0)
    latents, conditions = plain.start(embeddings), embeddings @ engine._keys
    with torch.no_grad():
        step = torch.compile(engine._frames, backend="eager", fullgraph=True, dynamic=False)
        found, wanted = step(latents, conditions), engine._frames(latents, conditions)
    assert (found[0].int() - wanted[0].int()).abs().max() <= 1
    assert bool(found[1])


class Memory:
    """A device of so many bytes, where a frame takes 100 and the first call leaves 50."""

    def __init__(self, free_bytes):
        self.free_bytes, self.kept, self.peak, self.calls = free_bytes, 0, 0, []

    def work(self, count):
        self.calls.append(count)
        self.kept = 50
        self.peak = self.kept + 20 + 100 * count
        if self.peak > self.free_bytes:
            raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.fixture
def memory(monkeypatch):
    def of(free_bytes):
        device = Memory(free_bytes)
        for name, answer in {
            "synchronize": lambda where: None,
            "reset_peak_memory_stats": lambda where: None,
            "empty_cache": lambda: None,
            "memory_allocated": lambda where: device.kept,
            "max_memory_allocated": lambda where: device.peak,
            "mem_get_info": lambda where: (device.free_bytes - device.kept, device.free_bytes),
        }.items():
            monkeypatch.setattr(torch.cuda, name, answer)
        return device

    return of


def test_what_the_first_call_leaves_is_not_taken_for_a_frame(memory):
    device = memory(3_000)
    found = device_memory.most_frames(torch.device("cuda"), device.work)
    assert device.calls == [1, 1, 2]
    assert found == (0.85 * 2_950 - 20) // 100


def test_a_device_that_holds_one_frame_or_none(memory):
    device = memory(200)
    assert device_memory.most_frames(torch.device("cuda"), device.work) == 1
    device = memory(100)
    with pytest.raises(torch.OutOfMemoryError):
        device_memory.most_frames(torch.device("cuda"), device.work)
    assert device.calls == [1]
