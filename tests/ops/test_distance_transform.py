import numpy as np

from instseg.ops.distance_transform import distance_transform


def test_distances_are_exact_wherever_the_pixels_lie_in_memory():
    """OpenCV's roots are not: they changed from call to call, and with them whole trainings."""
    generator = np.random.default_rng(0)
    mask = (generator.random((40, 44)) < 0.97).astype(np.uint8)
    y, x = np.nonzero(mask == 0)
    rows, columns = np.mgrid[:40, :44]
    expected = ((rows[..., None] - y) ** 2 + (columns[..., None] - x) ** 2).min(axis=-1)
    expected = np.sqrt(expected).astype(np.float32)
    for _ in range(20):
        moved = np.empty(mask.size + int(generator.integers(1, 5000)), np.uint8)[-mask.size :]
        moved = moved.reshape(mask.shape)
        moved[...] = mask
        assert np.array_equal(distance_transform(moved), expected)
