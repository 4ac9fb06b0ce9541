"""Epochs of batches: the same with any number of workers, after a restart, and around bad files."""

import logging
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from instseg.data import dataset as dataset_module
from instseg.data.dataset import DetectionDataset
from instseg.data.image_io import ImageError
from instseg.data.index import Record
from instseg.data.loader import DetectionLoader
from instseg.data.sampling import EvalSampler, TrainBatchSampler
from instseg.data.transforms import (
    Compose,
    MixUp,
    Mosaic,
    PhotometricDistort,
    RandomCrop,
    RandomHorizontalFlip,
    ResizeShortestEdge,
    SimpleCopyPaste,
)
from tests.data.small_set import contents, make_records, truncate


@pytest.fixture
def records(tmp_path) -> list[Record]:
    return make_records(tmp_path)


def train_loader(records, num_workers, start_method=None, **mixes) -> DetectionLoader:
    chain = [
        RandomCrop(0.5, 1.0),
        ResizeShortestEdge([32, 40], 64),
        RandomHorizontalFlip(),
        PhotometricDistort(),
    ]
    dataset = DetectionDataset(records, Compose(chain), seed=4, with_masks=True, **mixes)
    sampler = TrainBatchSampler([r.size for r in records], 2, seed=4)
    return DetectionLoader(dataset, sampler, num_workers=num_workers, start_method=start_method)


def plain_loader(records, num_workers, batch_size=2, **settings) -> DetectionLoader:
    transforms = settings.pop("transforms", [])
    dataset = DetectionDataset(records, Compose(transforms), seed=0, with_masks=True, **settings)
    return DetectionLoader(dataset, EvalSampler(len(records), batch_size), num_workers=num_workers)


def bits(batch) -> list:
    """All that a batch holds, to compare bit for bit."""
    return [
        [(tuple(image.shape), image.numpy().tobytes()) for image in batch.images],
        [contents(target) for target in batch.targets],
        batch.image_ids,
        batch.original_sizes,
        batch.paths,
    ]


def ids(batches) -> list[list[int]]:
    return [[i - 100 for i in batch.image_ids] for batch in batches]


def test_a_batch_lines_up_its_samples(records):
    loader = plain_loader(records, 0)
    assert (len(loader), loader.batch_size) == (5, 2)
    batches = list(loader.epoch(0))
    assert ids(batches) == [[0, 1], [2, 3], [4, 5], [6, 7], [8]]
    for batch in batches:
        for i, image_id in enumerate(batch.image_ids):
            record = records[image_id - 100]
            assert tuple(batch.images[i].shape[1:]) == batch.targets[i].image_size == record.size
            assert batch.original_sizes[i] == record.size
            assert batch.paths[i] == str(record.path)
            assert np.array_equal(batch.targets[i].boxes.numpy(), record.boxes)


def test_epochs_do_not_depend_on_workers_or_restarts(records):
    def run(num_workers, epochs):
        loader = train_loader(
            records,
            num_workers,
            mix_read=[Mosaic((40, 48), p=0.5), MixUp(p=0.5)],
            mix_read_epochs=1,
            mix_transformed=[SimpleCopyPaste(p=0.5)],
        )
        return {epoch: [bits(batch) for batch in loader.epoch(epoch)] for epoch in epochs}

    truth = run(0, [0, 1])
    assert truth[0] != truth[1]
    assert run(1, [0, 1]) == truth
    assert run(2, [0, 1]) == truth
    assert run(2, [1]) == {1: truth[1]}
    torch.manual_seed(123)
    assert run(0, [1, 0]) == truth


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")
@pytest.mark.parametrize(
    "start_method", ["fork", "forkserver", pytest.param("spawn", marks=pytest.mark.slow)]
)
def test_epochs_do_not_depend_on_how_workers_are_made(records, start_method):
    def run(num_workers, start_method=None):
        mixes = {"mix_read": [Mosaic((40, 48), p=0.5)], "mix_transformed": [SimpleCopyPaste(p=0.5)]}
        loader = train_loader(records, num_workers, start_method, **mixes)
        return [[bits(batch) for batch in loader.epoch(epoch)] for epoch in (0, 1)]

    truth = run(0)
    for num_workers in (1, 4):
        assert run(num_workers, start_method) == truth


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_epoch_can_start_anywhere(records, num_workers):
    loader = train_loader(records, num_workers)
    whole = [bits(batch) for batch in loader.epoch(3)]
    assert len(whole) == len(loader) == 5
    for start in (2, 4, 5, 0):
        assert [bits(batch) for batch in loader.epoch(3, start)] == whole[start:]
    assert len(loader) == 5
    with pytest.raises(ValueError, match=r"start_batch must be in 0\.\.5.*got 6"):
        loader.epoch(3, 6)
    with pytest.raises(ValueError, match="got -1"):
        loader.epoch(3, -1)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_shares_of_processes_make_up_the_epoch(records, num_workers):
    loader = train_loader(records, num_workers)
    whole = [bits(batch) for batch in loader.epoch(3)]
    for share in ([0, 2, 4], [1, 3], [], [4]):
        got = [bits(batch) for batch in loader.epoch(3, positions=share)]
        assert got == [whole[number] for number in share]
    assert [bits(batch) for batch in loader.epoch(3, 2, positions=[0, 1, 2, 4])] == whole[2::2]
    assert [bits(batch) for batch in loader.epoch(3, positions=range(5))] == whole
    for wrong in ([1, 1], [2, 1], [-1, 0], [4, 5]):
        with pytest.raises(ValueError, match=r"rising batch numbers in 0\.\.4, got \["):
            loader.epoch(3, positions=wrong)
    with pytest.raises(ValueError, match=r"start_batch must be in 0\.\.5.*got 6"):
        loader.epoch(3, 6, positions=[1])


