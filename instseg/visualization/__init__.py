"""Drawing instances on images, and curves of a run."""

from instseg.visualization.curves import plot_curves
from instseg.visualization.draw import draw_instances, save_png, side_by_side

__all__ = ["draw_instances", "plot_curves", "save_png", "side_by_side"]
