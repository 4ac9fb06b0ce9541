"""Workers that die or hang: named, replaced, and without a trace in the batches."""

import logging
import multiprocessing
import os
import re
import signal
import threading
import time
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from instseg.data.dataset import DetectionDataset, Sample
from instseg.data.index import Record
from instseg.data.loader import Batch, DetectionLoader
from instseg.data.packing import Packed
from instseg.data.sampling import EvalSampler, SampleKey
from instseg.data.transforms import Compose
from instseg.data.worker_faults import WorkerError
from instseg.data.worker_watch import WorkerDiedError, raising_on_death, watch_children
from instseg.structures import Instances, SparseMasks
from tests.data.small_set import make_records
from tests.data.test_loader import bits, ids


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> list[Record]:
    return make_records(tmp_path_factory.mktemp("images"), 20)


class Poisoned(Dataset[Sample]):
    """A data set of which some samples undo the worker that reads them, so many times each."""

    def __init__(self, records: list[Record], way: str, poison: dict[int, int]) -> None:
        self.records = records
        self._dataset = DetectionDataset(records, Compose([]), seed=0, with_masks=True)
        self._way = way
        self._left = torch.zeros(len(records), dtype=torch.int64).share_memory_()
        for index, times in poison.items():
            self._left[index] = times

    def __getitem__(self, key: SampleKey) -> Sample | None:
        if self._left[key.index] > 0:
            self._left[key.index] -= 1
            if self._way == "exit":
                os._exit(3)
            elif self._way == "sleep":
                time.sleep(1000)
            else:
                os.kill(os.getpid(), signal.Signals[self._way])
                time.sleep(1)  # SIGSTOP: all threads stop here
        return self._dataset[key]


def make_loader(records, way="SIGKILL", poison=None, **settings) -> DetectionLoader:
    settings = {"num_workers": 2, "on_worker_fault": "restart"} | settings
    sampler = EvalSampler(len(records), 2)
    return DetectionLoader(Poisoned(records, way, poison or {}), sampler, **settings)


@pytest.fixture(scope="module")
def truth(records) -> list:
    return [bits(batch) for batch in make_loader(records, num_workers=0).epoch(0)]


def pids(loader: DetectionLoader) -> list[int]:
    return [worker.pid for worker in loader._watched._pool._workers]


@pytest.mark.parametrize(
    ("way", "what"),
    [
        ("SIGKILL", r"was killed by SIGKILL \(the system does so where memory runs out"),
        ("SIGSEGV", r"was killed by SIGSEGV \(a decoder crashed"),
        ("exit", "ended with exit status 3"),
        ("sleep", r"got no further for 0\.5 s"),
        ("SIGSTOP", r"got no further for 0\.5 s"),
    ],
)
def test_new_workers_go_on_where_the_old_ones_ended(records, truth, caplog, way, what):
    loader = make_loader(records, way, {7: 2, 19: 1}, worker_timeout=0.5)
    with caplog.at_level(logging.WARNING):
        assert [bits(batch) for batch in loader.epoch(0)] == truth
    assert [bits(batch) for batch in loader.epoch(0, 3)] == truth[3:]
    assert len(set(pids(loader))) == 2
    warnings = [r.getMessage() for r in caplog.records if r.name.startswith("instseg")]
    for index in (7, 7, 19):
        (line, *_) = [text for text in warnings if f"sample {index} of epoch 0" in text]
        assert f"({records[index].path}, or an image that was mixed into it)" in line
        assert line.endswith("; starting new workers")
        warnings.remove(line)
        assert re.search(r"^data worker [01] \(pid \d+\) " + what, line)
    assert warnings == []


def test_stop_names_worker_process_signal_and_file(records, truth):
    loader = make_loader(records, "SIGKILL", {6: 1}, on_worker_fault="stop")
    epoch = loader.epoch(0)
    processes = pids(loader)
    given = []
    with pytest.raises(WorkerError) as caught:
        given.extend(map(bits, epoch))
    # Sample 6 is of batch 3, worker 1's second.
    assert str(caught.value).startswith(
        f"data worker 1 (pid {processes[1]}) was killed by SIGKILL (the system does so where "
        "memory runs out: lower data.workers) while preparing sample 6 of epoch 0 "
        f"({records[6].path}, or "
    )
    assert "data.on_worker_fault" in str(caught.value)
    assert given == truth[:3][: len(given)]
    assert [bits(batch) for batch in loader.epoch(0)] == truth  # the loader is still of use