def test_what_was_done_before_the_start_is_not_decoded(records, monkeypatch):
    read = []
    original = dataset_module.read_image
    monkeypatch.setattr(
        dataset_module,
        "read_image",
        lambda path, **kind: (read.append(path.name), original(path, **kind))[1],
    )
    list(plain_loader(records, 0).epoch(0, 3))
    assert read == ["image6.jpg", "image7.jpg", "image8.jpg"]
    read.clear()
    list(plain_loader(records, 0).epoch(0, 1, positions=[0, 2, 4]))
    assert read == ["image4.jpg", "image5.jpg", "image8.jpg"]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_epoch_can_be_left_early(records, num_workers):
    loader = train_loader(records, num_workers)
    truth = [bits(batch) for batch in loader.epoch(1)]
    for _ in range(2):
        next(loader.epoch(0))
        assert [bits(batch) for batch in loader.epoch(1)] == truth


@pytest.mark.parametrize("num_workers", [0, 2])
def test_global_random_streams_are_left_alone(records, num_workers):
    def states():
        return (
            torch.get_rng_state().numpy().tobytes(),
            str(np.random.get_state()),
            random.getstate(),
        )

    before = states()
    loader = train_loader(records, num_workers, mix_transformed=[SimpleCopyPaste()])
    for epoch in range(2):
        for _ in loader.epoch(epoch):
            assert states() == before
    assert states() == before


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_broken_file_raises_with_its_name(records, num_workers):
    truncate(records[4].path)
    loader = plain_loader(records, num_workers)
    for _ in range(2):  # the loader itself stays usable
        epoch = loader.epoch(0)
        assert ids([next(epoch), next(epoch)]) == [[0, 1], [2, 3]]
        with pytest.raises(ImageError) as caught:
            next(epoch)
        assert caught.value.path == records[4].path
        assert str(caught.value).startswith(f"{records[4].path}: ")
        assert str(caught.value).count("image4.jpg") == 1


@pytest.mark.parametrize("num_workers", [0, 2])
def test_broken_files_are_skipped_and_steps_still_counted(records, num_workers, tmp_path):
    for i in (4, 5, 6):
        truncate(records[i].path)
    log = logging.FileHandler(tmp_path / "log.txt")  # workers write to it too
    logger = logging.getLogger("instseg.data.dataset")
    logger.addHandler(log)
    try:
        loader = plain_loader(records, num_workers, on_error="skip")
        for start in range(3):  # each start gives the broken files to another worker
            batches = list(loader.epoch(start, start))
            assert ids(batches) == [[0, 1], [2, 3], [], [7], [8]][start:]
            empty = batches[2 - start]
            assert len(empty) == 0
            assert (empty.images, empty.targets, empty.paths) == ([], [], [])
    finally:
        logger.removeHandler(log)
        log.close()
    lines = (tmp_path / "log.txt").read_text().splitlines()
    for i, line in zip((4, 5, 6), sorted(lines), strict=True):
        assert f"image{i}.jpg: the file is cut short" in line


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_error_in_a_transform_names_the_file(records, num_workers):
    def fail(image):
        raise RuntimeError("cannot do that")

    loader = plain_loader(records, num_workers, transforms=[v2.Lambda(fail)])
    with pytest.raises(RuntimeError, match="cannot do that") as caught:
        next(loader.epoch(0))
    # Left to the garbage collector, as part of a cycle, the loader waits 5 s for its worker.
    traceback.clear_frames(caught.tb)
    del loader
    told = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", [])])
    assert str(records[0].path) in told


def test_workers_use_one_thread_and_ignore_ctrl_c(records):
    def settings(image):
        values = (
            torch.get_num_threads(),
            cv2.getNumThreads(),
            signal.getsignal(signal.SIGINT) is signal.SIG_IGN,
        )
        return tv_tensors.Image(torch.tensor(values, dtype=torch.uint8)[:, None, None] + image * 0)

    loader = plain_loader(records, 1, transforms=[v2.Lambda(settings, tv_tensors.Image)])
    threads, cv2_threads, ignores = next(loader.epoch(0)).images[0][:, 0, 0].tolist()
    assert threads == 1
    assert cv2_threads <= 1
    assert ignores == 1


