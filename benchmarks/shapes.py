"""Shapes (N, T, I = H) of the layer benchmarks, from one streamed step to a large training batch."""

LAYER_SHAPES = [
    (1, 1, 32),
    (1, 100, 512),
    (1, 100, 1024),
    (32, 50, 48),
    (32, 50, 64),
    (64, 128, 128),
    (20, 35, 650),
    (64, 128, 512),
    (64, 64, 1024),
    (16, 100, 256),
    (256, 50, 256),
]
QUICK_LAYER_SHAPES = [(1, 1, 32), (32, 50, 64), (16, 100, 256)]


def forward_flops(n: int, t: int, i: int, h: int, layers: int = 1) -> float:
    """Multiply-adds of the matrix products count two; training is three times this."""
    return 2.0 * n * t * 4 * h * ((i + h) + (layers - 1) * 2 * h)