def test_a_sample_that_always_kills_is_named_and_ends_it(records, caplog):
    loader = make_loader(records, "SIGSEGV", {6: 99})
    given = []
    with pytest.raises(WorkerError, match=r"sample 6 .*has ended its worker 3 times") as caught:
        given.extend(loader.epoch(0))
    assert str(records[6].path) in str(caught.value)
    assert ids(given) == [[0, 1], [2, 3], [4, 5]][: len(given)]
    assert caplog.text.count("starting new workers") == 2


def test_faults_without_a_batch_in_between_end_it(records):
    loader = make_loader(records, "SIGKILL", {0: 1, 1: 9}, num_workers=1)
    with pytest.raises(WorkerError, match=r"sample 1 of .*fault 3 without a batch in between"):
        next(loader.epoch(0))


@pytest.mark.parametrize("policy", ["restart", "stop"])
def test_a_death_outside_the_wait_for_a_batch_disturbs_nothing_there(records, truth, policy):
    loader = make_loader(records, on_worker_fault=policy)
    epoch = loader.epoch(0)
    first = bits(next(epoch))
    victim = pids(loader)[1]
    time.sleep(0.2)  # both are idle now
    os.kill(victim, signal.SIGKILL)
    for _ in range(100):  # the model's time; torch's own handler would raise here
        time.sleep(0.002)
    if policy == "stop":
        with pytest.raises(WorkerError, match=rf"worker 1 \(pid {victim}\).*between two samples"):
            list(epoch)
    else:
        assert [first, *(bits(batch) for batch in epoch)] == truth
        assert victim not in pids(loader)


def test_workers_that_died_between_two_epochs_are_replaced(records, truth):
    loader = make_loader(records)
    assert [bits(batch) for batch in loader.epoch(0)] == truth
    for pid in pids(loader):
        os.kill(pid, signal.SIGKILL)
    assert [bits(batch) for batch in loader.epoch(0)] == truth


def test_workers_that_hang_between_two_epochs_are_replaced(records, truth):
    loader = make_loader(records, worker_timeout=0.5)
    next(loader.epoch(0))  # what is left is taken from the workers at the start of the next
    for pid in pids(loader):
        os.kill(pid, signal.SIGSTOP)
    assert [bits(batch) for batch in loader.epoch(0)] == truth


def test_a_slow_consumer_is_no_hang(records, truth):
    loader = make_loader(records, worker_timeout=0.2)
    before = None
    got = []
    for number, batch in enumerate(loader.epoch(0)):
        got.append(bits(batch))
        before = before or pids(loader)
        if number == 4:
            time.sleep(1)
    assert got == truth
    assert pids(loader) == before


def test_workers_that_work_are_no_hang(records, truth):
    """A batch may take longer than the time limit, as long as its samples do not."""
    loader = make_loader(records, worker_timeout=0.6, num_workers=1)
    dataset = loader._dataset
    original = dataset._dataset._transforms

    def slow(*pair):
        time.sleep(0.4)
        return original(*pair)

    dataset._dataset._transforms = slow
    assert [bits(batch) for batch, _ in zip(loader.epoch(0), range(2), strict=False)] == truth[:2]


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
def test_killed_at_random_moments(records, truth, caplog):
    """With annotations that fill the pipe, so that a worker may die in the middle of a message."""
    loader = make_loader(records * 8, num_workers=3)
    whole = [bits(batch) for batch in make_loader(records * 8, num_workers=0).epoch(0)]
    rng = np.random.default_rng(0)
    got = []

    def kill_now_and_then() -> None:
        while len(got) < len(whole) - 20:
            goal = len(got) + rng.integers(1, 12)
            while len(got) < goal:
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.01))
            loader._watched._pool._workers[rng.integers(3)].kill()

    killer = threading.Thread(target=kill_now_and_then)
    killer.start()
    for batch in loader.epoch(0):
        got.append(bits(batch))
    killer.join()
    assert got == whole
    assert caplog.text.count("was killed by SIGKILL") >= 4


def test_a_fork_servers_workers_are_replaced_too(records, truth):
    """They are no children of this process, so no signal tells it of their death."""
    loader = make_loader(records, "SIGKILL", {6: 1}, start_method="forkserver")
    assert [bits(batch) for batch in loader.epoch(0)] == truth


class Stillborn(Poisoned):
    """Some of the workers to which it is sent end as they unpack it."""

    def __setstate__(self, state: dict) -> None:
        self.__dict__ |= state
        if self._left[0] > 0:
            self._left[0] -= 1
            os.kill(os.getpid(), signal.Signals[self._way])