SCRIPT = """
import multiprocessing, os, signal, sys
from multiprocessing import forkserver
from pathlib import Path
from instseg.data.dataset import DetectionDataset
from instseg.data.loader import DetectionLoader
from instseg.data.sampling import EvalSampler
from instseg.data.transforms import Compose
from tests.data.small_set import make_records

stops = []
if __name__ == "__main__":
    folder, method, moment = sys.argv[1:]
    records = make_records(Path(folder), 40)
    dataset = DetectionDataset(records, Compose([]), seed=0, with_masks=True)
    sampler = EvalSampler(40, 2)
    loader = DetectionLoader(dataset, sampler, num_workers=2, start_method=method)
    # A trainer that finishes its step before it stops.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stops.append(1))
    epoch = loader.epoch(0)
    count = 0
    if moment == "working":
        count += len([next(epoch), next(epoch)])  # one of each worker: both are set up
    print(*(w.pid for w in loader._watched._pool._workers), flush=True)
    sys.stdin.readline()
    count += sum(1 for _ in epoch)
    next(loader.epoch(1))  # and leaves in the middle of an epoch
    print(count, len(stops), flush=True)
"""


def start_script(*arguments: object, script: str = SCRIPT) -> subprocess.Popen[str]:
    """A program with a loader of two workers, in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize(
    ("number", "method", "moment"),
    [
        (signal.SIGINT, "fork", "working"),
        (signal.SIGTERM, "fork", "starting"),
        (signal.SIGINT, "spawn", "starting"),
        (signal.SIGTERM, "spawn", "working"),
        (signal.SIGTERM, "forkserver", "working"),
    ],
)
def test_signals_to_the_group_are_the_trainers_and_leaving_does_not_hang(
    tmp_path, number, method, moment
):
    process = start_script(tmp_path, method, moment)
    try:
        workers = process.stdout.readline().split()
        os.killpg(process.pid, number)  # as a terminal or a batch system does: to every process
        output, errors = process.communicate("\n", timeout=240)
    finally:
        process.kill()
    assert (output, errors, process.returncode) == ("20 1\n", "", 0)
    assert len(workers) == 2
    assert not any(is_running(int(pid)) for pid in workers)


def test_an_end_while_workers_start(tmp_path):
    """They have SIGTERM blocked then, and one of others pending, which hides the trainer's own."""
    script = SCRIPT.replace("    sys.stdin.readline()\n", "    sys.stdin.readline(); sys.exit(5)\n")
    process = start_script(tmp_path, "spawn", "starting", script=script)
    workers = [int(pid) for pid in process.stdout.readline().split()]
    os.killpg(process.pid, signal.SIGTERM)
    assert process.communicate("\n", timeout=240) == ("", "")
    assert process.returncode == 5
    assert not any(is_running(pid) for pid in workers)


def test_a_fork_server_that_is_killed_is_replaced(tmp_path):
    """In its start, and with workers that work; though a fault of theirs would be the end."""
    kills = """
    import threading, time
    def kill_server():
        while forkserver._forkserver._forkserver_pid is None:
            time.sleep(0.001)
        os.kill(forkserver._forkserver._forkserver_pid, signal.SIGKILL)
    threading.Thread(target=kill_server).start()
    epoch = loader.epoch(0)
"""
    script = SCRIPT.replace("    epoch = loader.epoch(0)\n", kills).replace(
        "    sys.stdin.readline()\n",
        "    os.kill(forkserver._forkserver._forkserver_pid, signal.SIGKILL)\n"
        "    while any(w.is_alive() for w in loader._watched._pool._workers):\n"
        "        time.sleep(0.01)\n",
    )
    process = start_script(tmp_path, "forkserver", "working", script=script)
    output, errors = process.communicate(timeout=240)
    workers = output.splitlines()[0].split()
    assert output.splitlines()[1:] == ["20 0"]
    assert process.returncode == 0
    lost = [f"data worker {i} (pid {pid}) lost its fork server" for i, pid in enumerate(workers)]
    (line,) = errors.splitlines()
    assert all(text in line for text in lost)
    assert line.endswith("; starting new workers")


def test_pinning_pins_every_image(records, monkeypatch):
    batch = next(plain_loader(records, 0).epoch(0))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: ("pinned", tensor))
    pinned = batch.pin_memory()
    assert pinned.images == [("pinned", image) for image in batch.images]
    assert pinned.targets is batch.targets


@pytest.mark.gpu
def test_loader_gives_pinned_images(records):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    dataset = DetectionDataset(records, Compose([]), seed=0, with_masks=True)
    loader = DetectionLoader(dataset, EvalSampler(9, 2), num_workers=2, pin_memory=True)
    for _ in range(2):
        batches = list(loader.epoch(0))
        assert all(image.is_pinned() for batch in batches for image in batch.images)
        assert ids(batches) == [[0, 1], [2, 3], [4, 5], [6, 7], [8]]


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_workers_end_with_a_killed_trainer(tmp_path, method):
    process = start_script(tmp_path, method, "working")
    workers = [int(pid) for pid in process.stdout.readline().split()]
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while any(is_running(pid) for pid in workers):
        assert time.monotonic() < deadline, "the workers outlive the process they work for"
        time.sleep(0.1)
    assert len(workers) == 2


def is_running(pid: int) -> bool:
    """Whether the process is there and no zombie that nobody has waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