def test_a_worker_that_ends_in_its_start_is_no_fault_of_a_sample(records, truth, caplog):
    """As where a signal to all processes finds it before it knows what to make of that."""
    dataset = Stillborn(records, "SIGTERM", {0: 1})
    sampler = EvalSampler(len(records), 2)
    loader = DetectionLoader(dataset, sampler, num_workers=1, start_method="forkserver")
    assert [bits(batch) for batch in loader.epoch(0)] == truth  # the policy is to stop
    assert caplog.text.count("was killed by SIGTERM in its start; starting new workers") == 1


def test_a_death_raises_where_it_is_waited_for_and_in_no_other_thread():
    """Python runs the handler that tells of it in the main thread, whoever waits."""
    context = multiprocessing.get_context("fork")
    mine, others = (context.Process(target=time.sleep, args=(1000,)) for _ in range(2))
    mine.start()
    others.start()
    watch_children()
    waits, ends = threading.Event(), threading.Event()

    def wait() -> None:
        with raising_on_death([others]):
            waits.set()
            ends.wait()

    thread = threading.Thread(target=wait)
    thread.start()
    waits.wait()
    others.kill()
    for _ in range(300):
        time.sleep(0.001)
    ends.set()
    thread.join()
    assert not others.is_alive()
    killer = threading.Timer(0.1, mine.kill)
    killer.start()
    with pytest.raises(WorkerDiedError), raising_on_death([mine]):
        time.sleep(60)
    killer.join()


def test_another_epoch_ends_the_one_before(records, truth):
    loader = make_loader(records)
    first = loader.epoch(0)
    next(first)
    second = loader.epoch(0)
    assert list(first) == []
    assert [bits(batch) for batch in second] == truth


@pytest.mark.parametrize("seconds", [0, -1.0])
def test_a_time_limit_must_be_positive(records, seconds):
    with pytest.raises(ValueError, match="worker_timeout must be positive"):
        make_loader(records, worker_timeout=seconds)


@pytest.mark.gpu
def test_workers_of_a_loader_that_pins_are_replaced(records, truth):
    """There a thread reads what workers send, and pins it."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    for way in ("SIGKILL", "SIGSTOP"):
        loader = make_loader(records, way, {7: 2}, pin_memory=True, worker_timeout=0.5)
        batches = list(loader.epoch(0))
        assert all(image.is_pinned() for batch in batches for image in batch.images)
        assert [bits(batch) for batch in batches] == truth


# --- what workers send --------------------------------------------------------------------------


def test_packing_keeps_every_bit():
    content = {
        "bytes": torch.arange(7, dtype=torch.uint8),
        "deep": torch.arange(24, dtype=torch.int32).to(torch.uint16).reshape(2, 3, 4),
        "view": torch.arange(12.0).reshape(3, 4).t(),
        "none": torch.zeros(0, 4),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "flags": torch.tensor([True, False]),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "array": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "strided": np.arange(10)[::3],
        "other": ["text", None, (1, 2)],
    }
    got = Packed.pack(content).unpack()
    assert got.keys() == content.keys()
    for key, value in content.items():
        if isinstance(value, torch.Tensor):
            assert got[key].dtype == value.dtype
            assert torch.equal(got[key], value), key
        elif isinstance(value, np.ndarray):
            assert got[key].dtype == value.dtype
            assert np.array_equal(got[key], value)
        else:
            assert got[key] == value
    got["bytes"][0] = 9  # a copy of one's own, which can be written to
    assert content["bytes"][0] == 0


def test_pinning_pins_the_block(monkeypatch):
    packed = Packed.pack([torch.arange(5)])
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor.clone())
    pinned = packed.pin_memory()
    assert pinned.block.data_ptr() != packed.block.data_ptr()
    assert torch.equal(pinned.unpack()[0], torch.arange(5))


def test_a_message_is_no_longer_than_a_pipe_takes_whole():
    polygons = [[np.random.default_rng(i).uniform(0, 600, (300, 2))] for i in range(400)]
    target = Instances(
        (600, 600),
        torch.zeros(400, 4),
        torch.zeros(400, dtype=torch.int64),
        masks=SparseMasks(polygons, (600, 600), (600, 600)),
    )
    image = torch.zeros(3, 600, 600, dtype=torch.uint8)
    batch = Batch([image] * 8, [target] * 8, list(range(8)), [(600, 600)] * 8, ["a.jpg"] * 8)
    assert len(ForkingPickler.dumps(batch.targets)) > 1_000_000
    assert len(ForkingPickler.dumps((0, Packed.pack(batch), 0))) < 4096 - 4  # and its length
